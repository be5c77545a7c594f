"""Keeps an agent connected: a number of connections, each dialled again when it ends.

``dialout.agent.lifecycle`` decides what follows an ending. This module dials, waits and logs.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dialout.agent.address import parse_address
from dialout.agent.agent import Agent
from dialout.agent.backoff import Backoff
from dialout.agent.connection import ProxyConnection
from dialout.agent.errors import NotConnected, RegistrationError
from dialout.agent.hooks import Hooks
from dialout.agent.lifecycle import Course, Ending, Kind, after
from dialout.agent.registering import connect
from dialout.agent.serving import check_agent
from dialout.agent.signals import handling
from dialout.agent.states import ConnectionState, Phase
from dialout.capabilities import Capabilities
from dialout.codec import codec_for
from dialout.dialects import Dialect
from dialout.errors import LocalProtocolError
from dialout.registration import RegistrationRequest

__all__ = ["AgentConnectionManager"]

_log = logging.getLogger("dialout.agent")


class AgentConnectionManager:
    """Keeps ``target_connections`` connections to the proxy at ``address`` and serves them with ``agent``.

    ::

        await AgentConnectionManager("/run/shardgate/agents.sock", "waf-1", agent).run()

    A connection that ends, or a failed dial, is followed by a new dial. The wait before it is a back-off of 1 to 60
    seconds with full jitter, or the proxy's own wish; see ``dialout.agent.lifecycle``. By default it never gives up.
    With ``max_failures``, ``run`` raises the last error after more failures in a row on one connection.

    ``capabilities`` default to the agent's own. ``timeout`` bounds dialling and registering, ``drain_timeout`` the end.
    All times are seconds. ``on_state`` is called with each new ``ConnectionState``, and must not block. The same lines
    go to the log ``dialout.agent``. Raises LocalProtocolError for arguments that make no valid registration, for an
    agent without any hook, and for a failure answer that the dialect cannot carry.
    """

    def __init__(
        self,
        address: str | Path,
        agent_id: str,
        agent: Agent,
        *,
        target_connections: int = 4,
        auth_token: str | None = None,
        metadata: dict[str, Any] | None = None,
        capabilities: Capabilities | None = None,
        dialect: Dialect = Dialect.SDK,
        timeout: float = 10.0,
        backoff: Backoff | None = None,
        proven_after: float = 10.0,
        max_failures: int | None = None,
        ping_interval: float = 15.0,
        ping_timeout: float = 15.0,
        drain_timeout: float = 30.0,
        on_state: Callable[[ConnectionState], None] | None = None,
    ) -> None:
        if target_connections < 1:
            raise LocalProtocolError("target_connections is at least 1")
        self.address = parse_address(address)
        self.agent = agent
        self.reconnects = 0
        """Connections that were registered, and dialled again."""
        self._dialect = dialect
        self._request = RegistrationRequest(
            agent_id=agent_id,
            capabilities=agent.capabilities if capabilities is None else capabilities,
            auth_token=auth_token,
            metadata=metadata,
        )
        # An invalid registration or failure answer raises here.
        self._request.encode(dialect)
        check_agent(agent, codec_for(dialect), Hooks(agent))
        self._timeout = timeout
        self._backoff = backoff or Backoff()
        self._proven_after = proven_after
        self._max_failures = max_failures
        self._ping_interval = ping_interval
        self._ping_timeout = ping_timeout
        self._drain_timeout = drain_timeout
        self._on_state = on_state
        self._roll = random.random
        self._states = [ConnectionState(number=n + 1, phase=Phase.CLOSED) for n in range(target_connections)]
        self._connections: dict[int, ProxyConnection] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping: asyncio.Event | None = None
        self._now = False

    # --- public interface ---

    @property
    def agent_id(self) -> str:
        """The id that the agent registers with."""
        return self._request.agent_id

    @property
    def states(self) -> tuple[ConnectionState, ...]:
        """The state of each connection."""
        return tuple(self._states)

    @property
    def connected(self) -> int:
        """The number of connections that are registered now."""
        return sum(state.phase is Phase.CONNECTED for state in self._states)

    async def run(self, *, handle_signals: bool | None = None) -> None:
        """Stay connected until ``stop``, or until SIGTERM or SIGINT.

        At the end, requests in flight are finished first, for up to ``drain_timeout``. A second signal ends at once. A
        cancelled ``run`` closes at once. A manager runs once.

        By default a signal is handled only in the main thread, and only if no framework has a handler for it. With
        ``handle_signals`` true, a framework's handlers are replaced meanwhile, and called as well. With false, signals
        are left alone. Managers that run at the same time share the signals. After the last one the handlers are as
        before.
        """
        if self._stopping is not None:
            raise LocalProtocolError("a manager runs once; make another one")
        self._stopping = asyncio.Event()
        gave_up: Exception | None = None
        self.agent.configuring.keep()
        with handling(self._signalled, handle_signals):
            try:
                async with asyncio.TaskGroup() as group:
                    self._tasks = [group.create_task(self._keep(n)) for n in range(len(self._states))]
            except* NotConnected as errors:
                gave_up = errors.exceptions[0]
            finally:
                self.agent.configuring.let_go()
        if gave_up is not None:
            raise gave_up  # Outside of the block: early versions of 3.11 would raise a group again.

    def stop(self, *, now: bool = False) -> None:
        """Make ``run`` end: gently, or at once with ``now``. Returns immediately. Call it from the loop's thread."""
        if self._stopping is None:
            return
        self._now = self._now or now
        first = not self._stopping.is_set()
        self._stopping.set()
        for n, task in enumerate(self._tasks):
            if n not in self._connections:
                task.cancel()  # It dials, or waits to.
            elif self._now:
                self._connections[n].abort("stopped")
            elif first:
                self._tell(n, Phase.DRAINING, reason=f"{self._connections[n].in_flight} in flight")

    # --- one connection ---

    async def _keep(self, n: int) -> None:
        """Keep connection ``n`` open until the manager stops."""
        assert self._stopping is not None
        course = Course()
        try:
            while not self._stopping.is_set():
                ending, error = await self._connect_and_serve(n)
                if self._stopping.is_set():
                    break
                plan = after(course, ending, self._backoff, self._roll(), proven_after=self._proven_after)
                course = plan.course
                if self._max_failures is not None and course.failures > self._max_failures:
                    raise error or NotConnected(ending.reason)
                self._tell(n, Phase.WAITING, plan.level, wait=plan.wait, reason=ending.reason, detail=ending.detail)
                await asyncio.sleep(plan.wait)
        except asyncio.CancelledError:
            if not self._stopping.is_set():
                raise
        finally:
            self._tell(n, Phase.CLOSED)

    async def _connect_and_serve(self, n: int) -> tuple[Ending, NotConnected | None]:
        self._tell(n, Phase.CONNECTING)
        try:
            connection = await connect(
                self.address,
                self._request,
                self._dialect,
                limit=self._timeout,
                ping_interval=self._ping_interval,
                ping_timeout=self._ping_timeout,
                on_dialled=lambda: self._tell(n, Phase.REGISTERING),
            )
        except NotConnected as error:
            return _ending(error), error
        self._connections[n] = connection
        try:
            self._tell(n, Phase.CONNECTED, connection_id=connection.connection_id)
            serving = asyncio.ensure_future(connection.serve(self.agent))
            return await self._until_over(connection, serving), None
        finally:
            del self._connections[n]
            self.reconnects += not (self._stopping is not None and self._stopping.is_set())

    async def _until_over(self, connection: ProxyConnection, serving: "asyncio.Future[Ending]") -> Ending:
        """Wait for the end of a connection, and drain it when the manager stops."""
        assert self._stopping is not None
        stopping = asyncio.ensure_future(self._stopping.wait())
        both: set[asyncio.Future[Any]] = {serving, stopping}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not serving.done() and not self._now:
                await connection.drain(self._drain_timeout)
            return await serving
        finally:
            for task in both:
                task.cancel()
            await asyncio.wait(both)

    # --- logging ---

    def _tell(self, n: int, phase: Phase, level: int = logging.INFO, **more: Any) -> None:
        state = self._states[n] = ConnectionState(number=n + 1, phase=phase, **more)
        detail = f" ({state.detail})" if state.detail else ""
        _log.log(level, "%s connection %d: %s%s", self.agent_id, n + 1, state, detail)
        if self._on_state is not None:
            try:
                self._on_state(state)
            except Exception:  # noqa: BLE001 - the caller's code; the connection goes on
                _log.exception("on_state failed")

    def _signalled(self) -> None:
        self.stop(now=self._stopping is not None and self._stopping.is_set())


def _ending(error: NotConnected) -> Ending:
    code, words = error.error_code, str(error)
    return Ending(
        kind=Kind.REFUSED if isinstance(error, RegistrationError) else Kind.UNREACHABLE,
        reason=words if code is None else code.value,
        detail="" if code is None else words.removeprefix(f"{code}: "),
        error_code=error.error_code,
        retry_after=error.retry_after,
    )
