"""Events through hooks to answers, over real sockets: failures, order, concurrency, cancels, memory."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

import pytest
from support.deciding import allows
from support.scripted_proxy import Peer, run, scripted_proxy
from support.waiting import until

from dialout import (
    ALLOW,
    ALLOWED,
    Agent,
    Answer,
    Block,
    BodyMutation,
    Cancel,
    CancelReason,
    Configure,
    Decision,
    Dialect,
    Health,
    HealthState,
    Metrics,
    NotInDialect,
    ProxyConnection,
    Request,
    RequestBodyChunk,
    RequestComplete,
    RequestHeaders,
    ResponseBodyChunk,
    ResponseHeaders,
    Sample,
    codec_for,
    connect_to_proxy,
    encode_frame,
)
from dialout.agent.lifecycle import Ending, Kind
from dialout.agent.remembering import MOST_REMEMBERED
from dialout.agent.serving import LEAST_QUEUE

BOTH = pytest.mark.parametrize("dialect", [Dialect.SDK, Dialect.CORE])


def headers(uri: str = "/") -> RequestHeaders:
    return RequestHeaders("GET", uri, {"host": ["a.example"]})


Talk = Callable[[Peer], Awaitable[None]]


@asynccontextmanager
async def serving(
    agent: Agent, dialect: Dialect = Dialect.SDK, config: object = None
) -> AsyncIterator[tuple[Peer, ProxyConnection, "asyncio.Task[Ending]"]]:
    """An agent that serves one connection, and the proxy's end of it."""
    ready: asyncio.Future[Peer] = asyncio.get_running_loop().create_future()

    async def script(peer: Peer) -> None:
        await peer.accept(config)
        ready.set_result(peer)
        await asyncio.Event().wait()

    async with scripted_proxy(script) as proxy:
        connection = await connect_to_proxy(
            proxy.address, "waf-1", agent.capabilities, dialect=dialect, ping_interval=0
        )
        task = asyncio.create_task(connection.serve(agent))
        try:
            yield await ready, connection, task
        finally:
            connection.close()
            await asyncio.wait({task})


async def answer(peer: Peer) -> Answer:
    found = await peer.inbound()
    assert isinstance(found, Answer), found
    return found


async def verdicts(peer: Peer, count: int) -> dict[int | str | None, object]:
    found = [await answer(peer) for _ in range(count)]
    return {one.correlation_id if one.request_id is None else one.request_id: one.response.verdict for one in found}


# --- what hooks say ----------------------------------------------------------------------------------


@BOTH
def test_decisions_arrive_with_everything_that_goes_with_them(dialect: Dialect) -> None:
    agent = Agent()
    full = (
        Decision.allow()
        .set_request_header("x-a", "1")
        .add_response_header("x-b", "2")
        .remove_request_header("x-c")
        .with_audit(tags=("t",), rule_ids=("r",), confidence=0.5)
    )

    @agent.hook
    async def on_request_headers(event: RequestHeaders) -> Decision:
        return {
            "/full": full,
            "/block": Decision.block(451, "no", {"x-why": "law"}),
            "/redirect": Decision.redirect("https://login.example/", 307),
            "/challenge": Decision.challenge("captcha", {"site_key": "k"}),
            "/more": Decision.more(),
        }[event.uri]

    async def main() -> None:
        async with serving(agent, dialect) as (peer, _, _):
            for number, uri in enumerate(("/full", "/block", "/redirect", "/challenge", "/more"), start=1):
                peer.event(headers(uri), number)
                found = await answer(peer)
                assert (found.request_id, found.correlation_id) in {(number, None), (None, f"c{number}")}
                assert found.response == await on_request_headers(headers(uri))
        assert (agent.counters.requests, agent.counters.allowed, agent.counters.blocked) == (5, 1, 3)

    run(main())


def test_body_mutations_are_for_those_dialects_that_have_them_and_a_failure_in_the_others() -> None:
    agent = Agent()

    @agent.hook
    def on_request_body(event: RequestBodyChunk) -> Decision:
        return Decision.allow().replace_request_chunk(event.data.upper(), event.chunk_index)

    async def main(dialect: Dialect, expected: Decision) -> None:
        async with serving(agent, dialect) as (peer, _, _):
            peer.event(RequestBodyChunk(3, b"abc", True), 1)
            assert (await answer(peer)).response == expected

    run(main(Dialect.CORE, Decision(ALLOW, request_body_mutation=BodyMutation(b"ABC", 3))))
    run(main(Dialect.SDK, Decision.block(500)))


