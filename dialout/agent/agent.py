"""What an agent does with events: a class to derive from, or an object to hang functions on."""

import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from dialout.capabilities import Capabilities, Event
from dialout.decisions import ALLOWED, Decision
from dialout.errors import LocalProtocolError
from dialout.events import (
    AgentEvent,
    Cancel,
    Configure,
    GuardrailInspect,
    RequestBodyChunk,
    RequestComplete,
    RequestHeaders,
    ResponseBodyChunk,
    ResponseHeaders,
    WebSocketFrame,
)
from dialout.inbound import Health, HealthState, Metrics, Sample

__all__ = ["Agent", "Counters", "Hook", "Hooks", "Reply", "Request"]

Reply: TypeAlias = Decision | Awaitable[Decision]
_News: TypeAlias = Decision | Awaitable[Decision | None] | None
_Function = TypeVar("_Function", bound=Callable[..., Any])


class Request:
    """The request that an event is about.

    ``request_id`` and ``correlation_id`` are the proxy's names for it, None where the dialect has none; a correlation
    id may be the client's own text, so escape it before it reaches a log. ``headers`` is what the request began with,
    and ``context`` is yours, to keep whatever the next event of the same request needs.

    Both are there for later events only in agents that have hooks for those, None otherwise; and a connection
    remembers no more than a few thousand requests, since not every proxy says when one is over.
    """

    __slots__ = ("context", "correlation_id", "headers", "request_id")

    def __init__(self, request_id: int | None, correlation_id: str | None) -> None:
        self.request_id = request_id
        self.correlation_id = correlation_id
        self.headers: RequestHeaders | None = None
        self.context: Any = None


class Counters:
    """What an agent has done since it was made, on all its connections."""

    __slots__ = ("active", "allowed", "blocked", "cancelled", "errored", "requests", "started_at")

    def __init__(self) -> None:
        self.requests = 0
        """Requests that began: events with their headers."""
        self.active = 0
        """Asynchronous hooks at work now."""
        self.allowed = 0
        """Events answered with an allow."""
        self.blocked = 0
        """Events answered with a block, a redirect or a challenge."""
        self.errored = 0
        """Events that could not be read, or whose hook failed."""
        self.cancelled = 0
        """Requests given up in the middle: cancelled by the proxy, or their connection ended."""
        self.started_at = time.monotonic()


class Agent:
    """Decides about requests. Derive from it and override hooks, or decorate functions with ``hook``.

    Every hook takes the event and the ``Request`` that it is about, or the event alone, and returns a ``Decision``. It
    may be a plain function, which is called as soon as the event was read and must not block, or a coroutine function,
    of which up to ``max_concurrent_requests`` run at once on each connection. Events of one request are served one
    after the other. A hook that is not there allows.

    A hook that raises, or returns no decision, fails its event: the proxy gets ``failure``, which is a block with
    status 500 unless you say otherwise, and the log (``dialout.agent``) gets a line. When the proxy cancels a request,
    its coroutine is cancelled.

    What the agent tells the proxy about itself (``capabilities``) follows from the hooks that are there; give your own
    where that is not enough. One agent may serve any number of connections.
    """

    def __init__(
        self,
        *,
        max_concurrent_requests: int = 100,
        failure: Decision | None = None,
        capabilities: Capabilities | None = None,
    ) -> None:
        if max_concurrent_requests < 1:
            raise LocalProtocolError("max_concurrent_requests is at least 1")
        self.max_concurrent_requests = max_concurrent_requests
        self.failure = Decision.block(500) if failure is None else failure
        self.counters = Counters()
        self.configuration: Any = None
        """The last configuration that ``on_configure`` took."""
        self._capabilities = capabilities
        self._hung: dict[str, Callable[..., Any]] = {}

    # --- hooks ---

    def on_request_headers(self, event: RequestHeaders, request: Request) -> Reply:  # noqa: ARG002 - for who overrides
        """Decide about a request that has begun; ``Decision.more()`` asks for its body."""
        return ALLOWED

    def on_request_body(self, event: RequestBodyChunk, request: Request) -> Reply:  # noqa: ARG002
        """Decide about a chunk of a request's body; ``Decision.more()`` asks for the next one."""
        return ALLOWED

    def on_response_headers(self, event: ResponseHeaders, request: Request) -> Reply:  # noqa: ARG002
        """Decide about the answer of the upstream."""
        return ALLOWED

    def on_response_body(self, event: ResponseBodyChunk, request: Request) -> Reply:  # noqa: ARG002
        """Decide about a chunk of a response's body."""
        return ALLOWED

    def on_request_complete(self, event: RequestComplete, request: Request) -> _News:  # noqa: ARG002
        """Take note that a request is over (core dialect only). Nothing has to be returned."""
        return None

    def on_websocket_frame(self, event: WebSocketFrame, request: Request) -> Reply:  # noqa: ARG002
        """Decide about a WebSocket frame (core dialect only), with ``websocket_decision`` in an allow."""
        return ALLOWED

    def on_guardrail(self, event: GuardrailInspect, request: Request) -> Reply:  # noqa: ARG002
        """Inspect a text (core dialect only): a block says that something was found."""
        return ALLOWED

    def on_configure(self, event: Configure, request: Request) -> _News:  # noqa: ARG002
        """Apply a configuration. Nothing has to be returned; a block, or an exception, refuses it.

        It came with a registration and differs from the last one taken, or it was pushed (core dialect).
        """
        return None

    def on_cancel(self, event: Cancel, request: Request) -> _News:  # noqa: ARG002
        """Take note that the proxy wants no more of a request. Its coroutine, if there is one, was cancelled already.

        Some proxies say so of each request that is over, with the reason ``MANUAL``, so that it can be forgotten.
        """
        return None

    def health(self) -> Health | Awaitable[Health]:
        """Say how the agent is: when a proxy asks (sdk), or every ten seconds (core, where this is overridden)."""
        return Health(HealthState.HEALTHY)

    def metrics(self) -> Metrics | Awaitable[Metrics]:
        """Say what the agent counted: when a proxy asks (sdk), or every ten seconds (core, where this is overridden).

        Proxies of the sdk dialect know counters by certain names only, so it is best to add gauges to these.
        """
        ours = self.counters
        return Metrics(
            counters=(
                Sample("requests_total", ours.requests),
                Sample("requests_allowed", ours.allowed),
                Sample("requests_blocked", ours.blocked),
                Sample("requests_errored", ours.errored),
            ),
            gauges=(
                Sample("requests_active", ours.active),
                Sample("uptime_seconds", time.monotonic() - ours.started_at),
            ),
        )

    # --- putting it together ---

    def hook(self, function: _Function) -> _Function:
        """Use a function as the hook of its name: ``@agent.hook`` above ``def on_request_headers(event)``.

        Raises LocalProtocolError for a name that is no hook's. Decorate before the agent serves.
        """
        name = getattr(function, "__name__", "")
        if name not in _HOOK_NAMES:
            raise LocalProtocolError(f"{name} is no hook; these are: {', '.join(sorted(_HOOK_NAMES))}")
        self._hung[name] = function
        return function

    def has(self, name: str) -> bool:
        """Whether the hook of this name was overridden or decorated."""
        return name in self._hung or getattr(type(self), name) is not getattr(Agent, name)

    def function(self, name: str) -> Callable[..., Any]:
        """The function behind a hook."""
        return self._hung.get(name) or getattr(self, name)

    @property
    def capabilities(self) -> Capabilities:
        """What the agent tells the proxy that it can do."""
        if self._capabilities is not None:
            return self._capabilities
        hooks = Hooks(self)
        return Capabilities(
            events=int(hooks.events or Event.REQUEST_HEADERS),
            max_concurrent=self.max_concurrent_requests,
            # An agent that has nothing to cancel and nothing to forget spares proxies the frames that would say so.
            cancellation=hooks.remembers or hooks.cancel is not None or hooks.any_async,
            streaming_body=self.has("on_request_body") or self.has("on_response_body"),
            websocket=self.has("on_websocket_frame"),
            guardrails=self.has("on_guardrail"),
            config_push=self.has("on_configure"),
            metrics_export=self.has("metrics"),
            health_reporting=self.has("health"),
        )


