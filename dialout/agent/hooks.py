"""The hooks of an agent, and checks of their names and signatures.

A hook with a wrong name or signature would mean an allow at the first request. Hooks are therefore checked early: a
decorated function when it is decorated, a method when its agent is created, and all others before the agent dials.
"""

import inspect
import types
import typing
from collections.abc import Awaitable, Callable, Iterable
from difflib import get_close_matches
from typing import Annotated, Any, Final, NamedTuple

from dialout.agent.request import Request
from dialout.capabilities import Event
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
from dialout.inbound import Health, Metrics

if typing.TYPE_CHECKING:
    from dialout.agent.agent import Agent

__all__ = ["HOOK_NAMES", "Hook", "Hooks", "check_function", "check_names"]

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
_EVENT_OF: Final[dict[str, type]] = {name: kind for kind, name in _NAME_OF.items()} | {"on_cancel": Cancel}
_REPORT_OF: Final[dict[str, type]] = {"health": Health, "metrics": Metrics}
HOOK_NAMES: Final = frozenset({*_EVENT_OF, *_REPORT_OF})
_SILENT: Final = frozenset({"on_request_complete", "on_configure", "on_cancel"})
"""Hooks that may return None."""


class Hook(NamedTuple):
    """A hook that can be called with an event and its request.

    ``may_be_silent`` says that None counts as an allow. ``is_there`` is false for an event without a hook, which is
    allowed.
    """

    name: str
    call: Callable[[Any, Request], Any]
    is_async: bool = False
    may_be_silent: bool = False
    is_there: bool = True


def _allow(_event: Any, _request: Request) -> Decision:
    return ALLOWED


class Hooks:
    """The hooks of an agent, looked up once for each connection and not for each event.

    ``by_event`` has an entry for every class of events. The entry allows if the agent has no hook. ``events`` has the
    events with a hook. ``remembers`` says that the agent has hooks for later events of a request.

    Raises LocalProtocolError for a function with a wrong signature, or an attribute that only looks like a hook.
    """

    __slots__ = ("any_async", "by_event", "cancel", "decides", "events", "remembers")

    def __init__(self, agent: "Agent") -> None:
        self.by_event: dict[type[Any], Hook] = {}
        self.events = Event(0)
        check_names(vars(agent))
        for kind, name in _NAME_OF.items():
            hook = _hook(agent, name)
            self.by_event[kind] = hook or Hook(name, _allow, is_there=False)
            if hook is not None:
                self.events |= kind.flag
        for name in _REPORT_OF:
            _hook(agent, name)
        self.cancel = _hook(agent, "on_cancel")
        self.any_async = any(hook.is_async for hook in self.by_event.values())
        self.remembers = bool(self.events & ~_ALONE)
        self.decides = bool(self.events & ~Event.CONFIGURE)


_ALONE: Final = Event.REQUEST_HEADERS | Event.GUARDRAIL_INSPECT | Event.CONFIGURE
"""Events that need no memory of others."""


def _hook(agent: "Agent", name: str) -> Hook | None:
    if not agent.has(name):
        return None
    function = agent.function(name)
    takes_two = check_function(name, function)
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
    return Hook(name, function if takes_two else _with_event_only(function), is_async, name in _SILENT)


def _with_event_only(function: Callable[[Any], Any]) -> Callable[[Any, Request], Any]:
    def call(event: Any, _request: Request) -> Any:
        return function(event)

    return call


# --- names -------------------------------------------------------------------------------------------


def check_names(names: Iterable[str]) -> None:
    """Raise LocalProtocolError for attributes of an agent that look like hooks and are none.

    Public names that begin with ``on_`` are reserved for hooks.
    """
    for name in names:
        if name in HOOK_NAMES or name.startswith("_"):
            continue
        meant = get_close_matches(_plain(name), _BY_PLAIN_NAME, 1, 0.8) if name.lower().startswith("on") else []
        if name.startswith("on_") or meant:
            hint = f"did you mean {_BY_PLAIN_NAME[meant[0]]}?" if meant else f"hooks are {_all_names()}"
            raise LocalProtocolError(f"{name} is no hook, so it would never be called; {hint}")


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


