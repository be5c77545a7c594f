"""What looks like a hook and is none is an error before the agent dials, and never an allow."""

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Annotated, Any, NoReturn

import pytest

from dialout import (
    ALLOWED,
    Agent,
    AgentConnectionManager,
    Cancel,
    Configure,
    Decision,
    Health,
    LocalProtocolError,
    Request,
    RequestBodyChunk,
    RequestHeaders,
    ResponseHeaders,
)
from dialout.agent.agent import Hooks

# --- names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("on_request_header", "did you mean on_request_headers"),
        ("on_requst_headers", "did you mean on_request_headers"),
        ("onRequestHeaders", "did you mean on_request_headers"),
        ("OnRequestBody", "did you mean on_request_body"),
        ("on_config", "did you mean on_configure"),
        ("on_configured", "did you mean on_configure"),
        ("on_request", "did you mean on_request"),
        ("on_anything", "hooks are health, metrics, on_cancel"),
    ],
)
def test_misspelt_method_is_an_error_when_the_agent_is_made(name: str, hint: str) -> None:
    def method(self: Agent, event: RequestHeaders) -> Decision:
        return Decision.block()

    misspelt = type("Misspelt", (Agent,), {name: method})
    derived = type("Derived", (misspelt,), {"on_request_headers": method})
    for kind in (misspelt, derived):
        with pytest.raises(LocalProtocolError, match=f"{name} is no hook, so it would never be called; {hint}"):
            kind()


def test_methods_of_other_names_are_the_agents_own() -> None:
    class Mixin:
        def on_startup(self) -> None:
            pass

    class Own(Mixin, Agent):
        once = only = True

        def on_request_headers(self, event: RequestHeaders) -> Decision:  # type: ignore[override]
            return ALLOWED

        def _on_rules_changed(self) -> None:
            pass

        def request_headers(self) -> None:
            pass

    assert Own().has("on_request_headers")


def test_hook_that_is_set_on_the_agent_itself_is_called_and_a_misspelt_one_is_an_error() -> None:
    agent = Agent()
    agent.on_request_headers = lambda event: Decision.block()  # type: ignore[method-assign, assignment, misc]

    decision = Hooks(agent).by_event[RequestHeaders].call(RequestHeaders("GET", "/", {}), Request(1, None))
    assert decision == Decision.block()
    agent.on_request_header = lambda event: Decision.block()  # type: ignore[attr-defined]
    with pytest.raises(LocalProtocolError, match="on_request_header is no hook"):
        Hooks(agent)


class Empty(Agent):
    """Has no hook."""


@pytest.mark.parametrize("agent", [Agent(), Empty()])
def test_agent_without_any_hook_is_refused_before_it_dials(agent: Agent) -> None:
    with pytest.raises(LocalProtocolError, match="no hook, so it would allow everything"):
        AgentConnectionManager("/nowhere/s", "waf-1", agent)


def test_agent_whose_hooks_decide_nothing_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    agent = Agent()

    @agent.hook
    def on_configure(event: Configure) -> None:
        pass

    AgentConnectionManager("/nowhere/s", "waf-1", agent)
    assert "no hook that decides, so it would allow everything" in caplog.text


# --- functions ---------------------------------------------------------------------------------------


def no_argument() -> Decision:
    return ALLOWED


def three_arguments(event: RequestHeaders, request: Request, more: int) -> Decision:
    return ALLOWED


def keyword_only(*, event: RequestHeaders) -> Decision:
    return ALLOWED


def yields(event: RequestHeaders) -> Iterator[Decision]:
    yield ALLOWED


async def yields_later(event: RequestHeaders) -> AsyncIterator[Decision]:
    yield ALLOWED


def of_another_event(event: ResponseHeaders) -> Decision:
    return ALLOWED


def of_a_number(event: int) -> Decision:
    return ALLOWED


def of_no_type(event: 5) -> Decision:  # type: ignore[valid-type]
    return ALLOWED


def of_a_text_that_is_no_type(event: "no such type") -> Decision:  # type: ignore[valid-type]  # noqa: F722
    return ALLOWED


def of_two_wrong_ones(event: RequestBodyChunk | ResponseHeaders) -> Decision:
    return ALLOWED


