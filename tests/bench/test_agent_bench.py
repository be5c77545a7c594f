"""The agent benchmark measures, and says so when it did not."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from support.product import short_folder

from bench.agent import OURS, PLAIN, budgets, summaries
from bench.agent_measure import AgentRound, AgentTarget, Kind, agent_target, measure_round
from bench.children import Child
from bench.measure import NotMeasuredError
from dialout import FrameDecoder, encode_frame


@pytest.mark.parametrize("kind", ["plain", "async", "streams"])
def test_every_kind_of_agent_answers_every_request(kind: Kind) -> None:
    with short_folder() as folder, agent_target(folder, kind, "asyncio") as target:
        done = measure_round(target, 300, 20)
        again = measure_round(target, 300, 300)

    assert (done.requests, done.in_flight, again.in_flight) == (300, 20, 300)
    assert min(done.per_s, done.cpu_us, done.p50_us, again.cpu_us) > 0


class Says:
    """In place of an agent's process: it says what it counted, and nothing else."""

    def __init__(self, *counts: int) -> None:
        self.pid = 0
        self._counts = iter(counts)

    def ask(self, line: str, timeout_s: float) -> str:
        """The next count."""
        return str(next(self._counts))


@contextlib.contextmanager
def answered_with(data: bytes, *counts: int) -> Iterator[AgentTarget]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(1)
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        target = AgentTarget("broken", cast("Child", Says(*counts)), ours)
        target.decoder = FrameDecoder()
        yield target


ALLOW_1 = encode_frame(0x20, b'{"request_id":1,"decision":"allow"}')
BLOCK_1 = encode_frame(0x20, b'{"request_id":1,"decision":{"block":{"status":403}}}')


@pytest.mark.parametrize(
    ("data", "counts", "why"),
    [
        (ALLOW_1, (0, 1), "1 answers were other ones, 1 of 1 are missing"),
        (BLOCK_1, (0, 0), "the agent counted 0"),
        (b"", (0, 1), "the agent closed its connection"),
    ],
)
def test_what_was_not_served_is_not_measured(data: bytes, counts: tuple[int, ...], why: str, tmp_path: Path) -> None:
    with answered_with(data, *counts) as target, pytest.raises(NotMeasuredError, match=why):
        measure_round(target, 1, 1)


def test_figures_are_medians_and_the_ratio_is_that_of_neighbours() -> None:
    def one(agent: str, cpu_us: float) -> AgentRound:
        return AgentRound(agent, 64, 100, 1000.0, cpu_us, 0.5, 1.0, 2.0)

    rounds = [one(OURS, cpu) for cpu in (4.0, 5.0, 6.0)] + [one(PLAIN, cpu) for cpu in (8.0, 5.0, 10.0)]
    found = {summary.agent: summary for summary in summaries(rounds)}

    assert (found[OURS].cpu_us, found[OURS].against_plain) == (5.0, 0.6)
    (budget,) = budgets(list(found.values()))
    assert budget.kept
    assert not budgets(summaries([one(OURS, 9.0), one(PLAIN, 9.0)]))[0].kept
