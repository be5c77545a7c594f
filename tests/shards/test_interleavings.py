"""Two agents that say anything in any order, and callers that cancel and lose patience: the engine's promises hold.

Both ends are in this process and the sockets are real. Every usable answer of an agent names the event that it answers,
so that an answer which is given to another event, or made of nothing, shows.
"""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.engine import Asked, PairedAgent, Seen, answered_tag, chunk, headers, pool_of_this_loop, run, tag_of, turns
from support.fences import descriptors, new_descriptors
from support.pools import until

from dialout import CancelReason, Decision, Dialect
from dialout.proxy.errors import BadAnswer, ConnectionLost, PoolError
from ipc.options import PoolOptions, Strategy
from shards.calls import Exchange
from shards.pending import Pending
from shards.pool import AgentPool

AGENTS = ("a", "b")

NEWS = {
    Dialect.SDK: [
        (0xF0, b'{"timestamp":5}'),
        (0xF1, b'{"timestamp":5}'),
        (0xE1, b'{"healthy":true}'),
        (0xE3, b'{"requests_processed":3}'),
        (0x20, b""),
        (0x77, b"what"),
    ],
    Dialect.CORE: [
        (0x41, b'{"sequence":1,"timestamp_ms":5}'),
        (0x42, b'{"sequence":1,"timestamp_ms":5}'),
        (0x30, b'{"agent_id":"a","state":"degraded","timestamp_ms":1}'),
        (0x31, b'{"agent_id":"a","counters":[]}'),
        (0x33, b'{"correlation_id":null,"action":"pause","timestamp_ms":1}'),
        (0x33, b'{"correlation_id":null,"action":"resume","timestamp_ms":1}'),
        (0x33, b'{"correlation_id":null,"action":2,"timestamp_ms":1}'),
        (0x77, b"what"),
    ],
}
NEWS[Dialect.DOCS] = NEWS[Dialect.SDK]

# Answers that name no request.
NAMELESS = [
    (0x20, payload)
    for payload in (b'{"request_id":0,"decision":"allow"}', b"{", b"[]", b'{"decision":"allow"}', b"\xff", b"null")
]

# What a decision may not be; each is put beside the ids of an event.
USELESS = [
    b"",
    b',"decision":null',
    b',"decision":"perhaps"',
    b',"decision":{}',
    b',"decision":{"allow":true}',
    b',"decision":{"block":{}}',
    b',"decision":{"block":{"status":1}}',
    b',"decision":"allow","request_headers":[{"operation":"sing","name":"x"}]',
    b',"decision":"allow"',  # and a brace that is missing
]

CLOSING = [
    b"\x00\x00\x00\x00",
    b"\x01\x00\x00\x01\x20",
    b"\xff\xff\xff\xff\x20",
    b"\x00",
    b"\x00\x00\x00\x0a\x20{",
]

# Clients may choose the correlation id, so that several requests have the same.
SAME = ("", "same", "same")

STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["ask"] * 4
            + ["ask more"] * 2
            + ["answer"] * 6
            + ["useless"] * 2
            + ["foreign"] * 2
            + ["again", "nameless", "nameless", "news", "any", "close", "break", "cancel", "finish", "hasty"]
        ),
        st.integers(0, 2),
        st.integers(0, 8),
        st.binary(max_size=6),
    ),
    min_size=5,
    max_size=40,
)


class World:
    """A pool, two agents (the first one with two connections), and all that was asked."""

    def __init__(self, pool: AgentPool, dialects: tuple[Dialect, Dialect]) -> None:
        self.pool = pool
        self.dialects = dict(zip(AGENTS, dialects, strict=True))
        self.ends = [self.connect("a"), self.connect("a"), self.connect("b")]
        self.unanswered: dict[PairedAgent, list[Seen]] = {end: [] for end in self.ends}
        self.answered: dict[PairedAgent, list[Seen]] = {}
        self.asked: list[Asked] = []
        self.exchanges: list[Exchange] = []
        self.tagged: set[str] = set()

    def connect(self, agent_id: str) -> PairedAgent:
        """A new connection of an agent."""
        return PairedAgent(self.pool, agent_id, self.dialects[agent_id])

    def new_tag(self) -> str:
        """What the next event will be known by."""
        return f"/{len(self.asked)}"

    def outcomes_but(self, agent_id: str) -> int:
        """How many requests of the other agent have an outcome."""
        return sum(len(asked.outcomes) for asked in self.asked if asked.exchange.agent_id != agent_id)

    def look(self) -> None:
        """Have every agent read what has come."""
        for end, events in self.unanswered.items():
            events += [seen for seen in end.read() if seen.is_event]

    def check(self) -> None:
        """What holds at every moment."""
        requests = self.pool.requests
        undone = [asked for asked in self.asked if asked.outcome is None]
        assert requests.in_flight == len(undone)
        assert len(self.asked) == requests.answered + requests.failed.total() + requests.in_flight
        assert len(requests._deadlines) == len(undone)
        for asked in self.asked:
            if isinstance(asked.outcome, Decision):
                assert answered_tag(asked.outcome) == tag_of(asked.event), "the answer to another event, or to none"
                assert tag_of(asked.event) in self.tagged, "an answer that no agent gave"
        for connection in self.pool.connections.values():
            pending = connection.pending or Pending(connection.kind.dialect)
            assert connection.in_flight == sum(not call.done for call in pending.values())
            assert pending.abandoned == sum(call.done for call in pending.values())
            assert all(call.connection is connection for call in pending.values())