def turned_round(request: Request, event: RequestHeaders) -> Decision:
    return ALLOWED


def gives_truth(event: RequestHeaders) -> bool:
    return True


def gives_nothing(event: RequestHeaders) -> None:
    pass


async def gives_a_text(event: RequestHeaders) -> str:
    return "allow"


NONSENSE = [
    no_argument,
    three_arguments,
    keyword_only,
    yields,
    yields_later,
    of_another_event,
    of_a_number,
    of_no_type,
    of_a_text_that_is_no_type,
    of_two_wrong_ones,
    turned_round,
    gives_truth,
    gives_nothing,
    gives_a_text,
    5,
    None,
]


@pytest.mark.parametrize("function", NONSENSE)
def test_function_that_cannot_be_the_hook_is_an_error_where_it_becomes_one(function: Any) -> None:
    if callable(function):
        function.__name__ = "on_request_headers"
        agent = Agent()
        with pytest.raises(LocalProtocolError, match="on_request_headers"):
            agent.hook(function)
        assert not agent.has("on_request_headers")
        function = staticmethod(function)
    kind = type("Derived", (Agent,), {"on_request_headers": function})
    with pytest.raises(LocalProtocolError, match="on_request_headers"):
        kind()


def test_report_takes_nothing_and_returns_a_report() -> None:
    class Takes(Agent):
        def health(self, event: object) -> Health:  # type: ignore[override]
            raise NotImplementedError

    class Gives(Agent):
        def metrics(self) -> Health:  # type: ignore[override]
            raise NotImplementedError

    for kind in (Takes, Gives):
        with pytest.raises(LocalProtocolError):
            kind()


def plain(event: RequestHeaders) -> Decision:
    return ALLOWED


def bare(event, request):  # type: ignore[no-untyped-def]
    return ALLOWED


async def later(event: RequestHeaders, request: Request) -> Decision:
    return ALLOWED


def awaitable(event: object, request: object) -> Awaitable[Decision]:
    raise NotImplementedError


def either(event: RequestHeaders | ResponseHeaders, request: Any = None) -> Decision | Awaitable[Decision]:
    return ALLOWED


def never(event: Annotated[RequestHeaders, "of a request"]) -> NoReturn:
    raise ValueError


def elsewhere(event: "NameOfAnotherModule", request: "Request") -> "Decision":  # type: ignore[name-defined]  # noqa: F821
    return ALLOWED


def anything(*arguments: Any, **options: Any) -> Any:
    return ALLOWED


class Callee:
    """A hook that is an object."""

    async def __call__(self, event: RequestHeaders) -> Decision:
        """Allow."""
        return ALLOWED


GOOD: list[Callable[..., Any]] = [
    plain,
    bare,
    later,
    awaitable,
    either,
    never,
    elsewhere,
    anything,
    Callee(),
    functools.partial(either, request=None),
    lambda event: ALLOWED,
]


@pytest.mark.parametrize("function", GOOD)
def test_function_that_can_be_the_hook_is_taken(function: Callable[..., Any]) -> None:
    class Derived(Agent):
        on_request_headers = staticmethod(function)

    hook = Hooks(Derived()).by_event[RequestHeaders]
    assert hook.is_there
    assert hook.is_async is (function is later or isinstance(function, Callee))


def test_cancel_and_configure_are_hooks_of_their_own_events() -> None:
    class Right(Agent):
        def on_cancel(self, event: Cancel) -> None:  # type: ignore[override]
            pass

        async def on_configure(self, event: Configure) -> Decision | None:  # type: ignore[override]
            pass

    class Wrong(Agent):
        def on_cancel(self, event: Configure) -> None:  # type: ignore[override]
            pass

    assert Right().has("on_cancel")
    with pytest.raises(LocalProtocolError, match="on_cancel takes a Cancel"):
        Wrong()


# --- the failure answer ------------------------------------------------------------------------------


def test_failure_answer_is_a_decision_that_decides() -> None:
    with pytest.raises(TypeError, match="is a Decision, not Allow"):
        Agent(failure=ALLOWED.verdict)  # type: ignore[arg-type]
    with pytest.raises(LocalProtocolError, match="has a verdict"):
        Agent(failure=Decision.more())