@pytest.mark.parametrize("dialect", [Dialect.CORE, Dialect.DOCS])
def test_mutation_answers_the_chunk_at_hand_and_no_other_event(dialect: Dialect) -> None:
    agent = Agent()

    @agent.hook
    def on_request_headers(event: RequestHeaders) -> Decision:
        return Decision.allow().replace_request_chunk(b"")

    @agent.hook
    def on_request_body(event: RequestBodyChunk) -> Decision:
        decision = Decision.allow().replace_request_chunk(event.data.upper())
        return decision.replace_request_chunk(b"", 7) if event.data == b"wrong" else decision

    @agent.hook
    def on_response_body(event: ResponseBodyChunk) -> Decision:
        return Decision.allow().replace_response_chunk(event.data.upper())

    async def main() -> None:
        async with serving(agent, dialect) as (peer, _, _):
            for index in range(3):
                peer.event(RequestBodyChunk(index, b"abc", index == 2), 1)
                response = (await answer(peer)).response
                assert response == Decision(ALLOW, request_body_mutation=BodyMutation(b"ABC", index))
            peer.event(ResponseBodyChunk(5, b"abc", True), 1)
            response = (await answer(peer)).response
            assert response == Decision(ALLOW, response_body_mutation=BodyMutation(b"ABC", 5))
            for event in (RequestBodyChunk(1, b"wrong", False), headers("/a")):
                peer.event(event, 2)
                assert (await answer(peer)).response == Decision.block(500)

    run(main())


# --- failures ----------------------------------------------------------------------------------------


class Failing(Agent):
    """Every kind of failure, plain and asynchronous."""

    def on_request_headers(self, event: RequestHeaders, request: Request) -> Decision:
        """Fail as the URI says."""
        if event.uri == "/none":
            return None  # type: ignore[return-value]
        if event.uri == "/true":
            return True  # type: ignore[return-value]
        if event.uri == "/unwritable":
            return Decision.block(9000)
        raise ValueError(f"no idea about {event.uri}")

    async def on_response_headers(self, event: ResponseHeaders, request: Request) -> Decision:
        """Fail later."""
        await asyncio.sleep(0)
        raise asyncio.CancelledError if event.status == 500 else KeyError(event.status)


@BOTH
@pytest.mark.parametrize(
    "event",
    [
        headers("/none"),
        headers("/true"),
        headers("/unwritable"),
        headers("/raise"),
        ResponseHeaders(200, {}),
        ResponseHeaders(500, {}),
    ],
    ids=["none", "true", "unwritable", "raise", "async", "cancelled-inside"],
)
def test_hook_that_fails_is_a_block_and_never_an_allow(dialect: Dialect, event: RequestHeaders) -> None:
    async def main() -> None:
        agent = Failing()
        async with serving(agent, dialect) as (peer, _, _):
            peer.event(event, 1)
            assert (await answer(peer)).response.verdict == Block(500)
        assert agent.counters.errored == 1
        assert agent.counters.allowed == 0

    run(main())


def test_failure_answer_is_configurable_and_checked_for_its_dialect() -> None:
    async def main() -> None:
        async with serving(Failing(failure=Decision.allow().with_audit(tags=("failed open",)))) as (peer, _, _):
            peer.event(headers("/raise"), 1)
            response = (await answer(peer)).response
            assert (response.verdict, response.audit.tags) == (ALLOW, ("failed open",))
        mutating = Failing(failure=Decision.allow().replace_request_chunk(b""))
        async with serving(mutating) as (_, _, task):
            await asyncio.wait({task})
            with pytest.raises(NotInDialect):
                task.result()

    run(main())