_NAME_OF: Final[dict[type[AgentEvent], str]] = {
    RequestHeaders: "on_request_headers",
    RequestBodyChunk: "on_request_body",
    ResponseHeaders: "on_response_headers",
    ResponseBodyChunk: "on_response_body",
    RequestComplete: "on_request_complete",
    WebSocketFrame: "on_websocket_frame",
    GuardrailInspect: "on_guardrail",
    Configure: "on_configure",
}
_HOOK_NAMES: Final = frozenset({*_NAME_OF.values(), "on_cancel", "health", "metrics"})


class Hook(NamedTuple):
    """A hook, ready to be called with an event and its request. ``may_be_silent``: None is as good as an allow."""

    name: str
    call: Callable[[Any, Request], Any]
    is_async: bool = False
    may_be_silent: bool = False


def _allow(_event: Any, _request: Request) -> Decision:
    return ALLOWED


class Hooks:
    """The hooks of an agent, looked at once for each connection and not for each event.

    ``by_event`` has every class of events, with a hook that allows where the agent has none, and ``events`` those for
    which it has one. ``remembers`` says that it has hooks for a request's later events.
    """

    __slots__ = ("any_async", "by_event", "cancel", "events", "remembers")

    def __init__(self, agent: Agent) -> None:
        self.by_event: dict[type[Any], Hook] = {}
        self.events = Event(0)
        for kind, name in _NAME_OF.items():
            hook = _hook(agent, name)
            self.by_event[kind] = hook or Hook(name, _allow)
            if hook is not None:
                self.events |= kind.flag
        self.cancel = _hook(agent, "on_cancel")
        self.any_async = any(hook.is_async for hook in self.by_event.values())
        self.remembers = bool(self.events & ~_ALONE)


_ALONE: Final = Event.REQUEST_HEADERS | Event.GUARDRAIL_INSPECT | Event.CONFIGURE
"""Events that need no memory of others."""


def _hook(agent: Agent, name: str) -> Hook | None:
    if not agent.has(name):
        return None
    function = agent.function(name)
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
    silent = name in {"on_request_complete", "on_configure", "on_cancel"}
    return Hook(name, function if _takes_two(function) else _with_event_only(function), is_async, silent)


def _takes_two(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    return True


def _with_event_only(function: Callable[[Any], Any]) -> Callable[[Any, Request], Any]:
    def call(event: Any, _request: Request) -> Any:
        return function(event)

    return call
