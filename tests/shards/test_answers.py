"""Answers: each goes to the request that it is about, and none is an allow that no agent gave."""

from typing import Any

import msgspec
import pytest
from support.engine import (
    Asked,
    PairedAgent,
    Seen,
    all_done,
    answered_tag,
    assert_nothing_left,
    chunk,
    headers,
    next_event,
    on_loop,
    pool_of_this_loop,
    tag_of,
    turns,
)
from support.pools import until

from dialout import (
    ALLOW,
    ALLOWED,
    AgentEvent,
    Block,
    BodyMutation,
    CancelReason,
    Decision,
    Dialect,
    GuardrailInspect,
    RequestBodyChunk,
    RequestComplete,
    RequestHeaders,
    ResponseBodyChunk,
    ResponseHeaders,
    WebSocketFrame,
    encode_frame,
)
from dialout.proxy.errors import BadAnswer
from ipc.options import PoolOptions
from shards.calls import Exchange

MORE = Decision(None, needs_more=True)
LAST, NOT_LAST = RequestBodyChunk(0, b"c", True), RequestBodyChunk(0, b"c", False)


@pytest.mark.parametrize(
    ("event", "useful"),
    [
        (RequestHeaders("POST", "/", {}, True), True),
        (RequestHeaders("GET", "/", {}, False), False),
        (ResponseHeaders(200, {}, True), True),
        (ResponseHeaders(200, {}, False), False),
        (NOT_LAST, True),
        (LAST, False),
        (ResponseBodyChunk(0, b"c", False), True),
        (ResponseBodyChunk(0, b"c", True), False),
        (RequestComplete(200, 1), False),
        (WebSocketFrame("text", b"", True, 0), False),
        (GuardrailInspect("pii_detection", "x"), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, msgspec.Struct) else str(value),
)
@on_loop
async def test_needs_more_is_an_answer_only_where_more_will_come(event: AgentEvent, useful: bool) -> None:
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool, dialect=Dialect.CORE)
        asked = Asked(pool, "waf", event)
        await turns()
        (seen,) = agent.read()
        agent.answer(seen, MORE)
        await all_done(asked)
        assert isinstance(asked.outcome, Decision if useful else BadAnswer)
        if useful:
            assert asked.outcome == MORE


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (RequestBodyChunk(3, b"c", True), Decision(ALLOW, request_body_mutation=BodyMutation(b"new", 3))),
        (ResponseBodyChunk(3, b"c", True), Decision(ALLOW, response_body_mutation=BodyMutation(b"new", 3))),
        (headers(), None),
        (ResponseHeaders(200, {}), None),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("dialect", [Dialect.SDK, Dialect.DOCS])
@on_loop
async def test_mutation_in_a_frame_of_its_own_answers_chunks_only(
    dialect: Dialect, event: AgentEvent, expected: Decision | None
) -> None:
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool, dialect=dialect)
        asked = Asked(pool, "waf", event)
        await turns()
        (seen,) = agent.read()
        assert seen.request_id is not None
        agent.frame(0x21, b'{"request_id":%d,"chunk_index":0,"data":"bmV3"}' % (seen.request_id + 64))
        await turns()
        assert (asked.outcome, pool.requests.late) == (None, 1), "it names another request"
        agent.frame(0x21, b'{"request_id":%d,"chunk_index":3,"data":"bmV3"}' % seen.request_id)
        await all_done(asked)
        if expected is None:
            assert isinstance(asked.outcome, BadAnswer)
        else:
            assert asked.outcome == expected


@on_loop
async def test_answer_for_request_0_fails_the_oldest_of_its_connection() -> None:
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool)
        PairedAgent(pool, "other")
        foreign = Asked(pool, "other", headers())
        asked = [Asked(pool, "waf", headers(str(n))) for n in range(3)]
        for number, one in enumerate(asked):
            agent.frame(0x20, b'{"request_id":0,"decision":"allow"}')
            await all_done(one)
            assert isinstance(one.outcome, BadAnswer)
            assert [len(later.outcomes) for later in asked[number + 1 :]] == [0] * (2 - number)
        agent.frame(0x20, b'{"request_id":0,"decision":"allow"}')
        await until(lambda: pool.requests.late == 1)
        assert foreign.outcome is None


@on_loop
async def test_answer_without_a_name_fails_a_core_request_only_when_there_is_no_doubt_which() -> None:
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool, dialect=Dialect.CORE)
        two = [Asked(pool, "waf", headers(str(n))) for n in range(2)]
        await turns()
        first, second = agent.read()
        agent.frame(0x20, b'{"decision":"allow"}')
        await until(lambda: pool.requests.late == 1)
        assert [one.outcome for one in two] == [None, None]
        agent.answer(second)
        await all_done(two[1])
        agent.frame(0x20, b'{"decision":"allow"}')
        await all_done(two[0])
        assert isinstance(two[0].outcome, BadAnswer)
        agent.answer(first)
        await until(lambda: pool.requests.late == 2)