async def step(world: World, deed: str, which: int, number: int, raw: bytes) -> None:
    end = world.ends[which]
    events = world.unanswered[end]
    agent_id = end.agent_id
    if deed == "ask":
        world.asked.append(Asked(world.pool, agent_id, headers(world.new_tag(), correlation_id=SAME[number % 3])))
    elif deed == "ask more":
        ask_more(world, agent_id, number)
    elif deed == "hasty":
        hasty = Asked(world.pool, agent_id, headers(world.new_tag()), 0.001)
        world.asked.append(hasty)
        await until(lambda: hasty.outcome is not None)
    elif deed == "cancel":
        # The newest, and some that have had their outcome for long.
        mine = [asked for asked in reversed(world.asked) if asked.exchange.agent_id == agent_id]
        for asked in mine[number : number + 1]:
            world.pool.requests.cancel(asked.call, CancelReason.CLIENT_DISCONNECT)
            assert asked.outcome is not None
    elif deed == "finish":
        for exchange in world.exchanges[number : number + 1]:
            world.pool.requests.finish(exchange)
    elif deed == "answer" and events:
        await answer(world, end, events.pop(number % len(events)))
    elif deed == "useless" and events:
        await answer_uselessly(world, end, events.pop(number % len(events)), number)
    else:
        await misbehave(world, which, deed, number, raw)


def ask_more(world: World, agent_id: str, number: int) -> None:
    """An event of a request that has more than one."""
    mine = [exchange for exchange in world.exchanges if exchange.agent_id == agent_id]
    if number < len(mine):
        world.asked.append(Asked(world.pool, mine[number], chunk(world.new_tag(), last=False), final=number == 3))
    else:
        exchange = Exchange(agent_id, session="s" if number == 8 else None)
        world.exchanges.append(exchange)
        event = headers(world.new_tag(), has_body=True, correlation_id=SAME[number % 3])
        world.asked.append(Asked(world.pool, exchange, event))


async def answer(world: World, end: PairedAgent, seen: Seen) -> None:
    tag = tag_of(seen.event)
    world.tagged.add(tag)
    (asked,) = [asked for asked in world.asked if tag_of(asked.event) == tag]
    waited = asked.outcome is None
    if isinstance(asked.outcome, BadAnswer) and seen.correlation_id == "same":
        return  # It has been answered, badly: a second answer would be the answer to the next one of that name.
    end.answer(seen)
    if asked.exchange not in world.exchanges and seen.correlation_id != "same":
        # Of a request with more events a second answer would be the answer to the next one.
        world.answered.setdefault(end, []).append(seen)
    await turns()
    if waited and end.connection.fd >= 0:
        assert isinstance(asked.outcome, Decision), "a good answer answers its event"


async def answer_uselessly(world: World, end: PairedAgent, seen: Seen, number: int) -> None:
    (asked,) = [asked for asked in world.asked if tag_of(asked.event) == tag_of(seen.event)]
    waited = asked.outcome is None
    ids = b'{"request_id":%d' % (seen.request_id or 0)
    if end.dialect is Dialect.CORE:
        assert seen.correlation_id is not None
        ids = b'{"audit":{"custom":{"correlation_id":"%b"}}' % seen.correlation_id.encode()
    useless = USELESS[number % len(USELESS)]
    end.frame(0x20, ids + useless + (b"" if useless is USELESS[-1] else b"}"))
    await turns()
    if waited and end.connection.fd >= 0:
        assert isinstance(asked.outcome, BadAnswer), asked.outcome


def answer_for_others(world: World, end: PairedAgent, other: PairedAgent) -> None:
    """Answers by the ids of another connection's requests, or of none.

    Callers may choose the same correlation id for requests to two agents: then it is this one's own request, too.
    """
    own = end.connection.pending or ()
    unanswered = [seen for seen in world.unanswered[other][:2] if seen.correlation_id not in own]
    for seen in unanswered or [Seen(12345, "12345", None)]:
        request_id, correlation_id = seen.request_id or 12345, seen.correlation_id or "12345"
        more = Decision(None, needs_more=True)
        end.send(end.codec.encode_answer(more, request_id=request_id, correlation_id=correlation_id))
        both = (request_id, correlation_id.encode(), correlation_id.encode())
        end.frame(
            0x20,
            b'{"request_id":%d,"correlation_id":"%b","decision":"allow",'
            b'"audit":{"custom":{"correlation_id":"%b"}}}' % both,
        )
        end.frame(0x21, b'{"request_id":%d,"chunk_index":0}' % request_id)