def test_failure_is_logged_with_its_request_and_nothing_raw(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with serving(Failing()) as (peer, _, _):
            peer.event(headers("/\x1b[2J\nforged line\u202e"), 17)
            await answer(peer)

    with caplog.at_level(logging.DEBUG, "dialout.agent"):
        run(main())
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    line = record.getMessage()
    assert "waf-1-conn-1: request 17: on_request_headers failed: ValueError: no idea about /" in line
    assert "test_serving.py:" in line
    assert all(one.getMessage().isascii() and one.getMessage().isprintable() for one in caplog.records)
    assert all(one.exc_info is None for one in caplog.records)


@BOTH
def test_event_that_cannot_be_read_fails_where_it_names_its_request(dialect: Dialect) -> None:
    async def main() -> None:
        agent = allows()
        async with serving(agent, dialect) as (peer, _, _):
            peer.send(encode_frame(0x10, b'{"request_id":5,"correlation_id":"c5","method":7}'))
            assert await verdicts(peer, 1) in ({5: Block(500)}, {"c5": Block(500)})
            # One without a name has no answer: an "allow" for request 0 would be one for somebody else's.
            peer.send(encode_frame(0x10, b"nonsense"))
            peer.event(headers(), 6)
            assert await verdicts(peer, 1) in ({6: ALLOW}, {"c6": ALLOW})
        assert agent.counters.errored == 2

    run(main())


@BOTH
def test_frames_of_unknown_types_are_not_answered(dialect: Dialect) -> None:
    async def main() -> None:
        async with serving(allows(), dialect) as (peer, _, _):
            for frame_type in set(range(256)) - set(range(0x10, 0x18)) - {0x30, 0x31, 0x40, 0x41, 0xE0, 0xE2, 0xF0}:
                peer.send(encode_frame(frame_type))
            peer.event(headers(), 1)
            assert set((await verdicts(peer, 1)).values()) == {ALLOW}

    run(main())


def test_sixth_unreadable_event_in_a_row_ends_the_connection_after_all_answers() -> None:
    async def main() -> None:
        async with serving(Failing()) as (peer, _, task):
            for number in range(1, 7):
                peer.send(encode_frame(0x10, b'{"request_id":%d}' % number))
            assert await verdicts(peer, 6) == {number: Block(500) for number in range(1, 7)}
            assert await peer.inbound() is None
            ending = await task
            assert (ending.kind, ending.reason) == (Kind.ERRORS, "too many errors in a row")

    run(main())


@pytest.mark.parametrize("dialect", list(Dialect))
@pytest.mark.parametrize("has_body", [False, True])
def test_request_by_the_name_of_one_that_has_no_answer_yet_has_headers_and_context_of_its_own(
    dialect: Dialect, has_body: bool
) -> None:
    """Clients choose the name where a proxy takes their X-Request-Id for it."""
    first_may_end = asyncio.Event()

    class Keeps(Agent):
        async def on_request_headers(self, event: RequestHeaders, request: Request) -> Decision:
            assert request.headers is event
            assert request.context is None
            request.context = event.uri
            if event.uri == "/benign":
                await first_may_end.wait()
                return Decision.block(403)
            return Decision.more() if has_body else ALLOWED

        def on_request_body(self, event: RequestBodyChunk, request: Request) -> Decision:
            assert request.headers is not None
            assert request.headers.uri == request.context == "/evil"
            return Decision.block(451)

    async def main() -> None:
        async with serving(Keeps(), dialect) as (peer, connection, _):
            peer.event(headers("/benign"), 1)
            await until(lambda: connection.in_flight == 1, "the request")
            peer.event(headers("/evil"), 1)
            # What is answered behind it shows that both were read.
            peer.event(headers("/other"), 2)
            await answer(peer)
            first_may_end.set()
            assert (await answer(peer)).response.verdict == Block(403)
            second = (await answer(peer)).response
            assert second == (Decision.more() if has_body else ALLOWED)
            if has_body:
                peer.event(RequestBodyChunk(0, b"x", True), 1)
                assert (await answer(peer)).response.verdict == Block(451)

    run(main())


@BOTH
@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_hook_that_fails_for_some_requests_serves_all_others_on_the_same_connection(
    dialect: Dialect, kind: str
) -> None:
    async def main() -> None:
        agent = Poisoned(kind)
        async with serving(agent, dialect) as (peer, _, task):
            for number in range(1, 201):
                peer.event(headers("/good" if number % 10 == 0 else f"/{number % 10}"), number)
            found = list((await verdicts(peer, 200)).values())
            assert (found.count(ALLOW), found.count(Block(500))) == (20, 180)
            assert not task.done()
        assert (agent.counters.allowed, agent.counters.errored) == (20, 180)

    run(main())


class Poisoned(Agent):
    """Fails in every way that Python has, for all requests but those to /good."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.hook(self.plain() if kind == "plain" else self.later())

    def plain(self) -> Callable[[RequestHeaders], Decision]:
        """A hook that fails at once."""

        def on_request_headers(event: RequestHeaders) -> Decision:
            return self.decide(event)

        return on_request_headers

    def later(self) -> Callable[[RequestHeaders], Awaitable[Decision]]:
        """A hook that fails later."""

        async def on_request_headers(event: RequestHeaders) -> Decision:
            await asyncio.sleep(0)
            return self.decide(event)

        return on_request_headers

    @staticmethod
    def decide(event: RequestHeaders) -> Decision:
        """Allow, or fail."""
        results: dict[str, object] = {
            "/1": None,
            "/2": Decision,
            "/3": Mute(),
            "/4": Decision.allow().set_request_header("x-lone", "\udc80"),
        }
        errors: dict[str, BaseException] = {
            "/5": ValueError("poison"),
            "/6": SystemExit(0),
            "/7": asyncio.CancelledError(),
            "/8": KeyboardInterrupt(),
            "/9": GeneratorExit(),
        }
        if event.uri in errors:
            raise errors[event.uri]
        return cast("Decision", results.get(event.uri, ALLOWED))


class Mute:
    """Is none, and cannot even be asked."""

    def __getattribute__(self, name: str) -> object:
        """Fail, when it is asked for its class as well."""
        raise OSError(name)


def test_an_event_that_can_be_read_in_between_forgets_those_that_could_not() -> None:
    async def main() -> None:
        async with serving(Failing()) as (peer, _, task):
            for number in range(1, 61):
                if number % 6:
                    peer.send(encode_frame(0x10, b'{"request_id":%d}' % number))
                else:
                    peer.event(headers("/raise"), number)
            assert set((await verdicts(peer, 60)).values()) == {Block(500)}
            for _ in range(100):
                await asyncio.sleep(0)
            assert not task.done()
            peer.event(headers("/true"), 61)
            assert await verdicts(peer, 1) == {61: Block(500)}

    run(main())


# --- concurrency, order and cancels ------------------------------------------------------------------


class Gated(Agent):
    """Holds every request until the test lets it go; ``at_work`` and ``most`` say how many at once."""

    def __init__(self, **options: int) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.gates: dict[str, asyncio.Event] = {}
        self.at_work = 0
        self.most = 0
        self.cancelled: list[str] = []
        self.told: list[tuple[int | str | None, CancelReason | None]] = []

    async def on_request_headers(self, event: RequestHeaders, request: Request) -> Decision:
        """Wait at the gate."""
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        gate = self.gates.setdefault(event.uri, asyncio.Event())
        try:
            await gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(event.uri)
            raise
        finally:
            self.at_work -= 1
        return Decision.allow().set_request_header("x-uri", event.uri)

    def on_cancel(self, event: Cancel, request: Request) -> None:
        """Note who was cancelled, and why."""
        self.told.append((request.request_id or request.correlation_id, event.reason))

    def let_go(self, *uris: str) -> None:
        """Open gates, of requests that come later as well."""
        for uri in uris:
            self.gates.setdefault(uri, asyncio.Event()).set()


def test_requests_are_served_at_once_up_to_the_limit_and_the_others_in_their_order() -> None:
    async def main() -> None:
        agent = Gated(max_concurrent_requests=3)
        async with serving(agent) as (peer, connection, _):
            for number in range(1, 7):
                peer.event(headers(f"/{number}"), number)
            await until(lambda: connection.in_flight == 6, "all to be there")
            await until(lambda: agent.at_work == 3, "three at work")
            agent.let_go("/2")
            assert (await answer(peer)).request_id == 2
            await until(lambda: "/4" in agent.gates, "the next in turn")
            assert "/5" not in agent.gates
            agent.let_go("/6", "/5", "/4", "/3", "/1")
            assert {(await answer(peer)).request_id for _ in range(5)} == {1, 3, 4, 5, 6}
            assert agent.most == 3
            assert agent.counters.active == 0

    run(main())


class Handing(Gated):
    """The same from a plain hook, which hands out what is to be awaited."""

    def on_request_headers(self, event: RequestHeaders, request: Request) -> Awaitable[Decision]:  # type: ignore[override]
        """Give the coroutine to whoever asks."""
        return super().on_request_headers(event, request)


def test_limit_holds_for_what_a_plain_hook_hands_out_to_be_awaited_too() -> None:
    async def main() -> None:
        agent = Handing(max_concurrent_requests=2)
        async with serving(agent) as (peer, connection, _):
            for number in range(1, 5):
                peer.event(headers(f"/{number}"), number)
            await until(lambda: connection.in_flight == 4, "all to be there")
            await until(lambda: agent.at_work == 2, "two at work")
            # Its coroutine has not begun, and nobody may miss that.
            codec = codec_for(Dialect.SDK)
            cancel = codec.encode_cancel(request_id=4, correlation_id="", reason=CancelReason.MANUAL, timestamp_ms=1)
            peer.send(cancel)
            await until(lambda: connection.in_flight == 3, "the cancel")
            agent.let_go("/1", "/2", "/3", "/4")
            assert {(await answer(peer)).request_id for _ in range(3)} == {1, 2, 3}
            assert (agent.most, agent.counters.active, agent.counters.cancelled) == (2, 0, 1)

    run(main())


def holds(connection: ProxyConnection, in_flight: int) -> bool:
    return connection.in_flight == in_flight


def test_agent_reads_no_more_when_too_much_waits_and_goes_on_later() -> None:
    async def main() -> None:
        agent = Gated(max_concurrent_requests=2)
        async with serving(agent) as (peer, connection, _):
            for number in range(1, 101):
                peer.event(headers(f"/{number}"), number)
                in_flight = min(number, 2 + LEAST_QUEUE)
                await until(partial(holds, connection, in_flight), "it to be taken or left")
            for _ in range(100):
                await asyncio.sleep(0)
            assert connection.in_flight == 2 + LEAST_QUEUE
            agent.let_go(*(f"/{number}" for number in range(1, 101)))
            assert len(await verdicts(peer, 100)) == 100

    run(main())


def test_a_thousand_requests_are_in_flight_on_one_connection() -> None:
    async def main() -> None:
        agent = Gated(max_concurrent_requests=1000)
        async with serving(agent) as (peer, connection, _):
            for number in range(1, 1001):
                peer.event(headers(f"/{number}"), number)
            await until(lambda: agent.at_work == 1000, "all at work")
            assert connection.in_flight == 1000
            agent.let_go(*(f"/{number}" for number in range(1000, 0, -1)))
            answers = [await answer(peer) for _ in range(1000)]
            assert {one.request_id for one in answers} == set(range(1, 1001))
            assert all(one.response.request_headers[0].value == f"/{one.request_id}" for one in answers)
            assert (connection.in_flight, agent.most) == (0, 1000)

    run(main())


def test_long_queue_of_requests_that_take_no_time_is_served_behind_one_that_does() -> None:
    async def main() -> None:
        agent = Gated(max_concurrent_requests=2000)
        async with serving(agent) as (peer, connection, _):
            for number in range(1, 3901):
                peer.event(headers(f"/{number}"), number)
            await until(lambda: connection.in_flight == 3900, "all to be there")
            agent.let_go(*(f"/{number}" for number in range(1000, 3901)), "/1")
            assert len([await answer(peer) for _ in range(2902)]) == 2902
            agent.let_go(*(f"/{number}" for number in range(2, 1000)))
            assert len([await answer(peer) for _ in range(998)]) == 998

    run(main())


@BOTH
def test_events_of_one_request_are_answered_in_their_order(dialect: Dialect) -> None:
    agent = Agent()

    @agent.hook
    async def on_request_headers(event: RequestHeaders) -> Decision:
        for _ in range(20):
            await asyncio.sleep(0)
        return Decision.more()

    @agent.hook
    def on_request_body(event: RequestBodyChunk, request: Request) -> Decision:
        assert request.headers is not None
        request.context = (request.context or b"") + event.data
        return Decision.block(403, request.context.decode()) if event.is_last else Decision.more()

    async def main() -> None:
        async with serving(agent, dialect) as (peer, _, _):
            peer.event(headers(), 1)
            peer.event(RequestBodyChunk(0, b"one ", False), 1)
            peer.event(RequestBodyChunk(1, b"two", True), 1)
            responses = [(await answer(peer)).response for _ in range(3)]
            assert [one.needs_more for one in responses] == [True, True, False]
            assert responses[2].verdict == Block(403, "one two")

    run(main())


@BOTH
@pytest.mark.parametrize("queued", [False, True])
def test_cancel_ends_the_coroutine_and_is_not_answered(dialect: Dialect, queued: bool) -> None:
    async def main() -> None:
        agent = Gated(max_concurrent_requests=1)
        codec = codec_for(dialect)
        async with serving(agent, dialect) as (peer, connection, _):
            peer.event(headers("/1"), 1)
            if queued:
                peer.event(headers("/2"), 2)
            victim = 2 if queued else 1
            await until(lambda: connection.in_flight == victim and agent.at_work == 1, "requests in flight")
            peer.send(
                codec.encode_cancel(
                    request_id=victim, correlation_id=f"c{victim}", reason=CancelReason.TIMEOUT, timestamp_ms=1
                )
            )
            await until(lambda: agent.told, "the cancel")
            assert agent.told in ([(victim, CancelReason.TIMEOUT)], [(f"c{victim}", CancelReason.TIMEOUT)])
            await until(lambda: connection.in_flight == victim - 1, "one to be gone")
            peer.event(headers("/3"), 3)
            agent.let_go("/1", "/3")
            values = [(await answer(peer)).response.request_headers[0].value for _ in range(victim)]
            assert values == (["/1", "/3"] if queued else ["/3"])
            assert agent.cancelled == ([] if queued else ["/1"])
            assert "/2" not in agent.gates

    run(main())


def test_cancel_right_behind_its_request_leaves_room_for_the_next() -> None:
    async def main() -> None:
        agent = Gated(max_concurrent_requests=1)
        codec = codec_for(Dialect.SDK)
        async with serving(agent) as (peer, connection, _):
            for number in range(1, 4):
                event = codec.encode_event(headers(f"/{number}"), request_id=number, correlation_id="", now="")
                cancel = codec.encode_cancel(
                    request_id=number, correlation_id="", reason=CancelReason.MANUAL, timestamp_ms=1
                )
                peer.send(event + cancel)
            peer.event(headers("/last"), 9)
            agent.let_go("/last")
            assert await verdicts(peer, 1) == {9: ALLOW}
            assert (connection.in_flight, agent.counters.active, len(agent.told)) == (0, 0, 3)

    run(main())


def test_cancel_of_everything_ends_all_coroutines() -> None:
    async def main() -> None:
        agent = Gated()
        async with serving(agent) as (peer, connection, _):
            for number in range(1, 11):
                peer.event(headers(f"/{number}"), number)
            await until(lambda: agent.at_work == 10, "all at work")
            frame = codec_for(Dialect.SDK).encode_cancel_all(CancelReason.PROXY_SHUTDOWN)
            assert frame is not None
            peer.send(frame)
            await until(lambda: agent.at_work == 0, "all cancelled")
            assert len(agent.cancelled) == 10
            assert {reason for _, reason in agent.told} == {CancelReason.PROXY_SHUTDOWN}
            assert connection.in_flight == 0

    run(main())


def test_coroutine_that_ignores_its_cancel_sends_nothing() -> None:
    agent = Agent()
    started = asyncio.Event()

    @agent.hook
    async def on_request_headers(event: RequestHeaders) -> Decision:
        if event.uri == "/stubborn":
            started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return ALLOWED
        return Decision.block()

    async def main() -> None:
        async with serving(agent) as (peer, _, _):
            peer.event(headers("/stubborn"), 1)
            await started.wait()
            frame = codec_for(Dialect.SDK).encode_cancel(
                request_id=1, correlation_id="", reason=CancelReason.MANUAL, timestamp_ms=1
            )
            peer.send(frame)
            peer.event(headers("/next"), 2)
            assert await verdicts(peer, 1) == {2: Block(403)}

    run(main())


def test_end_of_the_connection_cancels_what_is_in_flight() -> None:
    async def main() -> None:
        agent = Gated()
        async with serving(agent) as (peer, _, task):
            peer.event(headers("/1"), 1)
            await until(lambda: agent.at_work == 1, "it to be at work")
            peer.writer.transport.abort()
            ending = await task
            assert ending.kind is Kind.LOST
            await until(lambda: agent.cancelled == ["/1"], "the coroutine's end")

    run(main())


def test_drain_finishes_what_is_in_flight_and_what_comes_meanwhile() -> None:
    async def main() -> None:
        agent = Gated()
        async with serving(agent) as (peer, connection, task):
            peer.event(headers("/1"), 1)
            await until(lambda: agent.at_work == 1, "it to be at work")
            draining = asyncio.create_task(connection.drain(20))
            peer.event(headers("/2"), 2)
            await until(lambda: agent.at_work == 2, "the late one")
            agent.let_go("/1", "/2")
            assert len(await verdicts(peer, 2)) == 2
            assert await peer.inbound() is None
            assert await draining
            assert (await task).reason == "closed by the agent"

    run(main())


def test_drain_has_an_end_and_what_is_in_flight_then_gets_the_failure_answer() -> None:
    async def main() -> None:
        agent = Gated()
        async with serving(agent) as (peer, connection, _):
            peer.event(headers("/1"), 1)
            await until(lambda: agent.at_work == 1, "it to be at work")
            peer.event(ResponseHeaders(200, {}), 1)
            await until(lambda: connection._serving and connection._serving._work[1].later, "the event behind it")
            assert not await connection.drain(0.05)
            assert [(await answer(peer)).response.verdict for _ in range(2)] == [Block(500)] * 2
            assert await peer.inbound() is None
            assert agent.cancelled == ["/1"]

    run(main())


# --- memory, configuration, reports ------------------------------------------------------------------


def test_a_request_keeps_its_headers_and_context_until_it_is_over_and_only_so_many_are_kept() -> None:
    agent = Agent()
    seen: list[tuple[int | None, str | None]] = []

    @agent.hook
    def on_response_body(event: ResponseBodyChunk, request: Request) -> Decision:
        seen.append((request.request_id, None if request.headers is None else request.headers.uri))
        return ALLOWED

    async def main() -> None:
        async with serving(agent) as (peer, _, _):
            chunk = ResponseBodyChunk(0, b"", False)
            peer.event(headers("/kept"), 1)
            peer.event(chunk, 1)
            peer.event(ResponseBodyChunk(1, b"", True), 1)
            peer.event(chunk, 1)  # It was over: this is another one, as far as anybody can tell.
            assert len(await verdicts(peer, 1)) == 1
            for number in range(2, MOST_REMEMBERED + 3):
                peer.event(headers(f"/{number}"), number)
            for number in (2, 3, 4, MOST_REMEMBERED + 2):
                peer.event(chunk, number)
            peer.event(headers(), MOST_REMEMBERED + 9)
            while (await answer(peer)).request_id != MOST_REMEMBERED + 9:
                pass

    run(main())
    assert seen[:3] == [(1, "/kept"), (1, "/kept"), (1, None)]
    # The remade first one and the second had to go.
    assert [uri for _, uri in seen[3:]] == [None, "/3", "/4", f"/{MOST_REMEMBERED + 2}"]


def test_body_of_a_request_that_had_to_be_forgotten_gets_the_failure_and_is_not_judged_by_its_rest() -> None:
    agent = Agent()

    @agent.hook
    def on_request_headers(event: RequestHeaders) -> Decision:
        return Decision.more()

    @agent.hook
    def on_request_body(event: RequestBodyChunk, request: Request) -> Decision:
        request.context = (request.context or b"") + event.data
        if request.context == b"attack":
            return Decision.block(403)
        return ALLOWED if event.is_last else Decision.more()

    async def main() -> None:
        async with serving(agent) as (peer, _, _):
            peer.event(headers(), 1)
            peer.event(RequestBodyChunk(0, b"att", False), 1)
            for number in range(2, MOST_REMEMBERED + 2):
                peer.event(headers(), number)
            peer.event(RequestBodyChunk(1, b"ack", True), 1)
            found = [await answer(peer) for _ in range(MOST_REMEMBERED + 3)]
            assert [one.response.verdict for one in found if one.request_id == 1] == [None, None, Block(500)]

    run(main())


def test_configuration_comes_with_the_registration_once_for_all_connections_and_by_push() -> None:
    taken: list[object] = []
    agent = allows()

    @agent.hook
    async def on_configure(event: Configure) -> Decision | None:
        await asyncio.sleep(0)
        taken.append(event.config)
        return Decision.block(500, "rules are broken") if event.config == "broken" else None

    async def main() -> None:
        async with (
            serving(agent, Dialect.CORE, {"rules": 1}),
            serving(agent, Dialect.CORE, {"rules": 1}) as (peer, _, _),
        ):
            peer.event(headers(), 1)  # Behind the configuration.
            await answer(peer)
            assert taken == [{"rules": 1}]
            peer.event(Configure({"rules": 2}, "2"), 2)
            assert set((await verdicts(peer, 1)).values()) == {ALLOW}
            peer.event(Configure("broken"), 3)
            assert set((await verdicts(peer, 1)).values()) == {Block(500, "rules are broken")}
            assert agent.configuration == {"rules": 2}
        async with serving(agent, Dialect.CORE, {"rules": 2}) as (peer, _, _):
            peer.event(headers(), 1)
            await answer(peer)
        assert taken == [{"rules": 1}, {"rules": 2}, "broken"]

    run(main())


def test_configuration_that_the_hook_chokes_on_is_tried_again_with_the_next_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    agent, taken = allows(), []

    @agent.hook
    def on_configure(event: Configure) -> None:
        taken.append(event.config)
        raise ValueError("bad\nrules")

    async def main() -> None:
        for _ in range(2):
            async with serving(agent, config={"rules": 1}) as (peer, _, _):
                peer.event(headers(), 1)
                await answer(peer)

    run(main())
    assert taken == [{"rules": 1}] * 2
    assert sum("configuration that came with the registration failed" in line for line in caplog.messages) == 2


def test_core_requests_that_are_complete_are_answered_and_forgotten() -> None:
    agent, seen = Agent(), []

    @agent.hook
    def on_request_complete(event: RequestComplete, request: Request) -> None:
        seen.append((event.status, request.headers and request.headers.uri))

    async def main() -> None:
        async with serving(agent, Dialect.CORE) as (peer, _, _):
            peer.event(headers("/a"), 1)
            peer.event(RequestComplete(200, 12), 1)
            assert await verdicts(peer, 2) == {"c1": ALLOW}
            peer.event(RequestComplete(204, 12), 1)
            await answer(peer)

    run(main())
    assert seen == [(200, "/a"), (204, None)]


class Reporting(Agent):
    """Has something to say."""

    async def health(self) -> Health:
        """Say it later."""
        await asyncio.sleep(0)
        return Health(HealthState.DEGRADED, "slow rules")

    def metrics(self) -> Metrics:
        """Say it at once."""
        return Metrics(gauges=(Sample("rules", 7),))


class Broken(Agent):
    """Cannot say how it is."""

    async def health(self) -> Health:
        """Fail later."""
        raise OSError("no database")

    def metrics(self) -> Metrics:
        """Fail at once."""
        raise OSError("no database")


@pytest.mark.parametrize(
    ("agent", "state", "rules"), [(Reporting(), HealthState.DEGRADED, 7), (Broken(), HealthState.UNHEALTHY, None)]
)
def test_sdk_agents_report_when_asked(agent: Agent, state: HealthState, rules: float | None) -> None:
    async def main() -> None:
        codec = codec_for(Dialect.SDK)
        async with serving(agent) as (peer, _, _):
            peer.send(codec.encode_health_request() or b"")
            health = await peer.inbound()
            assert isinstance(health, Health)
            assert health.state is state
            peer.send(codec.encode_metrics_request() or b"")
            metrics = await peer.inbound()
            assert isinstance(metrics, Metrics)
            assert [one.value for one in metrics.gauges if one.name == "rules"] == ([] if rules is None else [rules])

    run(main())


@pytest.mark.parametrize("error", [asyncio.CancelledError(), SystemExit(1), GeneratorExit()], ids=repr)
@pytest.mark.parametrize("later", [False, True], ids=["plain", "async"])
def test_report_that_fails_in_an_unusual_way_costs_neither_the_connection_nor_the_agent(
    error: BaseException, later: bool
) -> None:
    class Odd(Agent):
        def on_request_headers(self, event: RequestHeaders) -> Decision:  # type: ignore[override]
            return Decision.block(403)

        def health(self) -> Awaitable[Health]:
            if not later:
                raise error
            return self.fails()

        async def fails(self) -> Health:
            await asyncio.sleep(0)
            raise error

    async def main() -> None:
        async with serving(Odd()) as (peer, _, _):
            peer.send(codec_for(Dialect.SDK).encode_health_request() or b"")
            health = await peer.inbound()
            assert isinstance(health, Health)
            assert health.state is HealthState.UNHEALTHY
            peer.event(headers(), 1)
            assert await verdicts(peer, 1) == {1: Block(403)}

    run(main())


def test_default_metrics_count_requests() -> None:
    async def main() -> None:
        async with serving(allows()) as (peer, _, _):
            peer.event(headers(), 1)
            await answer(peer)
            peer.send(codec_for(Dialect.SDK).encode_metrics_request() or b"")
            metrics = await peer.inbound()
            assert isinstance(metrics, Metrics)
            assert {one.name: one.value for one in metrics.counters}["requests_allowed"] == 1

    run(main())


def test_core_agents_report_unasked_and_say_that_they_drain() -> None:
    async def main() -> None:
        async with serving(Reporting(), Dialect.CORE) as (peer, connection, _):
            first, second = await peer.inbound(), await peer.inbound()
            assert {type(first), type(second)} == {Health, Metrics}
            draining = asyncio.create_task(connection.drain(10))
            health = await peer.inbound()
            assert isinstance(health, Health)
            assert (health.state, health.eta_ms) == (HealthState.DRAINING, 10_000)
            assert await draining

    run(main())


def test_plain_hook_may_return_something_to_await() -> None:
    agent = Agent()

    async def later() -> Decision:
        await asyncio.sleep(0)
        return Decision.block(429)

    @agent.hook
    def on_request_headers(event: RequestHeaders) -> Awaitable[Decision]:
        return later()

    async def main() -> None:
        async with serving(agent) as (peer, _, _):
            peer.event(headers(), 1)
            assert await verdicts(peer, 1) == {1: Block(429)}

    run(main())