@on_loop
async def test_answer_that_names_a_given_up_request_is_late_and_the_next_for_request_0_is_about_the_next() -> None:
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool)
        gone, kept = Asked(pool, "waf", headers("gone")), Asked(pool, "waf", headers("kept"))
        pool.requests.cancel(gone.call, CancelReason.MANUAL)
        agent.frame(0x20, b'{"request_id":0,"decision":"allow"}')
        await until(lambda: pool.requests.late == 1)
        assert kept.outcome is None, "it was about the cancelled one, which came first"
        agent.frame(0x20, b'{"request_id":0,"decision":"allow"}')
        await all_done(kept)


@on_loop
async def test_requests_by_one_correlation_id_never_get_each_others_answers() -> None:
    """Clients may choose it, so that two requests may bear the same."""
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool, dialect=Dialect.CORE)
        exchange = Exchange("waf")
        first = Asked(pool, exchange, headers("post", has_body=True, correlation_id="x-1"))
        await turns()
        (post,) = agent.read()
        agent.answer(post)
        await all_done(first)
        # Between its events nothing of the first is in flight. Made-up ids are no secret.
        names = ["x-1", "x-1", post.correlation_id, exchange.correlation_id, f"{exchange.request_id:x}"]
        others = [Asked(pool, "waf", headers(f"get {n}", correlation_id=name or "")) for n, name in enumerate(names)]
        body = Asked(pool, exchange, chunk("body"))
        await turns()
        seen = agent.read()
        assert len({found.correlation_id for found in seen}) == len(names) + 1
        written = {found.correlation_id for found in seen if tag_of(found.event) != "body"}
        assert not written & set(names), "none is as a client chose it"
        for found in seen:
            agent.answer(found)
        await all_done(body, *others)
        assert answered_tag(body.outcome) == "body"
        assert [answered_tag(other.outcome) for other in others] == [f"get {n}" for n in range(len(names))]
        assert_nothing_left(pool)


@on_loop
async def test_docs_agent_that_repeats_the_correlation_id_alone_never_answers_another_request_by_that_name() -> None:
    """A client that repeats the X-Request-Id of somebody else's request must not get its answer."""
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool, dialect=Dialect.DOCS)
        asked = [Asked(pool, "waf", headers(f"/{n}", correlation_id="x-1")) for n in range(3)]
        await turns()
        seen = agent.read()
        assert len({found.correlation_id for found in seen}) == 3
        assert "x-1" not in {found.correlation_id for found in seen}
        for found in reversed(seen):
            answer = {
                "correlation_id": found.correlation_id,
                "decision": {"block": {"status": 403, "body": tag_of(found.event)}},
            }
            agent.frame(0x20, msgspec.json.encode(answer))
        await all_done(*asked)
        assert [one.outcome for one in asked] == [Decision(Block(403, f"/{n}")) for n in range(3)]
        assert_nothing_left(pool)


@pytest.mark.parametrize("dialect", Dialect)
@on_loop
async def test_line_end_that_an_agent_repeats_for_a_client_takes_the_agent_from_nobody(dialect: Dialect) -> None:
    with pool_of_this_loop(PoolOptions(breaker_threshold=2, unhealthy_after=2)) as pool:
        agent = PairedAgent(pool, dialect=dialect)
        for number in range(4):
            evil = Asked(pool, "waf", headers(f"/{number}"))
            answer = agent.codec.encode_answer(
                ALLOWED.set_response_header("x-blocked", "/evil"), **ids_of(await next_event(agent))
            )
            agent.frame(0x20, answer[5:].replace(b"/evil", b"/e\\r\\nl"))
            await all_done(evil)
            assert isinstance(evil.outcome, BadAnswer)
        good = Asked(pool, "waf", headers("/good"))
        agent.answer(await next_event(agent))
        await all_done(good)
        assert answered_tag(good.outcome) == "/good"


@pytest.mark.parametrize("second_answer", [ALLOWED, MORE, Decision(Block(403))], ids=["allow", "more", "block"])
@pytest.mark.parametrize("dialect", Dialect)
@on_loop
async def test_second_answer_to_an_event_lets_the_next_one_not_pass_which_the_agent_has_not_got(
    dialect: Dialect, second_answer: Decision
) -> None:
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool, dialect=dialect)
        exchange = Exchange("waf")
        first = Asked(pool, exchange, headers("/", has_body=True))
        second = Asked(pool, exchange, chunk("evil", last=False), final=True)
        seen = await next_event(agent)
        answers = [agent.codec.encode_answer(one, **ids_of(seen)) for one in (ALLOWED, second_answer)]
        agent.send(b"".join(answers))
        await all_done(first, second)
        assert first.outcome == ALLOWED
        if second_answer.verdict == Block(403):
            assert second.outcome == second_answer, "a refusal is one of the whole request"
        else:
            assert isinstance(second.outcome, BadAnswer)
        assert_nothing_left(pool)


