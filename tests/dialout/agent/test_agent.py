"""Agents: hooks by derivation and by decoration, and the capabilities that follow from them."""

import pytest

from dialout import (
    ALLOWED,
    Agent,
    Capabilities,
    Decision,
    Event,
    LocalProtocolError,
    Request,
    RequestBodyChunk,
    RequestHeaders,
)
from dialout.agent.agent import Hooks

HEADERS = RequestHeaders("GET", "/", {})


def test_hooks_may_take_the_event_alone_or_with_its_request() -> None:
    agent = Agent()
    seen: list[object] = []

    @agent.hook
    def on_request_headers(event: RequestHeaders) -> Decision:
        seen.append(event)
        return ALLOWED

    class Derived(Agent):
        def on_request_headers(self, event: RequestHeaders, request: Request) -> Decision:
            seen.append((event, request))
            return ALLOWED

    request = Request(1, None)
    for hooks in (Hooks(agent), Hooks(Derived())):
        assert hooks.by_event[RequestHeaders].call(HEADERS, request) == ALLOWED
    assert seen == [HEADERS, (HEADERS, request)]


def test_agent_without_hooks_allows_and_takes_request_headers() -> None:
    agent = Agent()

    assert Hooks(agent).by_event[RequestBodyChunk].call(None, Request(1, None)) == ALLOWED
    assert agent.capabilities == Capabilities(events=int(Event.REQUEST_HEADERS), max_concurrent=100, cancellation=False)


def test_capabilities_follow_from_hooks() -> None:
    class Inspecting(Agent):
        async def on_request_body(self, event: RequestBodyChunk, request: Request) -> Decision:
            return ALLOWED

    agent = Inspecting(max_concurrent_requests=7)

    @agent.hook
    def on_configure(event: object) -> None:
        pass

    assert agent.capabilities == Capabilities(
        events=int(Event.REQUEST_BODY_CHUNK | Event.CONFIGURE),
        max_concurrent=7,
        cancellation=True,
        streaming_body=True,
        config_push=True,
    )


def test_agent_declares_cancellation_only_when_there_is_something_to_cancel_or_to_forget() -> None:
    plain, slow, told = Agent(), Agent(), Agent()

    @plain.hook
    def on_request_headers(event: RequestHeaders) -> Decision:
        return ALLOWED

    async def decide(event: RequestHeaders) -> Decision:
        return ALLOWED

    decide.__name__ = "on_request_headers"
    slow.hook(decide)

    @told.hook
    def on_cancel(event: object) -> None:
        pass

    assert [agent.capabilities.cancellation for agent in (plain, slow, told)] == [False, True, True]


def test_given_capabilities_stand() -> None:
    given = Capabilities(events=255, max_concurrent=3)

    assert Agent(capabilities=given).capabilities is given


@pytest.mark.parametrize("name", ["on_request_header", "hook", "run"])
def test_function_of_another_name_is_no_hook(name: str) -> None:
    def function(event: object) -> Decision:
        return ALLOWED

    function.__name__ = name
    with pytest.raises(LocalProtocolError, match="is no hook; these are: health, metrics, on_cancel"):
        Agent().hook(function)


def test_at_least_one_request_is_served_at_once() -> None:
    with pytest.raises(LocalProtocolError, match="at least 1"):
        Agent(max_concurrent_requests=0)
