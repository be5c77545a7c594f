"""Connections that end, or do not read, with requests on them: what may be sent again, and what may not."""

from support.engine import (
    Asked,
    PairedAgent,
    all_done,
    answered_tag,
    assert_nothing_left,
    chunk,
    headers,
    on_loop,
    pool_of_this_loop,
    turns,
)
from support.pools import until

from dialout.proxy.errors import ConnectionLost, Overloaded
from ipc.events import CloseCode
from ipc.options import PoolOptions
from shards.calls import Exchange


@on_loop
async def test_only_what_the_agent_has_certainly_not_seen_goes_to_a_sibling_and_only_once() -> None:
    with pool_of_this_loop(PoolOptions(full_at=10_000_000)) as pool:
        deaf = PairedAgent(pool, send_buffer=4096)
        exchange = Exchange("waf")
        first = Asked(pool, exchange, headers("first", has_body=True))
        await turns()
        deaf.answer(deaf.read()[0])
        await all_done(first)
        seen = Asked(pool, "waf", headers("seen"))
        await turns()
        # A large one fills the socket; what is behind it waits here.
        partly = Asked(pool, "waf", headers("/" + "x" * 1_000_000))
        await turns()
        waiting = [Asked(pool, "waf", headers(f"waiting {n}")) for n in range(3)]
        later = Asked(pool, exchange, chunk("later"))
        await turns()
        sibling = PairedAgent(pool, send_buffer=4096)
        deaf.close()
        await all_done(seen, later)
        assert isinstance(seen.outcome, ConnectionLost)
        assert not seen.error.retry_safe, "it was written: a rate limiter may have counted it"
        assert isinstance(later.outcome, ConnectionLost)
        assert later.error.retry_safe, "the agent has not seen it, but it belongs to what was said before"
        assert [len(one.outcomes) for one in (partly, *waiting)] == [0] * 4
        assert sibling.connection.in_flight == 4
        third = PairedAgent(pool)
        sibling.close()
        await all_done(partly, *waiting)
        assert {(type(one.outcome), one.error.retry_safe) for one in (partly, *waiting)} == {(ConnectionLost, True)}
        await turns()
        assert third.read() == [], "once, and not from one to the next"
        assert_nothing_left(pool)


@on_loop
async def test_what_goes_to_a_sibling_is_answered_there() -> None:
    with pool_of_this_loop() as pool:
        first = PairedAgent(pool)
        asked = [Asked(pool, "waf", headers(str(n))) for n in range(3)]
        sibling = PairedAgent(pool)
        first.connection.close(CloseCode.KICKED, "before anything was written")
        await turns()
        assert (first.read(), first.at_end) == ([], True)
        for seen in sibling.read():
            sibling.answer(seen)
        await all_done(*asked)
        assert [answered_tag(one.outcome) for one in asked] == ["0", "1", "2"]
        assert_nothing_left(pool)


@on_loop
async def test_agent_that_does_not_read_is_full_and_in_the_end_closed_and_others_are_served() -> None:
    options = PoolOptions(full_at=50_000, close_at=2_000_000)
    with pool_of_this_loop(options) as pool:
        deaf, quick = PairedAgent(pool, "deaf", send_buffer=4096), PairedAgent(pool, "quick")
        exchange = Exchange("deaf")
        Asked(pool, exchange, headers("/" + "x" * 100_000, has_body=True))
        await turns()
        refused = Asked(pool, "deaf", headers())
        assert isinstance(refused.outcome, Overloaded)
        assert refused.error.retry_safe
        served = Asked(pool, "quick", headers("quick"))
        await turns()
        quick.answer(quick.read()[0])
        await all_done(served)
        # What belongs to a request that has begun is still taken, up to the hard limit.
        huge = [Asked(pool, "deaf", headers("/" + "x" * 1_000_000)) for _ in range(3)]
        assert {type(one.outcome) for one in huge} == {Overloaded}
        deaf.connection.send(b"\x00" * 2_000_000)
        await until(lambda: deaf.connection.fd < 0)
        assert quick.connection.fd >= 0
        assert_nothing_left(pool)
