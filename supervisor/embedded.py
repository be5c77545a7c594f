"""A listener inside another program: one process, no shards.

It has the same handshake, rules and refusals as ``shardgate run``. It is for a proxy that keeps the agents' connections
in its own `AgentPool`. ``examples/`` has two accept loops for it.

Log lines go through structlog. Configure it, or call `ipc.logs.configure`.
"""

import asyncio
import itertools
import os
import select
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import msgspec

from dialout import ErrorCode, Registration, Rejection, awake
from dialout.claims import Claim
from dialout.registration import read_registration
from ipc.client import AcceptedClient, ClientGone, Probe
from ipc.readiness import Readiness
from supervisor.acceptor import Acceptor
from supervisor.config import values
from supervisor.config.errors import ConfigError, Problem
from supervisor.config.model import BLOCK, Config, ReverseConnectionConfig, Token, validate
from supervisor.config.tokens import hash_token, read_token_file
from supervisor.farewell import Farewell
from supervisor.handshakes import Handshakes
from supervisor.ledger import Ledger
from supervisor.listeners import ListenError, open_all
from supervisor.newcomer import Newcomer
from supervisor.policy import Policy
from supervisor.quotas import LimitReached

__all__ = [
    "AcceptError",
    "ConfigError",
    "ListenError",
    "ListenerClosed",
    "ReverseConnectionConfig",
    "ReverseConnectionListener",
    "Token",
    "hash_token",
    "read_token_file",
]

TICK = 0.1
"""Seconds between two checks of the age of clients that are in no pool, while there are any."""

SECOND_LOOK = 0.03
"""Seconds until an agent over the limit is refused. Over TCP different processors may handle the end of a connection
and the start of the next one, so that the new connection arrives first."""

_DEFAULTS = ReverseConnectionConfig()
_WAITING_HELPS = frozenset({ErrorCode.OVERLOADED, ErrorCode.SHUTTING_DOWN, ErrorCode.CONNECTION_LIMIT})
_GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR

# Two listeners may feed one pool, which identifies connections by number.
_numbers = itertools.count(1)


class AcceptError(Exception):
    """No agent can be accepted."""


class ListenerClosed(AcceptError):
    """The listener is closed."""


