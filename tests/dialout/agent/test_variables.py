"""Context variables: those of a request are its own, from its first hook to its last."""

import asyncio
from contextvars import ContextVar

import pytest
from support.scripted_proxy import run
from support.waiting import until

from dialout import (
    ALLOWED,
    Agent,
    Cancel,
    CancelReason,
    Decision,
    Dialect,
    Health,
    HealthState,
    RequestBodyChunk,
    RequestHeaders,
    codec_for,
)

from .test_serving import answer, headers, serving

TENANT: ContextVar[str] = ContextVar("TENANT", default="nobody")


class Plain(Agent):
    """Sets the variable in plain hooks."""

    def on_request_headers(self, event: RequestHeaders) -> Decision:  # type: ignore[override]
        """Look that nothing is there, and set it."""
        assert TENANT.get() == "nobody"
        TENANT.set(event.uri)
        return Decision.more()

    def on_request_body(self, event: RequestBodyChunk) -> Decision:  # type: ignore[override]
        """Say what is there."""
        return Decision.block(403, TENANT.get())


class Later(Agent):
    """The same, in coroutines."""

    async def on_request_headers(self, event: RequestHeaders) -> Decision:  # type: ignore[override]
        """Look that nothing is there, and set it."""
        await asyncio.sleep(0)
        assert TENANT.get() == "nobody"
        TENANT.set(event.uri)
        await asyncio.sleep(0)
        return Decision.more()

    async def on_request_body(self, event: RequestBodyChunk) -> Decision:  # type: ignore[override]
        """Say what is there."""
        await asyncio.sleep(0)
        return Decision.block(403, TENANT.get())


class Mixed(Plain):
    """Plain first, a coroutine then."""

    async def on_request_body(self, event: RequestBodyChunk) -> Decision:  # type: ignore[override]
        """Say what is there."""
        return Decision.block(403, TENANT.get())


@pytest.mark.parametrize("agent", [Plain(), Later(), Mixed()], ids=["plain", "async", "mixed"])
@pytest.mark.parametrize("dialect", [Dialect.SDK, Dialect.CORE])
def test_variable_of_the_headers_hook_is_there_for_the_body_and_for_no_other_request(
    agent: Agent, dialect: Dialect
) -> None:
    async def main() -> None:
        async with serving(agent, dialect) as (peer, _, _):
            for number in range(1, 4):
                peer.event(headers(f"/{number}"), number)
            for _ in range(3):
                assert (await answer(peer)).response.needs_more
            for number in (2, 3, 1):
                peer.event(RequestBodyChunk(0, b"", True), number)
            found = {(await answer(peer)).response.verdict for _ in range(3)}
            assert {getattr(one, "body", None) for one in found} == {"/1", "/2", "/3"}
        assert TENANT.get() == "nobody"

    run(main())


def test_variable_of_an_agent_with_one_hook_does_not_reach_the_next_request() -> None:
    agent = Agent()

    seen: list[str] = []

    @agent.hook
    def on_request_headers(event: RequestHeaders) -> Decision:
        seen.append(TENANT.get())
        TENANT.set(event.uri)
        return ALLOWED

    async def main() -> None:
        async with serving(agent) as (peer, _, _):
            for number in range(1, 4):
                peer.event(headers(f"/{number}"), number)
                await answer(peer)

    run(main())
    assert seen == ["nobody"] * 3


def test_cancel_and_reports_have_variables_of_their_own_request_and_leak_none() -> None:
    begun: list[str] = []
    seen: list[str] = []

    class Told(Agent):
        async def on_request_headers(self, event: RequestHeaders) -> Decision:  # type: ignore[override]
            TENANT.set(event.uri)
            begun.append(event.uri)
            await asyncio.Event().wait()
            return ALLOWED

        async def on_cancel(self, event: Cancel) -> None:  # type: ignore[override]
            seen.append(TENANT.get())

        def health(self) -> Health:
            seen.append(TENANT.get())
            TENANT.set("health")
            return Health(HealthState.HEALTHY)

    async def main() -> None:
        codec = codec_for(Dialect.SDK)
        async with serving(Told()) as (peer, connection, _):
            peer.event(headers("/1"), 1)
            await until(lambda: begun and connection.in_flight == 1, "the request")
            frame = codec.encode_cancel(request_id=1, correlation_id="", reason=CancelReason.MANUAL, timestamp_ms=1)
            peer.send(frame)
            await until(lambda: seen, "the cancel")
            for _ in range(2):
                peer.send(codec.encode_health_request() or b"")
                await peer.inbound()

    run(main())
    assert seen == ["/1", "nobody", "nobody"]
