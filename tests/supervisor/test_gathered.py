"""What is asked for many times is done at once, and then once a second."""

import asyncio

import pytest

from supervisor import gathered
from supervisor.gathered import Gathered


def test_hundreds_at_a_time_are_done_twice_the_first_at_once_and_the_rest_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> list[int]:
        done: list[int] = []
        over = asyncio.Event()

        def act(asked: int) -> None:
            done.append(asked)
            if sum(done) == 300:
                over.set()

        one = Gathered(act)
        one.ask()
        assert done == [1]
        for _ in range(299):
            one.ask()
        assert done == [1]
        await asyncio.wait_for(over.wait(), 10)
        one.close()
        return done

    monkeypatch.setattr(gathered, "PAUSE", 0.01)
    assert asyncio.run(main()) == [1, 299]


def test_nothing_is_done_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> list[int]:
        done: list[int] = []
        one = Gathered(done.append)
        one.ask()
        one.ask()
        one.close()
        await asyncio.sleep(0.02)  # As long as would be enough for a timer that was left.
        return done

    monkeypatch.setattr(gathered, "PAUSE", 0.0)
    assert asyncio.run(main()) == [1]
