"""Requests that did not all go the measured way are no figure."""

import contextlib
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import msgspec
import pytest

from bench import loadgen
from bench.children import Child
from bench.closed_loop import Report
from bench.dispatch_measure import faults, measure_round
from bench.dispatch_targets import Processes, Route, pool_route, streams_route
from bench.measure import NotMeasuredError
from dialout import Capabilities, Dialect, FrameDecoder, RegistrationRequest, encode_frame

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="the load generator needs a C compiler")

PIDS = frozenset({1, 2})
BEFORE = Processes(PIDS, requests_total=5, answered_total=5)
AFTER = Processes(PIDS, requests_total=105, answered_total=105)
REPORT = Report(
    answered=100, echoes=2, failures=0, first_failure=None, seconds=1, p50_us=1, p99_us=1, max_us=1, connections=4
)
SERVED = loadgen.Served(cpu_user_s=0, cpu_system_s=0, lost=0, held=4, requests=100, cancels=100, pings=1, ignored=0)


class _Route:
    cancels = True
    has_product = True


ROUTE = cast("Route", _Route())


def test_route_has_no_fault_when_all_went_over_it() -> None:
    assert faults(ROUTE, 100, BEFORE, AFTER, REPORT, SERVED) == []


@pytest.mark.parametrize(
    ("after", "report", "served", "fault"),
    [
        ({}, {"failures": 1, "first_failure": "no allow"}, {}, "no allow"),
        ({}, {"answered": 99}, {}, "99 of 100 requests were answered"),
        ({}, {"echoes": 0}, {}, "no answer was compared"),
        ({}, {}, {"requests": 101}, "the agents answered 101"),
        ({}, {}, {"cancels": 99}, "told 99 times"),
        ({}, {}, {"ignored": 1}, "1 frames of other types"),
        ({}, {}, {"held": 3}, "3 of 4 connections"),
        ({}, {}, {"lost": 1}, "1 were lost"),
        ({"restarts": 1}, {}, {}, "replaced"),
        ({"pids": frozenset({1, 3})}, {}, {}, "replaced"),
        ({"requests_total": 106}, {}, {}, "counted 101 requests"),
        ({"answered_total": 104}, {}, {}, "and 99 answers"),
    ],
)
def test_route_has_a_fault(
    after: dict[str, object], report: dict[str, object], served: dict[str, object], fault: str
) -> None:
    replace = msgspec.structs.replace

    found = faults(ROUTE, 100, BEFORE, replace(AFTER, **after), replace(REPORT, **report), replace(SERVED, **served))

    assert len(found) == 1
    assert fault in found[0]


@needs_compiler
@pytest.mark.parametrize("cancels", [True, False])
def test_round_over_the_pool_is_measured(cancels: bool, tmp_path: Path) -> None:
    with pool_route(tmp_path, cancels=cancels) as route:
        found = measure_round(route, 500, 16)

    assert (found.in_flight, found.requests, found.client_cpu_us) == (16, 500, None)
    assert found.per_s > 0
    assert found.cpu_us > 0
    assert found.agent_cpu_us > 0
    assert 0 < found.p50_us <= found.p99_us <= found.max_us


@needs_compiler
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_round_over_streams_is_measured(loop: str, tmp_path: Path) -> None:
    with streams_route(tmp_path, "uvloop" if loop == "uvloop" else "asyncio") as route:
        found = measure_round(route, 500, 16)

    assert (found.route, found.requests) == (f"streams on {loop}", 500)


@needs_compiler
def test_round_is_not_measured_when_the_agents_left(tmp_path: Path) -> None:
    with pool_route(tmp_path, cancels=False) as route:
        route.agents.close()
        with pytest.raises(NotMeasuredError, match=r"AgentNotFound|ConnectionLost"):
            measure_round(route, 500, 1)


@contextlib.contextmanager
def lying_agent(address: Path, decision: str) -> Iterator[None]:
    """An agent whose every answer is `decision`, with a header besides; it ends with its connection."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(address))
        sock.sendall(RegistrationRequest(agent_id="bench-0", capabilities=Capabilities()).encode(Dialect.SDK))

        def serve() -> None:
            decoder = FrameDecoder()
            with contextlib.suppress(OSError):
                while data := sock.recv(65536):
                    for kind, payload in decoder.feed(data):
                        if kind == 0x10:
                            request_id = msgspec.json.decode(payload)["request_id"]
                            text = '{"request_id":%d,"decision":%s,"request_headers":[%s]}'
                            change = '{"operation":"set","name":"x-uri","value":"/echo/other"}'
                            sock.sendall(encode_frame(0x20, (text % (request_id, decision, change)).encode()))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            sock.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("driver", ["pool_driver", "streams_pool --loop asyncio"])
@pytest.mark.parametrize(
    ("decision", "fault"), [('"allow"', "got the answer to /echo/other"), ('{"block":{"status":403}}', "no allow")]
)
def test_driver_reports_an_answer_that_is_not_the_one(driver: str, decision: str, fault: str, tmp_path: Path) -> None:
    address = tmp_path / "agents.sock"
    module, *options = driver.split()
    command = [sys.executable, "-m", f"bench.{module}", *options, "--uds", str(address)]
    with Child.start(module, command) as child:
        assert child.read_line(30) == "READY\n"
        with lying_agent(address, decision):
            while msgspec.json.decode(child.ask("report", 10), type=Report).connections == 0:
                pass
            assert child.ask("run 1 1", 30) == "done\n"
            report = msgspec.json.decode(child.ask("report", 10), type=Report)

    assert report.failures == 1
    assert report.first_failure is not None
    assert fault in report.first_failure
