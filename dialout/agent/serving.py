"""One connection's events, from the frame to the answer: hooks, cancels, failures.

It has no socket: frames come in by ``take``, and leave through a given function. Plain hooks are called at once,
without a task. Most agents decide in microseconds, and a task takes longer than that.
"""

import asyncio
import inspect
import logging
import signal
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from dialout.agent.agent import Agent, Hook, Hooks, Request
from dialout.agent.chunks import at_chunk
from dialout.agent.errors import printable
from dialout.agent.hooks import HOOK_NAMES
from dialout.agent.lifecycle import ErrorRun
from dialout.agent.remembering import MOST_REMEMBERED, Memory, key_of
from dialout.agent.reporting import Reporter
from dialout.agent.telling import FailureLog
from dialout.agent.working import LEAST_QUEUE, Key, Work, Workers
from dialout.codec import Codec
from dialout.decisions import ALLOWED, Allow, Decision
from dialout.dialects import Dialect, pong_for
from dialout.errors import LocalProtocolError, UnreadableEvent
from dialout.events import (
    Cancel,
    CancelAll,
    Configure,
    HealthRequest,
    MetricsRequest,
    RequestBodyChunk,
    RequestHeaders,
    ResponseBodyChunk,
)
from dialout.inbound import Ping, Pong

__all__ = ["LEAST_QUEUE", "Serving", "check_agent"]

_log = logging.getLogger("dialout.agent")

_LAST_RESORT: Final = Decision.block(500)
"""The answer to an event if the agent's own failure answer cannot be encoded."""


