"""Kicks: a connection takes nothing new, is let finish what it has, and is closed with its reason."""

from support.engine import Asked, PairedAgent, headers, pool_of_this_loop, run, turns
from support.pools import until

from dialout.proxy.errors import ConnectionLost
from ipc.events import CloseCode, Gone, Kick
from shards.kicks import Kicks


def test_a_kicked_connection_answers_what_is_in_flight_and_takes_nothing_new() -> None:
    async def test() -> None:
        with pool_of_this_loop() as pool:
            gone: list[Gone] = []
            pool._on_closed = gone.append
            kicks = Kicks(pool)
            first, other = PairedAgent(pool), PairedAgent(pool)
            asked = [Asked(pool, "waf", headers(str(n))) for n in range(2)]
            await turns()
            kicks.order(Kick([first.connection.number, 999], 30.0))
            new = Asked(pool, "waf", headers("new"))
            await turns()
            [mine] = first.read()
            theirs = other.read()
            assert len(theirs) == 2, "the new one went elsewhere"
            assert first.connection.fd >= 0
            first.answer(mine)
            for seen in theirs:
                other.answer(seen)
            await until(lambda: gone)
            assert [(one.number, one.code) for one in gone] == [(first.connection.number, CloseCode.KICKED)]
            await until(lambda: all(len(one.outcomes) == 1 for one in (*asked, new)))
            assert not any(isinstance(one.outcome, Exception) for one in (*asked, new))
            kicks.close()

    run(test)


def test_a_kick_whose_time_is_up_fails_what_is_in_flight() -> None:
    async def test() -> None:
        with pool_of_this_loop() as pool:
            kicks = Kicks(pool)
            agent = PairedAgent(pool)
            asked = Asked(pool, "waf", headers("h"))
            await turns()
            kicks.order(Kick([agent.connection.number], 0.0))
            await until(lambda: asked.outcomes)
            assert isinstance(asked.outcome, ConnectionLost)
            assert "kicked by an operator" in str(asked.outcome)
            kicks.close()

    run(test)