@on_loop
async def test_docs_answer_whose_two_ids_name_two_requests_allows_neither() -> None:
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool, dialect=Dialect.DOCS)
        benign, evil = Asked(pool, "waf", headers("/benign")), Asked(pool, "waf", headers("/evil"))
        await turns()
        to_benign, to_evil = agent.read()
        mixed = {"request_id": to_evil.request_id, "correlation_id": to_benign.correlation_id, "decision": "allow"}
        agent.frame(0x20, msgspec.json.encode(mixed))
        await all_done(evil)
        assert isinstance(evil.outcome, BadAnswer)
        assert benign.outcome is None
        agent.answer(to_benign)
        await all_done(benign)
        assert answered_tag(benign.outcome) == "/benign"
        assert_nothing_left(pool)


def mutation_frame(seen: Seen, index: int) -> bytes:
    """A body mutation in a frame of its own."""
    return encode_frame(0x21, b'{"request_id":%d,"chunk_index":%d,"data":"bmV3"}' % (seen.request_id or 0, index))


@pytest.mark.parametrize("dialect", [Dialect.SDK, Dialect.DOCS])
@pytest.mark.parametrize("mutation_first", [True, False], ids=["mutation first", "decision first"])
@on_loop
async def test_decision_and_mutation_for_one_chunk_never_answer_the_next_one(
    dialect: Dialect, mutation_first: bool
) -> None:
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool, dialect=dialect)
        exchange = Exchange("waf")
        first = Asked(pool, exchange, chunk("benign", 0, last=False))
        second = Asked(pool, exchange, chunk("evil", 1), final=True)
        await turns()
        (seen,) = agent.read()
        said = [mutation_frame(seen, 0), agent.codec.encode_answer(ALLOWED, **ids_of(seen))]
        for frame in said if mutation_first else reversed(said):
            agent.send(frame)
            await turns()
        assert isinstance(first.outcome, Decision)
        assert not isinstance(second.outcome, Decision), "the agent has said nothing of it"
        if second.outcome is None:
            agent.answer(await next_event(agent), Decision(Block(403)))
            await all_done(second)
            assert second.outcome == Decision(Block(403))
        assert_nothing_left(pool)


@pytest.mark.parametrize("dialect", [Dialect.SDK, Dialect.DOCS])
@on_loop
async def test_mutations_that_name_their_chunks_answer_a_whole_body(dialect: Dialect) -> None:
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool, dialect=dialect)
        exchange = Exchange("waf")
        asked = [Asked(pool, exchange, chunk(str(n), n, last=n == 2), final=n == 2) for n in range(3)]
        for number in range(3):
            seen = await next_event(agent)
            agent.send(mutation_frame(seen, number))
            agent.send(mutation_frame(seen, number))
        await all_done(*asked)
        assert [one.outcome for one in asked] == [
            Decision(ALLOW, request_body_mutation=BodyMutation(b"new", number)) for number in range(3)
        ]
        await until(lambda: pool.requests.late == 3)


@on_loop
async def test_late_mutation_of_a_request_chunk_answers_neither_the_responses_headers_nor_its_chunk() -> None:
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool)
        exchange = Exchange("waf")
        first = Asked(pool, exchange, chunk("body", 0))
        seen = await next_event(agent)
        agent.answer(seen, ALLOWED)
        await all_done(first)
        second = Asked(pool, exchange, ResponseHeaders(200, {}, True))
        answer_to_second = await next_event(agent)
        agent.send(mutation_frame(seen, 0))
        await until(lambda: pool.requests.late == 1)
        assert second.outcome is None
        agent.answer(answer_to_second, ALLOWED)
        await all_done(second)
        third = Asked(pool, exchange, ResponseBodyChunk(0, b"evil", True), final=True)
        await next_event(agent)
        agent.send(mutation_frame(seen, 0))
        await all_done(third)
        assert isinstance(third.outcome, BadAnswer)


@pytest.mark.parametrize("earlier", [ResponseBodyChunk, RequestBodyChunk])
@on_loop
async def test_late_mutation_of_a_chunk_answers_no_later_chunk_of_the_same_index(
    earlier: type[RequestBodyChunk | ResponseBodyChunk],
) -> None:
    """Of the response, which may have begun first, or of a request whose proxy counts wrongly."""
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool)
        exchange = Exchange("waf")
        first = Asked(pool, exchange, earlier(0, b"benign", False))
        seen = await next_event(agent)
        agent.answer(seen, ALLOWED)
        await all_done(first)
        second = Asked(pool, exchange, chunk("evil", 0), final=True)
        await next_event(agent)
        agent.send(mutation_frame(seen, 0))
        await all_done(second)
        assert isinstance(second.outcome, BadAnswer)


def ids_of(seen: Seen) -> dict[str, Any]:
    """What an answer to it names."""
    return {"request_id": seen.request_id, "correlation_id": seen.correlation_id}