class Serving:
    """Serves one connection with an agent's hooks.

    ``send`` queues a frame. ``hold`` is called with True when so many events wait that reading should pause, and with
    False when there is room again. ``give_up`` is called once, after more than five unreadable events in a row.
    ``since`` is the loop's time at which the connection was dialled. ``served`` counts the events that their hooks have
    answered. ``ponged`` becomes true with the first pong, and ``on_pong`` is called with the mark of each.

    Raises LocalProtocolError if the agent has no hook, or a failure answer that this dialect cannot carry.
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
        since: float = 0.0,
    ) -> None:
        self.served = 0
        self.ponged = False
        self.on_pong: Callable[[int | None], None] | None = None
        self.reporter = Reporter(agent, codec, agent_id, send)
        self._agent = agent
        self._codec = codec
        self._send = send
        self._give_up = give_up
        self._loop = asyncio.get_running_loop()
        self._hooks = Hooks(agent)
        check_agent(agent, codec, self._hooks)
        name = printable(connection_id, 160)
        self._log = FailureLog(name)
        self._place = agent.configuring.join(self._hooks.by_event[Configure], name, since, self._ready)
        self._hook_of = self._hooks.by_event | {Configure: Hook("on_configure", self._place.bring)}
        self._counters = agent.counters
        self._errors = ErrorRun()
        self._gave_up = False
        self._closing = False
        self._workers = Workers(agent.max_concurrent_requests, agent.counters, self._serve_one, hold)
        self._work = self._workers.by_key
        self._memory = Memory(codec.dialect)
        # Requests for which the agent has asked for more, in the order of asking.
        self._asked: dict[Key, None] = {}
        self._idle: asyncio.Future[None] | None = None
        if not self.is_ready:
            self.serve_nothing()
            self._say_whether_ready()

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
        if self._errors.in_a_row:
            self._errors.good()
        if type(event) is RequestHeaders:
            self._counters.requests += 1
        key = correlation_id if request_id is None else request_id
        if self._work and (work := self._work.get(key)) is not None:
            # The proxy matches the answers of one request by their order.
            self._queue(work, Request(request_id, correlation_id), event, hook)
            return
        request = Request(request_id, correlation_id)
        if self._hooks.remembers:
            request = self._memory.recall(request, event)
            if type(event) is RequestBodyChunk and self._memory.has_lost(key):
                hook = Hook(hook.name, _forgotten)
        elif type(event) is RequestHeaders:
            request.headers = event
        if self._asked and not hook.is_there and key in self._asked:
            hook = Hook(hook.name, _asked_for_nothing)
        if hook.is_async:
            self._workers.begin(key, Work(request, event, hook))
        else:
            self._serve_plain(key, request, event, hook)

    def _queue(self, work: Work, request: Request, event: Any, hook: Hook) -> None:
        """Have an event served behind those of its name that have no answer yet."""
        if type(event) is not RequestHeaders:
            work.add(event, hook)
            return
        # Some proxies use a name that clients choose. What the hooks have kept is the earlier request's.
        request.headers = event
        if self._hooks.remembers:
            self._memory.recall(request, event)
        work.add(event, hook, request)

    def _control(
        self, frame_type: int, payload: bytes, request_id: int | None, correlation_id: str | None, event: object
    ) -> None:
        """Serve a frame that needs no decision."""
        match event:
            case Ping():
                self._send(pong_for(self._codec.dialect, frame_type, payload) or b"")
            case Pong(mark):
                self.ponged = True
                if self.on_pong is not None:
                    self.on_pong(mark)
            case Cancel():
                self._cancel(Request(request_id, correlation_id), event)
            case CancelAll(reason):
                for work in list(self._work.values()):
                    self._cancel(work.request, Cancel(reason))
                self._memory.clear()
                self._asked.clear()
                self._look_whether_idle()
            case HealthRequest():
                self.reporter.say_health()
            case MetricsRequest():
                self.reporter.say_metrics()
            case _:
                pass  # Irrelevant or of a newer protocol. An answer to it would be taken for that to another request.

    def _unreadable(self, error: UnreadableEvent) -> None:
        request = Request(error.request_id, error.correlation_id)
        what = "reading the event"
        work = self._work.get(key_of(request))
        if work is not None:
            work.add(None, Hook(what, partial(_raise, error)))
        else:
            self._failed(request, None, what, error)
        # Only unreadable events count against the connection. Clients can choose requests that make a hook fail.
        if self._errors.bad() and not self._gave_up:
            self._gave_up = True
            self._give_up()

    # --- hooks ---

    def _serve_plain(self, key: Key, request: Request, event: Any, hook: Hook) -> None:
        try:
            result = request.variables.run(hook.call, event, request)
            if type(result) is not Decision and inspect.isawaitable(result):
                work = Work(request, event, hook)
                work.given = result
                self._workers.begin(key, work)
                return
        except BaseException as error:  # noqa: BLE001 - after any error of a hook its event gets one answer
            self._failed(request, event, hook.name, error)
            self._pass_on(error)
            return
        if type(result) is Decision:
            self._answer(request, event, result)
        else:
            self._settle(request, event, hook, result)

    async def _serve_one(self, work: Work) -> None:
        hook = work.hook
        try:
            given, work.given = work.given, None
            result = hook.call(work.event, work.request) if given is None else given
            if hook.is_async or inspect.isawaitable(result):
                result = await result
        except asyncio.CancelledError as error:
            if work.dropped:
                raise
            # Not a cancel by this class: a task or future that the hook waited for was cancelled.
            _uncancel()
            self._failed(work.request, work.event, hook.name, error)
        except BaseException as error:
            if isinstance(error, GeneratorExit) and not self._loop.is_running():
                raise  # The loop was stopped.
            if not work.dropped:
                self._failed(work.request, work.event, hook.name, error)
            self._pass_on(error)
        else:
            if not work.dropped:
                self._settle(work.request, work.event, hook, result)

    def _pass_on(self, error: BaseException) -> None:
        """Raise a KeyboardInterrupt of a hook again in the loop, if Python's own handler has raised it."""
        if (
            isinstance(error, KeyboardInterrupt)
            and threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            self._loop.call_soon(_raise, error)

    # --- answers ---

    def _settle(self, request: Request, event: Any, hook: Hook, result: object) -> None:
        if hook.may_be_silent and result is None:
            result = ALLOWED
        if not issubclass(type(result), Decision):
            error = TypeError(f"it returned {type(result).__name__}, not a Decision")
            self._failed(request, event, hook.name, error)
            return
        assert isinstance(result, Decision)
        self._answer(request, event, result)

    def _answer(self, request: Request, event: Any, decision: Decision) -> None:
        try:
            if decision is not ALLOWED:
                decision = at_chunk(decision, event)
            frame = self._codec.encode_answer(
                decision, request_id=request.request_id, correlation_id=request.correlation_id
            )
        except Exception as error:  # noqa: BLE001 - a decision may contain any object; its event gets an answer
            self._failed(request, event, "writing the decision", error)
            return
        self._send(frame)
        self.served += 1
        counters = self._counters
        if decision is ALLOWED or type(decision.verdict) is Allow:
            counters.allowed += 1
        elif decision.verdict is not None:
            counters.blocked += 1
        if decision.needs_more:
            self._asked[key_of(request)] = None
            if len(self._asked) > MOST_REMEMBERED:
                del self._asked[next(iter(self._asked))]
        elif self._asked:
            self._over(request)
        if self._memory:
            self._memory.forget_if_over(request, event, decision)

    def _failed(self, request: Request, event: Any, what: str, error: BaseException) -> None:
        """Answer an event with the failure, and log the reason. An event that names no request cannot be answered."""
        self._counters.errored += 1
        if key_of(request) is not None:
            self._send_failure(request, event)
            self._memory.forget(request)
            if self._asked:
                self._over(request)
        self._log.write(request, what, error)

    def _send_failure(self, request: Request, event: Any) -> None:
        encode = partial(
            self._codec.encode_answer, request_id=request.request_id, correlation_id=request.correlation_id
        )
        try:
            frame = encode(at_chunk(self._agent.failure, event, lenient=True))
        except Exception as error:  # noqa: BLE001 - it was changed to an answer that this dialect cannot carry
            self._log.complain("writing the failure answer", error)
            frame = encode(_LAST_RESORT)
        self._send(frame)

    # --- the end of requests, and of all ---

    def _cancel(self, request: Request, event: Cancel) -> None:
        request = self._memory.forget(request)
        work = self._workers.drop(key_of(request))
        if work is not None:
            request = work.request
        self._over(request)
        hook = self._hooks.cancel
        if hook is None:
            return
        try:
            result = request.variables.run(hook.call, event, request)
            if inspect.isawaitable(result):
                failed = partial(self._log.complain, hook.name)
                self.reporter.look_after(result, failed, request.variables)
        except BaseException as error:  # noqa: BLE001 - a cancel has no answer, so the error is logged
            self._log.complain(hook.name, error)
            self._pass_on(error)

    def _over(self, request: Request) -> None:
        """Note that no more of a request is asked for."""
        self._asked.pop(key_of(request), None)
        self._look_whether_idle()

    def configure(self, config: Any) -> Decision | Awaitable[Decision]:
        """Have the agent apply the configuration that came with the registration; returns its answer."""
        return ALLOWED if config is None else self._place.bring(Configure(config), Request(None, None))

    @property
    def is_ready(self) -> bool:
        """Whether the agent has the configuration that it requires."""
        return self._agent.configuring.is_configured or not self._agent.require_configuration

    def serve_nothing(self) -> None:
        """Answer all events with the failure, until the configuration that the agent requires is there."""
        unready = {
            kind: Hook(hook.name, _not_configured) for kind, hook in self._hook_of.items() if kind is not Configure
        }
        self._hook_of = self._hook_of | unready

    def _ready(self) -> None:
        if self._agent.require_configuration:
            self._hook_of = self._hooks.by_event | {Configure: self._hook_of[Configure]}
            self._say_whether_ready()

    def _say_whether_ready(self) -> None:
        # Only core agents send reports unasked. The others answer with the failure until they are ready.
        if self._codec.dialect is Dialect.CORE:
            self.reporter.say_health()

    @property
    def in_flight(self) -> int:
        """Requests with an event that has no answer yet."""
        return len(self._work)

    async def idle(self) -> None:
        """Wait until nothing is in flight and no request waits for its next event."""
        if self._work or self._asked:
            self._idle = self._loop.create_future()
            self._workers.on_idle = self._look_whether_idle
            await self._idle

    def _look_whether_idle(self) -> None:
        if self._idle is not None and not self._idle.done() and not self._work and not self._asked:
            self._idle.set_result(None)

    def fail_all(self) -> None:
        """Cancel all requests in flight and answer them with the failure, because no time is left."""
        for work in list(self._work.values()):
            self._workers.drop(key_of(work.request))
            for event in (work.event, *(event for event, _, _ in work.later or ())):
                self._failed(work.request, event, "the agent ends: the decision", TimeoutError("no time is left"))

    def close(self) -> None:
        """Cancel all requests. The connection is gone, and no answer would arrive."""
        if self._closing:
            return
        self._closing = True
        self._workers.close()
        self._memory.clear()
        self._asked.clear()
        self._place.leave()
        self._log.close()
        self.reporter.close()


def check_agent(agent: Agent, codec: Codec, hooks: Hooks) -> None:
    """Raise LocalProtocolError for an agent without any hook or with a failure answer that the dialect cannot carry."""
    if not hooks.decides:
        why = "it would allow everything: override on_request_headers, or decorate a function of that name"
        if not any(agent.has(name) for name in HOOK_NAMES):
            raise LocalProtocolError(f"the agent has no hook, so {why}")
        _log.warning("the agent has no hook that decides, so %s", why)
    for event in (RequestBodyChunk(0, b"", False), ResponseBodyChunk(0, b"", False)):
        codec.encode_answer(at_chunk(agent.failure, event, lenient=True), request_id=1, correlation_id="1")


def _uncancel() -> None:
    """Undo a cancel that was answered. Otherwise time limits would count it in the next hook."""
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()


def _raise(error: BaseException, *_: object) -> None:
    raise error


def _not_configured(*_: object) -> Decision:
    raise LocalProtocolError("the agent has not got its configuration yet")


def _forgotten(*_: object) -> Decision:
    raise LocalProtocolError("too many requests have begun since this one, so its earlier events are forgotten")


def _asked_for_nothing(*_: object) -> Decision:
    raise LocalProtocolError("the agent asked for more of this request, and has no hook for it")
