"""The end of a connection that its agent wants: what is in flight is answered, and nothing is lost on the way."""

import asyncio
import logging

import pytest
from support.deciding import allows
from support.scripted_proxy import Peer, run
from support.waiting import until

from dialout import (
    ALLOW,
    ALLOWED,
    Agent,
    Answer,
    Block,
    Cancel,
    CancelReason,
    Configure,
    Decision,
    Dialect,
    Health,
    HealthState,
    Request,
    RequestBodyChunk,
    RequestHeaders,
    codec_for,
    pong_for,
)
from dialout.agent import connection as connection_module
from dialout.dialects import says_draining

from .test_serving import answer, headers, serving

ALL = pytest.mark.parametrize("dialect", list(Dialect))


async def ping(peer: Peer, dialect: Dialect) -> tuple[int, bytes]:
    """The ping by which the agent says that it drains; core agents have a report of their health before it."""
    while True:
        frame = await peer.frame()
        assert frame is not None
        if frame[0] == dialect.ping_type:
            assert says_draining(frame[1])
            return frame


@ALL
def test_ping_of_a_drain_is_an_ordinary_ping_to_those_that_do_not_know_it(dialect: Dialect) -> None:
    codec = codec_for(dialect)
    plain = codec.encode_ping(sequence=3, timestamp_ms=4)
    draining = codec.encode_ping(sequence=3, timestamp_ms=4, draining=True)
    assert (says_draining(plain[5:]), says_draining(draining[5:])) == (False, True)
    answered = pong_for(dialect, draining[4], draining[5:])
    assert answered is not None
    _, _, pong = codec.decode_event(answered[4], answered[5:])
    assert getattr(pong, "mark", None) == codec.ping_mark(sequence=3, timestamp_ms=4)


@ALL
def test_request_that_was_sent_before_the_proxy_heard_of_the_drain_is_answered(dialect: Dialect) -> None:
    async def main() -> None:
        async with serving(allows(), dialect) as (peer, connection, task):
            draining = asyncio.create_task(connection.drain(30))
            frame = await ping(peer, dialect)
            # On its way at that very moment; the agent has been idle since it began to drain.
            for number in range(1, 9):
                peer.event(headers(), number)
            peer.send(pong_for(dialect, *frame) or b"")
            assert [(await answer(peer)).response.verdict for _ in range(8)] == [ALLOW] * 8
            assert await peer.inbound() is None
            peer.writer.close()
            assert await draining
            assert (await task).served == 8

    run(main())


@ALL
def test_body_that_the_agent_has_asked_for_is_waited_for(dialect: Dialect) -> None:
    class Scans(Agent):
        def on_request_headers(self, event: RequestHeaders, request: Request) -> Decision:
            return Decision.more()

        def on_request_body(self, event: RequestBodyChunk, request: Request) -> Decision:
            return Decision.block(403) if event.is_last else Decision.more()

    async def main() -> None:
        async with serving(Scans(), dialect) as (peer, connection, _):
            for number in (1, 2):
                peer.event(headers(), number)
                assert (await answer(peer)).response.needs_more
            draining = asyncio.create_task(connection.drain(30))
            peer.send(pong_for(dialect, *await ping(peer, dialect)) or b"")
            for index, last in enumerate((False, True)):
                peer.event(RequestBodyChunk(index, b"x", last), 1)
                assert (await answer(peer)).response.needs_more is not last
            # The other one is over by the proxy's word.
            peer.send(
                codec_for(dialect).encode_cancel(
                    request_id=2, correlation_id="c2", reason=CancelReason.MANUAL, timestamp_ms=1
                )
            )
            assert await peer.inbound() is None
            assert await draining

    run(main())


def test_body_for_which_the_agent_has_no_hook_gets_the_failure_and_no_allow() -> None:
    agent = Agent()

    @agent.hook
    def on_request_headers(event: RequestHeaders) -> Decision:
        return Decision.more() if event.uri == "/more" else ALLOWED

    async def main() -> None:
        async with serving(agent) as (peer, _, _):
            for number, uri in enumerate(("/more", "/"), start=1):
                peer.event(headers(uri), number)
                await answer(peer)
                peer.event(RequestBodyChunk(0, b"x", True), number)
                assert (await answer(peer)).response.verdict == (Block(500) if uri == "/more" else ALLOW)

    run(main())