_BY_PLAIN_NAME: Final = {_plain(name): name for name in HOOK_NAMES}


def _all_names() -> str:
    return ", ".join(sorted(HOOK_NAMES))


# --- functions ---------------------------------------------------------------------------------------


def check_function(name: str, function: Any) -> bool:
    """Whether a hook takes the request besides the event. Raises LocalProtocolError for a function that is no hook.

    A hook must be callable, take one or two arguments (a report takes none), and not yield. Its annotations must fit
    the event and the result. An annotation that cannot be resolved here is ignored.
    """
    if not callable(function):
        raise LocalProtocolError(f"{name} is a hook's name, and {type(function).__name__} is no function")
    called = function if inspect.isroutine(function) else type(function).__call__
    if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
        raise LocalProtocolError(f"{name} yields; a hook returns its decision")
    signature = _signature(name, function)
    if signature is None:
        return name not in _REPORT_OF
    count = _arguments(name, signature)
    given = [parameter.annotation for parameter in signature.parameters.values()]
    for annotation, wanted in zip(given[:count], (_EVENT_OF.get(name), Request), strict=False):
        if wanted is not None and not _takes(annotation, wanted):
            what = f"{name} takes a {wanted.__name__}"
            raise LocalProtocolError(f"{what}, and is annotated with {_shown(annotation)}")
    result = signature.return_annotation
    if not _gives(result, _REPORT_OF.get(name, Decision), may_be_silent=name in _SILENT):
        raise LocalProtocolError(f"{name} returns a decision, and says that it returns {_shown(result)}")
    return count == 2


def _signature(name: str, function: Any) -> inspect.Signature | None:
    try:
        try:
            return inspect.signature(function, eval_str=True)
        except NameError:
            return inspect.signature(function)
    except ValueError:
        return None  # Some functions written in C have none.
    except Exception as error:
        raise LocalProtocolError(f"{name} has an annotation that is no type: {error}") from error


def _arguments(name: str, signature: inspect.Signature) -> int:
    """The number of arguments that the hook is called with: the most that it takes."""
    for count in (0,) if name in _REPORT_OF else (2, 1):
        try:
            signature.bind(*[None] * count)
        except TypeError:
            continue
        return count
    takes = "nothing" if name in _REPORT_OF else "the event, or the event and its request"
    raise LocalProtocolError(f"{name} takes {takes}, and this one takes {signature}")


def _parts(annotation: Any) -> list[Any]:
    """The types of a union. Another annotation is its own only part. None means that any type fits."""
    if annotation is inspect.Parameter.empty or annotation is Any or isinstance(annotation, str | typing.TypeVar):
        return [None]
    if annotation is None:
        return [types.NoneType]
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _parts(typing.get_args(annotation)[0])
    if origin in {typing.Union, types.UnionType}:
        return [part for one in typing.get_args(annotation) for part in _parts(one)]
    return [annotation if origin is None else origin]


def _takes(annotation: Any, wanted: type) -> bool:
    """Whether a parameter with this annotation takes a ``wanted``."""
    return any(part is None or _is_subclass(wanted, part) for part in _parts(annotation))


def _gives(annotation: Any, wanted: type, *, may_be_silent: bool) -> bool:
    """Whether a function with this annotation may return a ``wanted``, or something to await."""
    return any(
        part is None
        or part in {typing.NoReturn, typing.Never}
        or (may_be_silent and part is types.NoneType)
        or _is_subclass(part, wanted)
        or _is_subclass(wanted, part)
        or _is_subclass(part, Awaitable)
        for part in _parts(annotation)
    )


def _is_subclass(one: Any, other: Any) -> bool:
    for annotation in (one, other):
        if not isinstance(annotation, type):
            # Another kind of type (a NewType) may be anything. A number or a function is no type.
            return callable(annotation) and not inspect.isroutine(annotation)
    try:
        return issubclass(one, other)
    except TypeError:
        return True  # A protocol that does not support issubclass.


def _shown(annotation: Any) -> str:
    return inspect.formatannotation(annotation)
