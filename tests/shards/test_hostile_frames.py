"""Frames that are sent to cost: they cost their own connection, and no other one."""

import struct
from typing import Final

import pytest
from structlog.testing import capture_logs
from support.engine import Asked, PairedAgent, all_done, chunk, headers, on_loop, pool_of_this_loop, turns
from support.pools import until

from dialout import ALLOW, Decision, Dialect, encode_frame
from dialout.codec import Codec
from dialout.decisions import BodyMutation
from dialout.frames import MAX_FRAME_LENGTH
from dialout.proxy.errors import BadAnswer
from ipc.events import CloseCode, Gone
from ipc.options import PoolOptions
from shards import connection as connections
from shards.calls import Exchange
from shards.pool import UPKEEP_SECONDS, AgentPool
from shards.stream import READ_SIZE, SMALL_READ

FLOATS: Final = b'{"request_id":1,"decision":"allow","audit":{"custom":{"a":[%b0]}}}' % (b"1e308," * 10_000)
HELD: Final = PoolOptions(max_held_bytes=1_000_000, frame_timeout=UPKEEP_SECONDS * 3)


class Ends:
    """How the connections of a pool ended."""

    def __init__(self) -> None:
        self.gone: list[Gone] = []

    def of(self, agent_id: str) -> list[tuple[str, str]]:
        """Code and detail of each."""
        return [(one.code, one.detail) for one in self.gone if one.agent_id == agent_id]


async def pieces_sent(agent: PairedAgent, data: bytes) -> None:
    """Send all of it as the pool reads."""
    view = memoryview(data)
    while view and agent.connection.fd >= 0:
        try:
            view = view[agent.sock.send(view[:65_536]) :]
        except BlockingIOError:
            await turns()
        except (BrokenPipeError, ConnectionResetError):
            return
        await turns()


def ending(pool: AgentPool) -> Ends:
    """Note how its connections end."""
    ends = Ends()
    pool._on_closed = ends.gone.append
    return ends


@on_loop
async def test_answer_that_nobody_waits_for_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pool_of_this_loop() as pool:
        decoded: list[int] = []
        agents = [PairedAgent(pool, dialect, dialect=dialect) for dialect in Dialect]
        monkeypatch.setattr(Codec, "decode", lambda _, kind, __: decoded.append(kind))
        for agent in agents:
            agent.frame(0x20, FLOATS)
        await until(lambda: pool.requests.late == len(agents))
        assert decoded == []
        monkeypatch.undo()


@on_loop
async def test_costly_answer_fails_its_request_at_once_and_no_other() -> None:
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool)
        poisoned, good = Asked(pool, "waf", headers("one")), Asked(pool, "waf", headers("two"))
        await turns()
        first, second = agent.read()
        agent.frame(0x20, FLOATS.replace(b":1,", b":%d," % (first.request_id or 0), 1))
        agent.answer(second)
        await all_done(poisoned, good)
        assert isinstance(poisoned.outcome, BadAnswer)
        assert "costly" in str(poisoned.outcome)
        assert isinstance(good.outcome, Decision)


@on_loop
async def test_frame_above_the_limit_is_refused_from_its_length() -> None:
    with pool_of_this_loop() as pool:
        ends = ending(pool)
        agent = PairedAgent(pool)
        Asked(pool, "waf", headers())
        await turns()
        agent.send(struct.pack(">I", 1024 * 1024 + 1))
        await until(lambda: agent.connection.fd < 0)
        [(code, detail)] = ends.of("waf")
        assert (code, "1048577 bytes" in detail) == (CloseCode.BAD_FRAME, True)


@on_loop
async def test_answer_may_be_as_large_as_a_frame_while_a_chunk_waits_for_it_and_not_after() -> None:
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool, dialect=Dialect.CORE)
        exchange = Exchange("waf")
        first = Asked(pool, exchange, headers(has_body=True))
        await turns()
        agent.answer(agent.read()[0])
        await all_done(first)
        second = Asked(pool, exchange, chunk())
        await turns()
        [seen] = agent.read()
        body = b"x" * 3_000_000
        changed = Decision(ALLOW, request_body_mutation=BodyMutation(body, 0))
        frame = agent.codec.encode_answer(changed, request_id=seen.request_id, correlation_id=seen.correlation_id)
        await pieces_sent(agent, frame)
        await all_done(second)
        assert isinstance(second.outcome, Decision)
        assert second.outcome.request_body_mutation == BodyMutation(body, 0)
        assert agent.connection.decoder.limit < MAX_FRAME_LENGTH
        await pieces_sent(agent, frame)
        await until(lambda: agent.connection.fd < 0)