async def misbehave(world: World, which: int, deed: str, number: int, raw: bytes) -> None:
    """What an agent may do besides answering; none of it is any affair of the other agent."""
    end = world.ends[which]
    others = world.outcomes_but(end.agent_id)
    waited = [asked for asked in world.asked if asked.outcome is None]
    closes = False
    if deed == "foreign":
        answer_for_others(world, end, world.ends[(which + 1 + number % 2) % 3])
    elif deed == "again" and world.answered.get(end):
        end.answer(world.answered[end][number % len(world.answered[end])])
    elif deed == "any":
        end.frame(number * 7 % 256 if number else 0x21, raw)
    elif deed in {"nameless", "news"}:
        frames = NAMELESS if deed == "nameless" else NEWS[end.dialect]
        end.frame(*frames[number % len(frames)])
    elif deed == "close":
        end.close()
        closes = True
    elif deed == "break":
        end.send(CLOSING[number % len(CLOSING)])
        if number % len(CLOSING) >= 3:
            end.close()  # Inside a frame.
        closes = True
    await turns()
    assert world.outcomes_but(end.agent_id) == others, "another agent's request was touched"
    ended = [asked for asked in waited if asked.outcome is not None]
    assert not any(isinstance(asked.outcome, Decision) for asked in ended), "an answer out of nothing"
    if deed in {"foreign", "again"}:
        assert not ended, "a request was failed by an answer that is not for it"
    if not closes:
        assert len({id(asked.exchange) for asked in ended}) <= 1, "one bad frame costs one request at most"
    if closes:
        await until(lambda: end.connection.fd < 0)
        end.close()
        del world.unanswered[end]
        world.ends[which] = fresh = world.connect(end.agent_id)
        world.unanswered[fresh] = []


def play(
    dialects: tuple[Dialect, Dialect], options: PoolOptions, steps: list[tuple[str, int, int, bytes]]
) -> Callable[[], object]:
    async def test() -> None:
        with pool_of_this_loop(options) as pool:
            world = World(pool, dialects)
            for deed, which, number, raw in steps:
                await step(world, deed, which, number, raw)
                await turns()
                world.look()
                world.check()
            pool.close()
            world.look()
            world.check()
            assert pool.requests.in_flight == 0
            for asked in world.asked:
                assert len(asked.outcomes) == 1
            assert all(end.at_end or end.sock.fileno() < 0 for end in world.ends), "every descriptor was closed"
            for end in world.ends:
                end.close()

    return test


@pytest.mark.parametrize(
    "dialects", [(Dialect.SDK, Dialect.CORE), (Dialect.CORE, Dialect.DOCS), (Dialect.DOCS, Dialect.SDK)]
)
@settings(max_examples=60)
@given(st.sampled_from(Strategy), st.sampled_from([1, 2, 100]), STEPS)
def test_engine_keeps_its_promises_whatever_agents_and_callers_do(
    dialects: tuple[Dialect, Dialect], strategy: Strategy, concurrent: int, steps: list[tuple[str, int, int, bytes]]
) -> None:
    before = descriptors()
    options = PoolOptions(
        strategy=strategy,
        max_concurrent_per_connection=concurrent,
        unhealthy_after=1000,
        breaker_threshold=1000,
        request_timeout=60,
    )
    run(play(dialects, options, steps))  # type: ignore[arg-type]
    assert new_descriptors(before) == []


@pytest.mark.parametrize("dialect", Dialect)
@settings(max_examples=60)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=8))
def test_pool_survives_any_bytes_and_serves_the_other_agent(dialect: Dialect, pieces: list[bytes]) -> None:
    async def test() -> None:
        with pool_of_this_loop() as pool:
            wild, tame = PairedAgent(pool, "wild", dialect), PairedAgent(pool, "tame", dialect)
            doomed, served = Asked(pool, "wild", headers("/wild")), Asked(pool, "tame", headers("/tame"))
            for piece in pieces:
                wild.send(piece)
                await turns()
            (seen,) = tame.read()
            tame.answer(seen)
            await until(lambda: served.outcome is not None)
            assert answered_tag(served.outcome) == "/tame"
            wild.close()
            await until(lambda: doomed.outcome is not None)
            assert isinstance(doomed.outcome, PoolError), "never an allow"
            if isinstance(doomed.outcome, ConnectionLost):
                assert not doomed.outcome.retry_safe, "it was written, so the agent may have seen it"
            tame.close()

    run(test)