class ReverseConnectionListener:
    """Accepts agents at one address. Create it with `bind_uds` or `bind_tcp`, on a running loop.

    **Refusals happen inside.** The reasons are a bad frame, a bad token, an agent over the limit, or a timeout. The
    listener answers with a rejection and counts it in `rejected_total`. `accept` goes on waiting. An agent over the
    limit is refused only after its other connections were checked, so a closed connection does not count.

    **The limit** counts an agent's connections from their valid registration until they are closed, in a pool or not.
    Each listener counts for itself.

    **An accepted client must be added to a pool** (`AgentPool.add_reverse_connection`) within the handshake timeout,
    counted from its connect. Otherwise it is refused.

    `close` refuses all agents that are in no pool. Connections in a pool stay.
    """

    def __init__(self, config: Config) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = awake.clock()
        self._policy = Policy(config)
        (self._listener,) = open_all(config, Path())
        self._readiness = Readiness()
        self._farewell = Farewell(self._readiness)
        self._handshakes = Handshakes(config, self._readiness, self._farewell, self._claimed)
        self._ledger = Ledger(config.limits.max_connections_per_agent)
        self._connections = 0
        # Registered connections that are in no pool, by number. The queue has the numbers that accept has not returned.
        self._held: dict[int, Newcomer] = {}
        self._queue: asyncio.Queue[int] = asyncio.Queue()
        # Connections over the limit, by descriptor: refused after `SECOND_LOOK`, unless a slot is free then.
        self._over_limit: dict[int, Newcomer] = {}
        # Connections in a pool: agent id -> number -> the pool's probe.
        self._adopted: dict[str, dict[int, Probe]] = {}
        self._accepted_total = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        self._closed = self._loop.create_future()
        self._acceptor = Acceptor(
            [self._listener],
            self._handshakes,
            self._farewell,
            lambda: len(self._handshakes) + len(self._over_limit) + len(self._held),
            lambda: len(self._handshakes) + len(self._over_limit) + len(self._farewell) + self._connections,
            handshake_timeout=config.limits.handshake_timeout,
            shards=0,
        )
        self._acceptor.start()

    @classmethod
    async def bind_uds(
        cls,
        path: str | os.PathLike[str],
        config: ReverseConnectionConfig = _DEFAULTS,
        *,
        tokens: Iterable[Token] = (),
    ) -> Self:
        """Listen on a Unix socket, mode 0660. The socket file of a dead process is replaced.

        *tokens* are needed for ``require_auth``: `read_token_file` reads them, ``Token(("waf-*",), hash_token(text))``
        makes one. Raises `ConfigError` and `ListenError`.
        """
        return cls(_checked(config, tokens, path=os.fspath(path)))

    @classmethod
    async def bind_tcp(
        cls, address: str, config: ReverseConnectionConfig = _DEFAULTS, *, tokens: Iterable[Token] = ()
    ) -> Self:
        """Listen on ``192.0.2.1:9090``, ``0.0.0.0:9090`` or ``[::]:9090``; port 0 lets the kernel choose.

        See `bind_uds`.
        """
        try:
            where = values.tcp_address(address)
        except values.BadValue as error:
            raise ConfigError([Problem(None, None, "address", error.message, error.hint)]) from None
        return cls(_checked(config, tokens, tcp_addresses=(where,)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        await self.wait_closed()

    # State.

    @property
    def address(self) -> str:
        """The listener's path, or its address with the port that the kernel chose."""
        return self._listener.address

    @property
    def accepted_total(self) -> int:
        """How many clients `accept` has returned."""
        return self._accepted_total

    @property
    def rejected_total(self) -> dict[str, int]:
        """How many agents were refused, by error code. Every code is a key."""
        return dict(self._farewell.rejected)

    @property
    def connections(self) -> int:
        """The connections that count towards the limits of their agents: registered and not closed."""
        return self._connections

    # Accepting.

    async def accept(self) -> tuple[AcceptedClient, Registration]:
        """Wait for an agent with a valid registration. The registration is not answered yet.

        Cancelling it loses nothing. An agent that was not returned waits for the next call. A client without references
        is refused. Raises `ListenerClosed`.
        """
        while True:
            number = await self._queue.get()
            if self._closing:
                self._queue.put_nowait(0)  # Wakes the other waiting calls.
                # An accept loop that goes on after every error must not block the event loop.
                await asyncio.sleep(0)
                raise ListenerClosed("the listener is closed")
            newcomer = self._held.get(number)
            if newcomer is None:
                continue
            if _is_gone(newcomer.fd):
                self._forget(newcomer)
                newcomer.close()
                continue
            assert newcomer.offer is not None
            assert newcomer.registration is not None
            self._accepted_total += 1
            return AcceptedClient(newcomer.offer, self), newcomer.registration

    def close(self) -> None:
        """Stop accepting, and refuse all agents that are in no pool. `wait_closed` waits until they have read that."""
        if self._closing:
            return
        self._closing = True
        self._acceptor.close()
        self._handshakes.reject_all(ErrorCode.SHUTTING_DOWN, "the listener is shutting down")
        for number in list(self._held):
            self.refuse(number, ErrorCode.SHUTTING_DOWN, "the listener is shutting down")
        while self._over_limit:
            self._reject(self._over_limit.popitem()[1], ErrorCode.SHUTTING_DOWN, "the listener is shutting down")
        if self._timer is not None:
            self._timer.cancel()
        self._queue.put_nowait(0)
        self._end_when_quiet()

    async def wait_closed(self) -> None:
        """Wait until all refused agents have read their answers and closed, for a second at most."""
        await asyncio.shield(self._closed)

    # For its clients (`ipc.client.Keeper`).

    def take(self, number: int, probe: Probe) -> tuple[int, Callable[[], None]]:
        """Give a client's descriptor to a pool, and a callback for its close."""
        newcomer = self._held.pop(number, None)
        if newcomer is None:
            raise ClientGone("the client is not there: refused, out of time, or in a pool already")
        assert newcomer.offer is not None
        agent_id = newcomer.offer.agent_id
        self._adopted.setdefault(agent_id, {})[number] = probe

        def on_closed() -> None:
            of_agent = self._adopted[agent_id]
            del of_agent[number]
            if not of_agent:
                del self._adopted[agent_id]
            self._release(agent_id, number)

        return newcomer.fd, on_closed

    def refuse(self, number: int, code: ErrorCode, message: str) -> None:
        """Refuse a client that is in no pool."""
        newcomer = self._held.get(number)
        if newcomer is not None:
            self._forget(newcomer)
            self._reject(newcomer, code, message)

    def drop(self, number: int) -> None:
        """Refuse a client without references. The garbage collector may call this, in any thread."""
        if number in self._held and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(
                self.refuse, number, ErrorCode.OVERLOADED, "the proxy did not take the connection"
            )

    # Inside.

    def _claimed(self, newcomer: Newcomer, claim: Claim) -> None:
        try:
            self._policy.check(claim, None)
            registration = read_registration(claim)
        except Rejection as rejection:
            self._farewell.reject(newcomer, rejection)
            return
        if not self._hold(newcomer, registration):
            self._find_gone(registration.agent_id)
            if not self._hold(newcomer, registration):
                self._over_limit[newcomer.fd] = newcomer
                self._loop.call_later(SECOND_LOOK, self._look_again, newcomer, registration)

    def _look_again(self, newcomer: Newcomer, registration: Registration) -> None:
        if self._over_limit.get(newcomer.fd) is not newcomer:
            return  # The listener was closed.
        del self._over_limit[newcomer.fd]
        self._find_gone(registration.agent_id)
        if not self._hold(newcomer, registration):
            limit = self._ledger.limit
            message = f"connection limit: this agent has {limit} connections, {limit} are allowed"
            self._reject(newcomer, ErrorCode.CONNECTION_LIMIT, message)

    def _hold(self, newcomer: Newcomer, registration: Registration) -> bool:
        """Queue a connection for `accept`. False when its agent is at the limit."""
        self._ledger.next_number = next(_numbers)
        try:
            number = self._ledger.reserve(registration.agent_id)
        except LimitReached:
            return False
        self._connections += 1
        newcomer.make_offer(registration, number, None)
        self._held[number] = newcomer
        self._queue.put_nowait(number)
        if self._timer is None:
            self._timer = self._loop.call_later(TICK, self._tick)
        return True

    def _find_gone(self, agent_id: str) -> None:
        """Find the connections that an agent has closed, and free their slots."""
        adopted = self._adopted.get(agent_id, {})
        if self._ledger.count(agent_id) > len(adopted):
            for newcomer in list(self._held.values()):
                if newcomer.offer is not None and newcomer.offer.agent_id == agent_id and _is_gone(newcomer.fd):
                    self._forget(newcomer)
                    newcomer.close()
        for probe in set(adopted.values()):
            probe(agent_id)

    def _forget(self, newcomer: Newcomer) -> None:
        """Free the slot of a connection that is in no pool."""
        assert newcomer.offer is not None
        del self._held[newcomer.number]
        self._release(newcomer.offer.agent_id, newcomer.number)

    def _release(self, agent_id: str, number: int) -> None:
        self._ledger.release(agent_id, number)
        self._connections -= 1

    def _reject(self, newcomer: Newcomer, code: ErrorCode, message: str) -> None:
        retry_after_ms = 1000 if code in _WAITING_HELPS else None
        self._farewell.reject(newcomer, Rejection(code, message, newcomer.answer_type, retry_after_ms))

    def _tick(self) -> None:
        now = self._clock.time()
        try:
            for newcomer in list(self._held.values()):
                if newcomer.deadline <= now:
                    self.refuse(newcomer.number, ErrorCode.OVERLOADED, "the proxy did not take the connection in time")
        finally:
            self._timer = self._loop.call_later(TICK, self._tick) if self._held else None

    def _end_when_quiet(self) -> None:
        if len(self._farewell):
            self._loop.call_later(TICK / 5, self._end_when_quiet)
            return
        self._farewell.close()
        self._readiness.close()
        if not self._closed.done():
            self._closed.set_result(None)


def _checked(limits: ReverseConnectionConfig, tokens: Iterable[Token], **fields: Any) -> Config:
    """The configuration of a listener. `ConfigError` names all problems, under the names of the fields."""
    try:
        limits = msgspec.convert(msgspec.structs.asdict(limits), ReverseConnectionConfig)
    except msgspec.ValidationError as error:
        raise ConfigError([Problem(None, None, "config", str(error))]) from None
    problems = []
    for pattern in limits.allowed_agents or ():
        try:
            values.pattern(pattern)
        except values.BadValue as error:
            problems.append(Problem(None, None, "allowed_agents", error.message, error.hint))
    config = Config(limits=limits, tokens=tuple(tokens), **fields)
    for problem in validate(config):
        name = problem.where.removeprefix(f"{BLOCK} > ").replace("-", "_")
        hint = "pass tokens=" if name == "require_auth" else problem.hint
        problems.append(Problem(None, None, name, problem.message, hint))
    if problems:
        raise ConfigError(problems)
    return config


def _is_gone(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    return any(events & _GONE for _, events in poll.poll(0))