@pytest.mark.parametrize(
    "hostile",
    [
        encode_frame(0x20, b'{"request_id":1,"decision":%b}' % (b'"' + b"x" * 300_000 + b'"')),
        encode_frame(0x20, b'{"request_id":1,"audit":{' + b'"confidence":1e307,' * 25 + b'"confidence":1}}') * 200,
        encode_frame(0xF0, b'{"timestamp":1}') * 3000,
        encode_frame(0x77, b"x") * 10_000,
        encode_frame(0xE3, b'{"custom":{' + b'"a":1,' * 10_000 + b'"b":1}}'),
    ],
    ids=["large", "small and costly", "pings", "unknown", "reports"],
)
@on_loop
async def test_connection_whose_frames_cost_more_than_they_are_worth_is_closed(hostile: bytes) -> None:
    with pool_of_this_loop() as pool:
        ends = ending(pool)
        agent, other = PairedAgent(pool, "hostile"), PairedAgent(pool)
        # What it has to answer makes its answers worth a look.
        Asked(pool, "hostile", headers())
        while agent.connection.fd >= 0:
            await pieces_sent(agent, hostile)
            agent.frames()
        [(code, detail)] = ends.of("hostile")
        assert (code, "processor" in detail) == (CloseCode.BAD_FRAME, True)
        assert other.connection.fd >= 0
        # The debt is the agent's, not the connection's.
        again = PairedAgent(pool, "hostile")
        await pieces_sent(again, hostile * 3)
        await until(lambda: again.connection.fd < 0)


@on_loop
async def test_connection_that_answers_what_it_is_asked_is_not_closed_for_its_work() -> None:
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool)
        for _ in range(100):
            asked = [Asked(pool, "waf", headers(str(number))) for number in range(50)]
            await turns()
            for seen in agent.read():
                agent.answer(seen)
            agent.frame(0xE1, b'{"state":"healthy"}')
            await all_done(*asked)
        assert agent.connection.fd >= 0


@on_loop
async def test_read_takes_few_frames_until_an_agent_has_answered_a_read_full() -> None:
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool)
        tiny = struct.pack(">IB", 1, 0x77) * 5000
        agent.send(tiny)
        agent.connection.read()
        assert 0 < agent.connection.frames <= SMALL_READ // 5
        await until(lambda: agent.connection.frames == 5000)
        asked = [Asked(pool, "waf", headers(str(number))) for number in range(100)]
        await turns()
        for seen in agent.read():
            agent.answer(seen)
        await all_done(*asked)
        assert agent.connection.read_size == READ_SIZE
        agent.send(tiny[:5])
        await until(lambda: agent.connection.frames == 5101)
        assert agent.connection.read_size == SMALL_READ


@on_loop
async def test_useless_frames_count_however_few_of_them_come_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # No read takes long enough to be looked at.
    monkeypatch.setattr(connections, "SUSPICIOUS", 1000.0)
    with pool_of_this_loop() as pool:
        ends = ending(pool)
        agent, other = PairedAgent(pool, "hostile"), PairedAgent(pool)
        few = struct.pack(">IB", 1, 0x77) * 100
        while agent.connection.fd >= 0 and agent.connection.frames < 500_000:
            await pieces_sent(agent, few)
        [(code, detail)] = ends.of("hostile")
        assert (code, "processor" in detail) == (CloseCode.BAD_FRAME, True)
        assert other.connection.fd >= 0


@on_loop
async def test_log_names_the_connection_whose_frames_hold_everything_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SLOW_READ", 0.0)
    with capture_logs() as lines, pool_of_this_loop() as pool:
        agent = PairedAgent(pool)
        agent.frame(0x77, b"x" * 30_000)
        await until(lambda: agent.connection.frames)
        await until(lambda: [line for line in lines if "held everything up" in line["event"]])
    assert lines[0]["connection_id"] == agent.connection.connection_id


