"""The agent's hooks: a class to derive from, or an object to attach functions to."""

import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

from dialout.agent.configuring import Configuring
from dialout.agent.hooks import HOOK_NAMES, Hook, Hooks, check_function, check_names
from dialout.agent.request import Counters, Request
from dialout.capabilities import Capabilities, Event
from dialout.decisions import ALLOWED, Decision
from dialout.errors import LocalProtocolError
from dialout.events import (
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


class Agent:
    """Decides about requests. Derive from it and override hooks, or decorate functions with ``hook``.

    Every hook takes the event and its ``Request``, or the event alone, and returns a ``Decision``. A plain function is
    called as soon as the event was read, and must not block. Of coroutine functions up to ``max_concurrent_requests``
    run at once on each connection. Events of one request are served one after the other. An event without a hook is
    allowed. A manager refuses an agent without any hook.

    A hook that raises, or returns no decision, fails its event and no other. The proxy then gets ``failure``, by
    default a block with status 500, and the log (``dialout.agent``) gets a line. When the proxy cancels a request, its
    coroutine is cancelled.

    The ``capabilities`` that the proxy gets follow from the hooks. Pass your own if these do not fit. One agent may
    serve any number of connections. With ``require_configuration`` every event gets ``failure`` until ``on_configure``
    has taken a first configuration.

    Raises LocalProtocolError for a public method that begins with ``on_`` and is no hook, and for a hook with a wrong
    signature. Raises TypeError for a ``failure`` that is no decision.
    """

    def __init__(
        self,
        *,
        max_concurrent_requests: int = 100,
        failure: Decision | None = None,
        capabilities: Capabilities | None = None,
        require_configuration: bool = False,
    ) -> None:
        if max_concurrent_requests < 1:
            raise LocalProtocolError("max_concurrent_requests is at least 1")
        self.max_concurrent_requests = max_concurrent_requests
        self.failure = Decision.block(500) if failure is None else _checked_failure(failure)
        self.require_configuration = require_configuration
        self.counters = Counters()
        self.configuration: Any = None
        """The last configuration that ``on_configure`` took."""
        self.configuring = Configuring(self)
        """The queue of configurations from all connections."""
        self._capabilities = capabilities
        self._hung: dict[str, Callable[..., Any]] = {}
        for ancestor in type(self).__mro__:
            if issubclass(ancestor, Agent) and ancestor is not Agent:
                check_names(vars(ancestor))
        for name in HOOK_NAMES:
            if self.has(name):
                check_function(name, self.function(name))

    # --- hooks ---

    def on_request_headers(self, event: RequestHeaders, request: Request) -> Reply:  # noqa: ARG002 - for overrides
        """Decide about a new request. ``Decision.more()`` asks for its body."""
        return ALLOWED

    def on_request_body(self, event: RequestBodyChunk, request: Request) -> Reply:  # noqa: ARG002
        """Decide about a chunk of a request's body. ``Decision.more()`` asks for the next one."""
        return ALLOWED

    def on_response_headers(self, event: ResponseHeaders, request: Request) -> Reply:  # noqa: ARG002
        """Decide about the headers of the upstream's response."""
        return ALLOWED

    def on_response_body(self, event: ResponseBodyChunk, request: Request) -> Reply:  # noqa: ARG002
        """Decide about a chunk of a response's body."""
        return ALLOWED

    def on_request_complete(self, event: RequestComplete, request: Request) -> _News:  # noqa: ARG002
        """Note that a request is over (core dialect only). No return value is needed."""
        return None

    def on_websocket_frame(self, event: WebSocketFrame, request: Request) -> Reply:  # noqa: ARG002
        """Decide about a WebSocket frame (core dialect only). An allow may have a ``websocket_decision``."""
        return ALLOWED

    def on_guardrail(self, event: GuardrailInspect, request: Request) -> Reply:  # noqa: ARG002
        """Inspect a text (core dialect only). A block reports a finding."""
        return ALLOWED

    def on_configure(self, event: Configure, request: Request) -> _News:  # noqa: ARG002
        """Apply a configuration. No return value is needed; a block or an exception refuses it.

        The configuration came with a registration and differs from the last one taken, or it was pushed (core dialect).
        The hook is called once for all connections that bring the same one. Calls do not overlap. If several
        configurations wait, the newest comes next.
        """
        return None

    def on_cancel(self, event: Cancel, request: Request) -> _News:  # noqa: ARG002
        """Note that the proxy has cancelled a request. Its coroutine, if there is one, was cancelled already.

        Some proxies send this for each request that is over, with the reason ``MANUAL``, so that it can be forgotten.
        """
        return None

    def health(self) -> Health | Awaitable[Health]:
        """Return the agent's health: on a proxy's request (sdk), or every ten seconds (core, if this is overridden)."""
        return Health(HealthState.HEALTHY)

    def metrics(self) -> Metrics | Awaitable[Metrics]:
        """Return the agent's metrics: on a proxy's request (sdk), or every ten seconds (core, if this is overridden).

        Proxies of the sdk dialect know only certain names of counters. It is best to add gauges to these.
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

    # --- registration of hooks ---

    def hook(self, function: _Function) -> _Function:
        """Use a function as the hook of the same name: ``@agent.hook`` above ``def on_request_headers(event)``.

        Raises LocalProtocolError for a name that is no hook, and for a function with a wrong signature. Decorate before
        the agent serves.
        """
        name = getattr(function, "__name__", "")
        if name not in HOOK_NAMES:
            raise LocalProtocolError(f"{name} is no hook; these are: {', '.join(sorted(HOOK_NAMES))}")
        check_function(name, function)
        self._hung[name] = function
        return function

    def has(self, name: str) -> bool:
        """Whether the hook of this name was overridden, decorated, or set on the agent itself."""
        return name in self._hung or name in vars(self) or getattr(type(self), name) is not getattr(Agent, name)

    def function(self, name: str) -> Callable[..., Any]:
        """The function of a hook."""
        return self._hung.get(name) or getattr(self, name)

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities that the agent registers with."""
        if self._capabilities is not None:
            return self._capabilities
        hooks = Hooks(self)
        return Capabilities(
            events=int(hooks.events or Event.REQUEST_HEADERS),
            max_concurrent=self.max_concurrent_requests,
            # Without anything to cancel or to forget, the agent saves proxies the cancel frames.
            cancellation=hooks.remembers or hooks.cancel is not None or hooks.any_async,
            streaming_body=self.has("on_request_body") or self.has("on_response_body"),
            websocket=self.has("on_websocket_frame"),
            guardrails=self.has("on_guardrail"),
            config_push=self.has("on_configure"),
            metrics_export=self.has("metrics"),
            health_reporting=self.has("health"),
        )


def _checked_failure(failure: Decision) -> Decision:
    if not isinstance(failure, Decision):
        raise TypeError(f"the failure answer is a Decision, not {type(failure).__name__}")
    if failure.verdict is None:
        raise LocalProtocolError("the failure answer has a verdict: nothing follows it")
    return failure
