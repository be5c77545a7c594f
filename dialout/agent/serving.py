"""One connection's events, from the frame to the answer: hooks, concurrency, cancels, failures.

It knows no socket: frames come in by ``take``, and go out through the function that it was given. Plain hooks are
called on the spot, without a task: most agents decide in microseconds, and a task takes longer than that.
"""

import asyncio
import inspect
import logging
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final, TypeAlias

from dialout.agent.agent import Agent, Hook, Hooks, Request
from dialout.agent.errors import printable
from dialout.agent.lifecycle import ErrorRun
from dialout.agent.remembering import Memory, key_of
from dialout.agent.reporting import Reporter
from dialout.agent.telling import described, places, request_name
from dialout.codec import Codec
from dialout.decisions import ALLOWED, Allow, Block, Decision
from dialout.dialects import pong_for
from dialout.errors import LocalProtocolError, UnreadableEvent
from dialout.events import (
    Cancel,
    CancelAll,
    Configure,
    HealthRequest,
    MetricsRequest,
    RequestHeaders,
)
from dialout.inbound import Ping, Pong

__all__ = ["LEAST_QUEUE", "Serving"]

_log = logging.getLogger("dialout.agent")
_Key: TypeAlias = int | str | None

LEAST_QUEUE: Final = 16
"""Events that may wait for their turn on every connection, however few it serves at once. While more are there, nothing
is read, a cancel neither: so some room is good even for an agent that serves one request after the other."""


class _Work:
    """The events of one request that have no answer yet; the first is being served, or waits for its turn."""

    __slots__ = ("dropped", "event", "given", "hook", "later", "request", "started", "task")

    def __init__(self, request: Request, event: Any, hook: Hook) -> None:
        self.request = request
        self.event = event
        self.hook = hook
        # What a plain hook has returned to be awaited.
        self.given: Awaitable[Any] | None = None
        self.later: deque[tuple[Any, Hook]] | None = None
        self.task: asyncio.Task[None] | None = None
        self.started = False
        self.dropped = False

    def add(self, event: Any, hook: Hook) -> None:
        """Serve another event of the same request behind the others."""
        if self.later is None:
            self.later = deque()
        self.later.append((event, hook))

    def take_next(self) -> bool:
        """Go on to the next event, if there is one."""
        if not self.later:
            return False
        self.event, self.hook = self.later.popleft()
        return True