@ALL
def test_request_of_an_agent_that_ends_while_it_is_configured_gets_the_failure(dialect: Dialect) -> None:
    class Slow(Agent):
        async def on_configure(self, event: Configure) -> None:  # type: ignore[override]
            await asyncio.Event().wait()

        def on_request_headers(self, event: RequestHeaders) -> Decision:  # type: ignore[override]
            return ALLOWED

    async def main() -> None:
        async with serving(Slow(), dialect, config={"a": 1}) as (peer, connection, _):
            peer.event(headers(), 1)
            draining = asyncio.create_task(connection.drain(30))
            frame = await peer.frame()
            while frame is not None and frame[0] != 0x20:
                if frame[0] == dialect.ping_type:
                    peer.send(pong_for(dialect, *frame) or b"")
                frame = await peer.frame()
            assert frame is not None, "the agent has closed without an answer"
            found = codec_for(dialect).decode(*frame)
            assert isinstance(found, Answer)
            assert found.response.verdict == Block(500)
            peer.writer.close()
            assert await draining

    run(main())


def test_agent_that_drains_reports_no_other_health_until_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would send it new requests again."""
    monkeypatch.setattr(connection_module, "INTERVAL", 0.01)
    decide = asyncio.Event()
    reports: list[HealthState] = []

    class Waits(Agent):
        async def on_request_headers(self, event: RequestHeaders) -> Decision:  # type: ignore[override]
            await decide.wait()
            return ALLOWED

        def health(self) -> Health:
            return Health(HealthState.HEALTHY)

    async def main() -> None:
        async with serving(Waits(), Dialect.CORE) as (peer, connection, _):
            peer.event(headers(), 1)
            await until(lambda: connection.in_flight == 1, "the request")
            draining = asyncio.create_task(connection.drain(30))
            while reports.count(HealthState.DRAINING) < 4:
                found = await peer.inbound()
                assert isinstance(found, Health)
                reports.append(found.state)
            decide.set()
            while await peer.inbound() is not None:
                pass
            peer.writer.close()
            assert await draining
        first = reports.index(HealthState.DRAINING)
        assert set(reports[first:]) == {HealthState.DRAINING}

    run(main())


def test_failures_without_end_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    agent = Agent()

    @agent.hook
    def on_request_headers(event: RequestHeaders) -> Decision:
        raise ValueError(event.uri)

    async def main() -> None:
        async with serving(agent) as (peer, _, _):
            for number in range(1, 2001):
                peer.event(headers(), number)
            for _ in range(2000):
                assert isinstance(await peer.inbound(), Answer)

    with caplog.at_level(logging.ERROR, "dialout.agent"):
        run(main())
    lines = [line for line in caplog.messages if "request " in line]
    sums = [int(line.split("failed ")[1].split()[0]) for line in caplog.messages if "times more" in line]
    assert len(lines) + sum(sums) == 2000
    assert len(lines) < 1000
    assert agent.counters.errored == 2000


def test_cancel_in_a_drain_leaves_nothing_to_wait_for() -> None:
    told: list[Cancel] = []

    class Waits(Agent):
        async def on_request_headers(self, event: RequestHeaders) -> Decision:  # type: ignore[override]
            await asyncio.Event().wait()
            return ALLOWED

        def on_cancel(self, event: Cancel) -> None:  # type: ignore[override]
            told.append(event)

    async def main() -> None:
        async with serving(Waits()) as (peer, connection, _):
            peer.event(headers(), 1)
            await until(lambda: connection.in_flight == 1, "the request")
            draining = asyncio.create_task(connection.drain(30))
            peer.send(pong_for(Dialect.SDK, *await ping(peer, Dialect.SDK)) or b"")
            frame = codec_for(Dialect.SDK).encode_cancel(
                request_id=1, correlation_id="", reason=CancelReason.TIMEOUT, timestamp_ms=1
            )
            peer.send(frame)
            assert await peer.inbound() is None
            peer.writer.close()
            assert await draining
        assert told == [Cancel(CancelReason.TIMEOUT)]

    run(main())
