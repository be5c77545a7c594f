"""A run counts what was answered, and tells an answer from another request's."""

import asyncio
import time

import pytest

from bench.closed_loop import SAMPLES, NotTheAnswerError, Run, Sample, echo_in, run_tasks
from dialout import ALLOW, ALLOWED, Block, Decision, HeaderOp, RequestHeaders

ECHO = next(sample for sample in SAMPLES if sample.echo)
BARE = next(sample for sample in SAMPLES if not sample.echo)


def taken(run: Run) -> Sample:
    sample = run.take()
    assert sample
    return sample


def test_samples_differ_in_what_an_agent_sees_and_some_ask_for_an_echo() -> None:
    assert len({sample.event.uri for sample in SAMPLES}) == len(SAMPLES)
    assert {sample.echo for sample in SAMPLES} - {None} == {s.event.uri for s in SAMPLES if "/echo/" in s.event.uri}


def test_run_hands_out_as_many_as_it_was_told() -> None:
    run = Run(3)

    assert [run.take() for _ in range(5)] == [*SAMPLES[:3], None, None]


def test_report_has_no_failure_when_every_request_got_its_answer() -> None:
    run = Run(2)
    for _ in range(2):
        sample = taken(run)
        run.settle(sample, time.perf_counter_ns(), sample.echo)
    run.end()

    report = run.report(connections=4)

    assert (report.answered, report.echoes, report.failures, report.connections) == (2, 1, 0, 4)
    assert 0 < report.p50_us <= report.p99_us <= report.max_us


@pytest.mark.parametrize(
    ("sample", "echo"), [(ECHO, None), (ECHO, "/echo/items/999?page=2"), (BARE, ECHO.echo)], ids=["none", "other", "un"]
)
def test_report_has_a_failure_for_the_answer_to_another_request(sample: Sample, echo: str | None) -> None:
    run = Run(1)
    run.settle(sample, time.perf_counter_ns(), echo)
    run.end()

    report = run.report(connections=4)

    assert report.failures == 1
    assert report.first_failure is not None
    assert sample.event.uri in report.first_failure


def test_report_has_a_failure_for_requests_that_were_never_answered() -> None:
    run = Run(5)
    sample = taken(run)
    run.settle(sample, time.perf_counter_ns(), sample.echo)
    run.end()

    assert run.report(connections=4).first_failure == "4 requests were never answered"


def test_echo_is_found_in_an_allow_only() -> None:
    assert echo_in(ALLOWED) is None
    assert echo_in(Decision(ALLOW, (HeaderOp.set("x-uri", "/echo/1"),))) == "/echo/1"
    for wrong in (Decision(Block(403)), Decision(None, needs_more=True)):
        with pytest.raises(NotTheAnswerError):
            echo_in(wrong)


def test_tasks_keep_as_many_in_flight_as_they_were_told_and_report_what_failed() -> None:
    now, most = 0, 0

    async def send(event: RequestHeaders) -> Decision:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        if event is SAMPLES[7].event:
            raise ConnectionError("gone")
        return ALLOWED if SAMPLES[0].event is not event else Decision(ALLOW, (HeaderOp.set("x", event.uri),))

    run = Run(10)
    asyncio.run(run_tasks(run, 3, send, echo_in))
    run.end()
    report = run.report(connections=1)

    assert most == 3
    assert (report.answered, report.failures, report.first_failure) == (9, 1, "ConnectionError: gone")