class Serving:
    """Serves one connection with an agent's hooks.

    ``send`` queues a frame. ``hold`` is called with True when more is waiting than should be read, and with False when
    there is room again. ``give_up`` is called once, when there were more than five errors in a row. ``served`` counts
    events that were answered by their hooks; ``ponged`` becomes true with the first pong.

    Raises LocalProtocolError when the agent's failure answer is none in this dialect.
    """

    def __init__(
        self,
        agent: Agent,
        codec: Codec,
        agent_id: str,
        connection_id: str,
        *,
        send: Callable[[bytes], None],
        hold: Callable[[bool], None],
        give_up: Callable[[], None],
    ) -> None:
        self.served = 0
        self.ponged = False
        self.reporter = Reporter(agent, codec, agent_id, send)
        self._agent = agent
        self._codec = codec
        self._name = printable(connection_id, 160)
        self._send = send
        self._hold = hold
        self._give_up = give_up
        self._loop = asyncio.get_running_loop()
        self._hooks = Hooks(agent)
        self._hook_of = self._hooks.by_event
        self._counters = agent.counters
        self._errors = ErrorRun()
        self._gave_up = False
        self._limit = agent.max_concurrent_requests
        self._queue_limit = max(self._limit, LEAST_QUEUE)
        self._running = 0
        self._refilling = False
        self._holding = False
        # Requests with an event that a coroutine has in hand, or that waits for one.
        self._work: dict[_Key, _Work] = {}
        self._queue: deque[tuple[_Key, _Work]] = deque()
        self._memory = Memory(codec.dialect)
        self._idle: asyncio.Future[None] | None = None
        # A failure answer that this dialect cannot carry shows now, and not when it is needed.
        codec.encode_answer(agent.failure, request_id=1, correlation_id="1")

    # --- frames from the proxy ---

    def take(self, frame_type: int, payload: bytes) -> None:
        """Serve one frame. Never raises."""
        event: Any
        try:
            request_id, correlation_id, event = self._codec.decode_event(frame_type, payload)
        except UnreadableEvent as error:
            self._unreadable(error)
            return
        hook = self._hook_of.get(type(event))
        if hook is None:
            self._control(frame_type, payload, request_id, correlation_id, event)
            return
        if type(event) is RequestHeaders:
            self._counters.requests += 1
        key = correlation_id if request_id is None else request_id
        if self._work and (work := self._work.get(key)) is not None:
            # The proxy matches the answers of one request by their order.
            work.add(event, hook)
            return
        request = Request(request_id, correlation_id)
        if self._hooks.remembers:
            request = self._memory.recall(request, event)
        elif type(event) is RequestHeaders:
            request.headers = event
        if hook.is_async:
            self._begin(key, _Work(request, event, hook))
        else:
            self._serve_plain(key, request, event, hook)

    def _control(
        self, frame_type: int, payload: bytes, request_id: int | None, correlation_id: str | None, event: object
    ) -> None:
        """Serve a frame that wants no decision."""
        match event:
            case Ping():
                self._send(pong_for(self._codec.dialect, frame_type, payload) or b"")
            case Pong():
                self.ponged = True
            case Cancel():
                self._cancel(Request(request_id, correlation_id), event)
            case CancelAll(reason):
                for work in list(self._work.values()):
                    self._cancel(work.request, Cancel(reason))
                self._memory.clear()
            case HealthRequest():
                self.reporter.say_health()
            case MetricsRequest():
                self.reporter.say_metrics()
            case _:
                pass  # Of no interest, or of a newer protocol: an answer to it would be one to another request.

    def _unreadable(self, error: UnreadableEvent) -> None:
        request = Request(error.request_id, error.correlation_id)
        work = self._work.get(key_of(request))
        if work is not None:
            work.add(None, Hook("reading the event", partial(_raise, error)))
        else:
            self._failed(request, "reading the event", error)

    # --- hooks ---

    def _serve_plain(self, key: _Key, request: Request, event: Any, hook: Hook) -> None:
        try:
            result = hook.call(event, request)
        except Exception as error:  # noqa: BLE001 - whatever a hook does, its event gets an answer
            self._failed(request, hook.name, error)
            return
        if type(result) is Decision:
            self._answer(request, event, result)
        elif inspect.isawaitable(result):
            work = _Work(request, event, hook)
            work.given = result
            self._begin(key, work)
        else:
            self._settle(request, event, hook, result)

    def _begin(self, key: _Key, work: _Work) -> None:
        self._work[key] = work
        if self._running < self._limit:
            self._start(key, work)
            return
        # More than the agent said that it can do. It waits, and after as many again the connection is not read.
        self._queue.append((key, work))
        if len(self._queue) >= self._queue_limit and not self._holding:
            self._holding = True
            self._hold(True)

    def _start(self, key: _Key, work: _Work) -> None:
        self._running += 1
        self._counters.active += 1
        work.task = _create_task(self._run(key, work), self._loop)

    async def _run(self, key: _Key, work: _Work) -> None:
        """Serve the events of one request, one after the other."""
        work.started = True
        try:
            while not work.dropped:
                await self._serve_one(work)
                if not work.take_next():
                    break
        finally:
            self._done(key, work)

    async def _serve_one(self, work: _Work) -> None:
        hook = work.hook
        try:
            given, work.given = work.given, None
            result = hook.call(work.event, work.request) if given is None else given
            if hook.is_async or inspect.isawaitable(result):
                result = await result
        except asyncio.CancelledError as error:
            if work.dropped:
                raise
            # Not our doing: something that the hook waited for was cancelled.
            self._failed(work.request, hook.name, error)
        except Exception as error:  # noqa: BLE001 - whatever a hook does, its event gets an answer
            if not work.dropped:
                self._failed(work.request, hook.name, error)
        else:
            if not work.dropped:
                self._settle(work.request, work.event, hook, result)

    def _done(self, key: _Key, work: _Work) -> None:
        self._running -= 1
        self._counters.active -= 1
        if self._work.get(key) is work:
            del self._work[key]
        if self._queue and not self._refilling:
            # Not nested: where tasks take their first step at once, the next one may be done before it is noted.
            self._refilling = True
            while self._queue and self._running < self._limit:
                next_key, following = self._queue.popleft()
                if not following.dropped:
                    self._start(next_key, following)
            self._refilling = False
        if self._holding and len(self._queue) <= self._queue_limit // 2:
            self._holding = False
            self._hold(False)
        if self._idle is not None and not self._work and not self._idle.done():
            self._idle.set_result(None)

    # --- answers ---

    def _settle(self, request: Request, event: Any, hook: Hook, result: object) -> None:
        if hook.may_be_silent and result is None:
            result = ALLOWED
        if type(result) is not Decision and not isinstance(result, Decision):
            error = TypeError(f"it returned {type(result).__name__}, not a Decision")
            self._failed(request, hook.name, error)
            return
        if type(event) is Configure and not isinstance(result.verdict, Block):
            self._agent.configuration = event.config
        self._answer(request, event, result)

    def _answer(self, request: Request, event: Any, decision: Decision) -> None:
        try:
            frame = self._codec.encode_answer(
                decision, request_id=request.request_id, correlation_id=request.correlation_id
            )
        except Exception as error:  # noqa: BLE001 - a decision may hold anything; its event gets an answer
            self._failed(request, "writing the decision", error)
            return
        self._send(frame)
        self.served += 1
        counters = self._counters
        if decision is ALLOWED or type(decision.verdict) is Allow:
            counters.allowed += 1
        elif decision.verdict is not None:
            counters.blocked += 1
        if self._errors.in_a_row:
            self._errors.good()
        if self._memory:
            self._memory.forget_if_over(request, event, decision)

    def _failed(self, request: Request, what: str, error: BaseException) -> None:
        """Answer an event with the failure, and say why; an event that names no request cannot be answered."""
        self._counters.errored += 1
        named = request_name(request)
        _log.error("%s: %s: %s failed: %s", self._name, named, what, described(error))
        if _log.isEnabledFor(logging.DEBUG):
            # Our own code and the hook's, without the values that the peer gave them.
            _log.debug("%s: %s: %s", self._name, named, " <- ".join(places(error)))
        if key_of(request) is not None:
            self._send(
                self._codec.encode_answer(
                    self._agent.failure, request_id=request.request_id, correlation_id=request.correlation_id
                )
            )
            self._memory.forget(request)
        if self._errors.bad() and not self._gave_up:
            self._gave_up = True
            self._give_up()

    # --- the end of requests, and of all ---

    def _cancel(self, request: Request, event: Cancel) -> None:
        request = self._memory.forget(request)
        work = self._work.pop(key_of(request), None)
        if work is not None:
            request = work.request
            self._drop(work)
        hook = self._hooks.cancel
        if hook is None:
            return
        try:
            result = hook.call(event, request)
        except Exception as error:  # noqa: BLE001 - a cancel is not answered, so it is said
            self._complain(hook.name, error)
            return
        if inspect.isawaitable(result):
            self.reporter.look_after(result, partial(self._complain, hook.name))

    def _complain(self, what: str, error: BaseException) -> None:
        _log.error("%s: %s failed: %s", self._name, what, described(error))

    def _drop(self, work: _Work) -> None:
        work.dropped = True
        self._counters.cancelled += 1
        # A task that is cancelled before its first step would never get to its end; it will see that it was dropped.
        if work.task is not None and work.started:
            work.task.cancel()
        elif inspect.iscoroutine(work.given):
            work.given.close()  # Nobody will await it.

    async def configure(self, config: Any) -> None:
        """Have the agent apply the configuration that came with the registration, if it differs from its last."""
        hook = self._hook_of[Configure]
        before = self._agent.configuration
        if config is None or config == before or not self._agent.has("on_configure"):
            return
        what = "applying the configuration that came with the registration"
        # At once, since an agent registers several connections at the same moment.
        self._agent.configuration = config
        try:
            result = hook.call(Configure(config), Request(None, None))
            if inspect.isawaitable(result):
                result = await result
        except Exception as error:  # noqa: BLE001 - said, and tried again with the next connection
            self._agent.configuration = before
            self._complain(what, error)
            return
        if isinstance(result, Decision) and isinstance(result.verdict, Block):
            self._agent.configuration = before
            self._complain(
                what, LocalProtocolError(f"the agent refuses it: {result.verdict.body or 'no reason given'}")
            )

    @property
    def in_flight(self) -> int:
        """Requests with an event that has no answer yet."""
        return len(self._work)

    async def idle(self) -> None:
        """Wait until nothing is in flight."""
        if self._work:
            self._idle = self._loop.create_future()
            await self._idle

    def close(self) -> None:
        """Cancel everything: the connection is gone, and nobody waits for an answer."""
        for work in self._work.values():
            self._drop(work)
        self._work.clear()
        self._queue.clear()
        self._memory.clear()
        self.reporter.close()


if sys.version_info >= (3, 12):

    def _create_task(coroutine: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> "asyncio.Task[None]":
        """A task that takes its first step at once: a hook that never has to wait costs no turn of the loop."""
        return asyncio.Task(coroutine, loop=loop, eager_start=True)

else:

    def _create_task(coroutine: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> "asyncio.Task[None]":
        """A task, which begins with the next turn of the loop."""
        return loop.create_task(coroutine)


def _raise(error: Exception, *_: object) -> None:
    raise error