@pytest.mark.parametrize(("dialect", "ping"), [(Dialect.SDK, 0xF0), (Dialect.CORE, 0x41), (Dialect.DOCS, 0xF0)])
@on_loop
async def test_ping_above_its_limit_is_a_bad_frame_and_others_are_not_repeated(dialect: Dialect, ping: int) -> None:
    with pool_of_this_loop() as pool:
        ends = ending(pool)
        agent = PairedAgent(pool, dialect=dialect)
        agent.frame(ping, b'{"timestamp":5,"sequence":5,"mine":"%b"}' % (b"x" * 900))
        await until(lambda: agent.connection.frames)
        await turns()
        [(_, pong)] = agent.frames()
        assert pong in {b'{"timestamp":5}', b'{"sequence":5}'}
        agent.frame(ping, b'{"mine":"%b"}' % (b"x" * 1100))
        await until(lambda: agent.connection.fd < 0)
        [(code, detail)] = ends.of("waf")
        assert (code, detail.startswith("a ping of 1111 bytes")) == (CloseCode.BAD_FRAME, True)


# --- what is held ------------------------------------------------------------------------------------


@on_loop
async def test_unfinished_frames_have_one_budget_and_the_largest_goes() -> None:
    with pool_of_this_loop(HELD) as pool:
        ends = ending(pool)
        small, large = PairedAgent(pool, "small"), PairedAgent(pool, "large")
        half = struct.pack(">IB", 900_000, 0x77)
        await pieces_sent(small, half + bytes(300_000))
        await pieces_sent(large, half + bytes(600_000))
        assert pool.holding.total == 900_010
        more = PairedAgent(pool, "more")
        await pieces_sent(more, half + bytes(200_000))
        await until(lambda: large.connection.fd < 0)
        [(code, detail)] = ends.of("large")
        assert (code, "unfinished frame" in detail) == (CloseCode.BAD_FRAME, True)
        await turns()
        assert small.connection.fd >= 0
        assert more.connection.fd >= 0
        assert pool.holding.total == 500_010
        more.close()
        await until(lambda: more.connection.fd < 0)
        assert pool.holding.total == 300_005
        # What is complete is held no more.
        await pieces_sent(small, bytes(899_999 - 300_000))
        await until(lambda: small.connection.frames == 1)
        await turns()
        assert (pool.holding.total, len(pool.holding)) == (0, 0)


@on_loop
async def test_what_agents_do_not_read_is_in_the_same_budget() -> None:
    with pool_of_this_loop(HELD) as pool:
        ends = ending(pool)
        deaf, half = PairedAgent(pool, "deaf", send_buffer=4096), PairedAgent(pool, "half")
        await pieces_sent(half, struct.pack(">IB", 900_000, 0x77) + bytes(400_000))
        deaf.connection.send(b"\x00" * 500_000)
        await turns()
        assert pool.holding.total > 900_000
        deaf.connection.send(b"\x00" * 200_000)
        await until(lambda: deaf.connection.fd < 0)
        [(code, detail)] = ends.of("deaf")
        assert (code, "wait for it" in detail) == (CloseCode.NOT_READING, True)
        assert half.connection.fd >= 0
        assert pool.holding.total == 400_005


@on_loop
async def test_small_frames_for_an_agent_that_does_not_read_pile_up_as_bytes_not_as_objects() -> None:
    with pool_of_this_loop() as pool:
        agent = PairedAgent(pool, send_buffer=4096)
        agent.connection.send(b"\x00" * 1_000_000)
        await turns()
        before = agent.connection.waiting_bytes
        for _ in range(10_000):
            agent.connection.send(b"12345")
        assert agent.connection.waiting_bytes == before + 50_000
        assert [len(one) for one in agent.connection.out or ()] == [50_000]
        assert agent.connection.unsent.endswith(b"\x00" + b"12345" * 10_000)


@on_loop
async def test_frame_that_is_not_completed_in_time_ends_its_connection() -> None:
    with pool_of_this_loop(HELD) as pool:
        ends = ending(pool)
        slow, idle, piecemeal = PairedAgent(pool, "slow"), PairedAgent(pool, "idle"), PairedAgent(pool, "piecemeal")
        slow.send(b"\x00")
        await until(lambda: pool.holding.total)
        for _ in range(3):
            pool._upkeep()
            # A frame is completed, and the next one has begun.
            piecemeal.send(b"\x00\x00\x01w\x00" if piecemeal.connection.frames else b"\x00\x00\x00\x01w\x00")
            await turns()
            assert slow.connection.fd >= 0
        slow.send(b"\x00")
        await turns()
        pool._upkeep()
        assert slow.connection.fd < 0
        assert ends.of("slow") == [(CloseCode.BAD_FRAME, "a frame was not complete after 3 s")]
        assert idle.connection.fd >= 0
        assert piecemeal.connection.fd >= 0
        assert piecemeal.connection.frames == 3
