"""The admin endpoint: its paths, their answers, and the check of the Host header. It is read-only."""

import ipaddress
import time
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from pathlib import Path

import msgspec

from ipc.logs import get_logger
from ipc.places import CannotMend, Places
from ipc.turns import Turns
from supervisor.admin.agents import AgentLists, Busy
from supervisor.admin.happened import Happened, happened
from supervisor.admin.http import TEXT, Handler, HttpServer, Response
from supervisor.admin.live import Live
from supervisor.admin.metrics import content_type, exposition
from supervisor.admin.observer import Observer
from supervisor.admin.page import page
from supervisor.admin.readiness import NOT_READY, Readiness
from supervisor.admin.renderings import Renderings, Steps
from supervisor.admin.request import Request
from supervisor.config.model import Config, TcpAddress
from supervisor.listeners import Listener, ListenError, open_again, open_all
from supervisor.merge import Status

JSON = "application/json"

PAGE_AGENTS = 100
"""Agents in an answer when the request gives no limit."""


class Snapshot(msgspec.Struct, kw_only=True):
    """The content of the page. *at* is its time, in seconds of the monotonic clock."""

    at: float
    status: Status
    readiness: Readiness
    agents: int
    events: list[Happened]


def open_admin(config: Config) -> Listener | None:
    """Open the socket of the admin endpoint; None without one. The mode is set before listen(2). Raises ListenError."""
    where = config.admin_listen
    if where is None:
        return None
    if isinstance(where, TcpAddress):
        if not where.is_loopback:
            get_logger().warning(
                "the admin endpoint can be reached from other hosts, and asks nobody who they are", address=str(where)
            )
        alone = Config(tcp_addresses=(where,))
    else:
        alone = Config(path=where, socket_mode=config.admin_socket_mode)
    (listener,) = open_all(alone, Path())
    return listener


class Admin:
    """Serves the state of *observer* on *listener*, in *turns*. It owns *listener* from now on."""

    def __init__(
        self, listener: Listener, observer: Observer, agents: AgentLists, turns: Turns, *, allow_remote: bool
    ) -> None:
        self._listener = listener
        self._observer = observer
        self._agents = agents
        # Otherwise a page in an operator's browser could read the answers, by a host name that resolves to 127.0.0.1.
        self._checks_host = listener.kind == "tcp" and not allow_remote
        self._http = HttpServer(self._answer, turns)
        self._live = Live(self._snapshot, self._state, turns)
        self._renderings = Renderings(turns)
        self._routes: dict[str, Handler] = {
            "/": self._page,
            "/livez": lambda _: Response(200, TEXT, b"ok\n"),
            "/readyz": lambda _: self._renderings.get("/readyz", partial(_in_one_step, self._ready)),
            "/metrics": self._metrics,
            "/status.json": lambda _: self._renderings.get("/status.json", partial(_in_one_step, self._status)),
            "/agents.json": self._list_agents,
            "/live": self._follow,
        }

    async def start(self) -> None:
        """Start to answer."""
        self._http.accept_on(self._listener.sock)
        get_logger().info("admin endpoint", address=self._listener.address)

    def look_after(self, places: Places) -> None:
        """Open the Unix socket again when its file is gone. Does nothing for TCP."""
        if self._listener.path is not None:
            places.add(self._listener.path, "the socket of the admin endpoint", self._listen_again)

    def _listen_again(self) -> None:
        try:
            listener = open_again(self._listener)
        except ListenError as error:
            raise CannotMend(str(error)) from error
        old, self._listener = self._listener, listener
        self._http.accept_on(listener.sock)
        old.sock.close()

    def close(self) -> None:
        """Stop answering, and close the socket."""
        self._live.close()
        self._http.close()
        self._listener.close()

    def _answer(self, request: Request) -> Response | Awaitable[Response]:
        # Every browser sends Host. Health checks in HTTP/1.0 do not (HAProxy).
        host = request.headers.get("host")
        if self._checks_host and host is not None and not is_own_host(host):
            return Response(421, TEXT, b"ask by 127.0.0.1 or localhost, or set allow-remote in the configuration\n")
        route = self._routes.get(request.path)
        if route is None:
            return Response(404, TEXT, f"there are {', '.join(self._routes)}\n".encode())
        return route(request)

    def _page(self, _: Request) -> Response:
        html, policy = page()
        return Response(200, "text/html; charset=utf-8", html, (("Content-Security-Policy", policy),))

    def _status(self) -> Response:
        return _json(self._observer.status())

    def _ready(self) -> Response:
        readiness = self._observer.readiness()
        return _json(readiness, 503 if readiness.status == NOT_READY else 200)

    def _metrics(self, request: Request) -> Response | Awaitable[Response]:
        accept = request.headers.get("accept", "")
        return self._renderings.get(("/metrics", content_type(accept)), partial(self._exposition, accept))

    def _exposition(self, accept: str) -> Steps:
        form, parts = exposition(self._observer.figures(), accept)
        content = []
        for part in parts:
            content.append(part)
            yield
        return Response(200, form, b"".join(content))

    async def _list_agents(self, request: Request) -> Response:
        limit = request.query.get("limit", "")
        number = int(limit) if limit.isascii() and limit.isdecimal() and len(limit) < 10 else PAGE_AGENTS
        try:
            return _json(await self._agents.page(request.query.get("after", ""), number))
        except Busy:
            return Response(503, TEXT, b"too many ask for agents; come again\n", (("Retry-After", "5"),))

    def _follow(self, _: Request) -> Response:
        if self._live.is_full:
            return Response(503, TEXT, b"too many are watching; come again\n", (("Retry-After", "5"),))
        return Response(200, "text/event-stream", self._live.first(), follow=self._live.follow)

    def _snapshot(self) -> bytes:
        status = self._observer.status()
        return msgspec.json.encode(
            Snapshot(
                at=round(time.monotonic(), 3),
                status=status,
                readiness=self._observer.readiness(status),
                agents=self._observer.agent_total,
                events=happened(self._observer.history),
            )
        )

    def _state(self) -> Hashable:
        status = self._observer.status()
        assert status.supervisor is not None
        return status.supervisor.state, tuple((row.id, row.pid, row.state) for row in status.shards)


def _in_one_step(make: Callable[[], Response]) -> Steps:
    """Steps of an answer that takes only one step."""
    yield from ()
    return make()


def _json(value: object, status: int = 200) -> Response:
    return Response(status, JSON, msgspec.json.format(msgspec.json.encode(value)) + b"\n")


def is_own_host(host: str) -> bool:
    """Whether a Host header names this host: ``localhost`` or a loopback address, with any port."""
    name = host.rpartition(":")[0] if ":" in host.rpartition("]")[2] else host
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
