"""Turns for work that must not keep agents waiting, and the share of the processor that it gets."""

from time import monotonic, thread_time

from hypothesis import given
from hypothesis import strategies as st
from support.loop import Loop, scenario

from ipc.turns import Share, Turns


@given(st.lists(st.tuples(st.floats(0, 0.2), st.floats(0, 1)), max_size=50))
def test_share_is_never_exceeded_by_more_than_the_burst_and_one_piece(pieces: list[tuple[float, float]]) -> None:
    share, now, spent = Share(0.1, 0.05, 0.0), 0.0, 0.0
    for seconds, pause in pieces:
        now += pause + share.wait(now + pause)
        assert share.wait(now) < 1e-6
        assert spent <= 0.05 + 0.1 * now + 1e-6
        spent += seconds
        share.spend(seconds, now)


def test_what_was_not_used_is_saved_up_to_the_burst() -> None:
    share = Share(0.1, 0.05, 0.0)
    share.spend(0.05, 1000.0)
    assert share.wait(1000.0) == 0
    share.spend(0.01, 1000.0)
    assert abs(share.wait(1000.0) - 0.1) < 1e-9
    assert share.wait(1000.2) == 0


@scenario
async def test_owners_take_turns_and_each_ones_pieces_stay_in_their_order(loop: Loop) -> None:
    turns, seen = Turns(), []
    for i in range(3):
        for owner in ("many", "few") if i == 0 else ("many",):
            turns.take(owner, lambda told=(owner, i): seen.append(told))  # type: ignore[misc]
    await loop.until(lambda: len(seen) == 4, "all pieces")
    assert seen == [("many", 0), ("few", 0), ("many", 1), ("many", 2)]


@scenario
async def test_piece_that_fails_is_told_and_stops_no_other(loop: Loop) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    turns, seen = Turns(), []
    turns.take("a", fail)
    turns.take("a", lambda: seen.append(1))
    await loop.until(lambda: seen, "the next piece")
    assert [type(error["exception"]) for error in loop.errors] == [ZeroDivisionError]
    loop.errors.clear()


@scenario
async def test_nothing_runs_after_the_close(loop: Loop) -> None:
    turns, seen = Turns(), []
    turns.take("a", lambda: seen.append(1))
    turns.close()
    await loop.turns(5)
    assert seen == []


@scenario
async def test_busy_owner_gets_its_share_of_the_processor(loop: Loop) -> None:
    turns, used = Turns(Share(0.1, 0.01, monotonic())), 0.0
    began = monotonic()

    def burn() -> None:
        nonlocal used
        before = thread_time()
        while thread_time() - before < 0.002:
            pass
        used += thread_time() - before
        turns.take("busy", burn)

    turns.take("busy", burn)
    await loop.until(lambda: used > 0.04, "some turns")
    turns.close()
    assert used <= 0.01 + 0.1 * (monotonic() - began) + 0.02
