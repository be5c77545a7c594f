"""Answers that take time to make: made once for all who ask, in steps, and given again for as long as they cost."""

import asyncio
from time import thread_time

import pytest
from support.loop import Loop, scenario
from support.waiting import until

from ipc.turns import Turns
from supervisor.admin import renderings
from supervisor.admin.http import TEXT, Response
from supervisor.admin.renderings import KEPT_TIMES, Renderings, Steps


@pytest.fixture
def loop() -> Loop:
    """An event loop for scenarios."""
    return Loop()


def steps(made: list[int], number: int = 3, seconds: float = 0.0) -> Steps:
    """Makes an answer of its own in *number* steps, each of which takes so much of the processor."""
    for _ in range(number - 1):
        burn(seconds)
        yield
    burn(seconds)
    made.append(len(made))
    return Response(200, TEXT, str(len(made)).encode())


def empty() -> tuple[Renderings, list[int]]:
    """No answer yet, and the numbers of those that are made."""
    return Renderings(Turns()), []


def burn(seconds: float) -> None:
    end = thread_time() + seconds
    while thread_time() < end:
        pass


async def answer(kept: Renderings, key: str, made: list[int], number: int = 3, seconds: float = 0.0) -> bytes:
    found = kept.get(key, lambda: steps(made, number, seconds))
    return found.body if isinstance(found, Response) else (await found).body


@scenario
async def test_all_who_ask_meanwhile_get_the_same_answer(loop: Loop) -> None:
    kept, made = empty()
    found = await asyncio.gather(*(answer(kept, "a", made) for _ in range(10)))
    assert (found, made) == ([b"1"] * 10, [0])
    assert await answer(kept, "b", made) == b"2"


@scenario
async def test_one_who_hangs_up_takes_the_answer_from_nobody(loop: Loop) -> None:
    kept, made = empty()
    first = asyncio.create_task(answer(kept, "a", made))
    second = asyncio.create_task(answer(kept, "a", made))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == b"1"


@scenario
async def test_answer_is_given_again_for_as_long_as_it_was_dear(loop: Loop) -> None:
    kept, made = empty()
    assert await answer(kept, "cheap", made, 1) == b"1"
    await until(lambda: made_again(kept, "cheap", made), "a fresh answer")
    assert await answer(kept, "dear", made, 2, 0.5 / KEPT_TIMES) == str(len(made)).encode()
    before = len(made)
    assert await answer(kept, "dear", made) == str(before).encode()


def made_again(kept: Renderings, key: str, made: list[int]) -> bool:
    before = len(made)
    kept.get(key, lambda: steps(made, 1))
    return len(made) > before


@scenario
async def test_defect_goes_to_all_who_wait_and_the_next_one_tries_again(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renderings, "KEPT_TIMES", 0)
    kept = Renderings(Turns())

    def fails() -> Steps:
        yield
        raise ZeroDivisionError

    found = [kept.get("a", fails) for _ in range(2)]
    for one in found:
        assert not isinstance(one, Response)
        with pytest.raises(ZeroDivisionError):
            await one
    assert await answer(kept, "a", []) == b"1"


@scenario
async def test_number_of_answers_that_are_kept_is_bounded(loop: Loop) -> None:
    kept, made = empty()
    for number in range(200):
        await answer(kept, str(number), made, 1)
    assert len(kept) <= renderings.MOST_KEPT
