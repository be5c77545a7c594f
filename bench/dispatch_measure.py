"""One round of requests over one route. It raises `NotMeasuredError` when the route did not do what it is paid for."""

import time

import msgspec

from bench.accounting import cpu_ns
from bench.closed_loop import Report
from bench.dispatch_targets import CONNECTIONS, Processes, Route
from bench.loadgen import Served
from bench.measure import NotMeasuredError

__all__ = ["DispatchRound", "faults", "measure_round", "warm_up"]

#: Requests before the first figure.
WARM_UP = 2000
#: For what the agents read after the last answer: cancels.
SETTLE_S = 5.0
POLL_S = 0.01


class DispatchRound(msgspec.Struct, frozen=True):
    """One round. CPU is that of all processes of ours, the client's part of it beside; the agents' own is apart."""

    route: str
    in_flight: int
    requests: int
    per_s: float
    cpu_us: float
    client_cpu_us: float | None
    p50_us: float
    p99_us: float
    max_us: float
    agent_cpu_us: float
    agent_busy: float


def faults(
    route: Route, requests: int, before: Processes, after: Processes, report: Report, served: Served
) -> list[str]:
    """What shows that not every one of these requests went to an agent and came back with its own answer."""
    found = []
    if report.failures:
        found.append(f"{report.failures} requests failed, the first: {report.first_failure}")
    if report.answered != requests:
        found.append(f"{report.answered} of {requests} requests were answered")
    if not report.echoes:
        found.append("no answer was compared with its request")
    if served.requests != requests:
        found.append(f"the agents answered {served.requests} requests of {requests}")
    if served.cancels != (requests if route.cancels else 0):
        found.append(f"the agents were told {served.cancels} times to forget one of {requests} requests")
    if served.ignored:
        found.append(f"the agents got {served.ignored} frames of other types")
    if served.lost or served.held != CONNECTIONS:
        found.append(f"{served.held} of {CONNECTIONS} connections are left, {served.lost} were lost")
    if before.pids != after.pids or before.restarts != after.restarts:
        found.append(f"a process was replaced: {sorted(before.pids)} became {sorted(after.pids)}")
    if route.has_product:
        counted = after.requests_total - before.requests_total, after.answered_total - before.answered_total
        if counted != (requests, requests):
            found.append(f"the shard counted {counted[0]} requests and {counted[1]} answers, of {requests}")
    return found


def measure_round(route: Route, requests: int, in_flight: int) -> DispatchRound:
    """Make `requests` requests, so many in flight, and see that all went the measured way."""
    before = route.processes_before()
    route.agents.stats()
    cpu_before, client_before = cpu_ns(before.pids), cpu_ns([route.driver_pid])
    route.run(requests, in_flight)
    cpu, client_cpu = cpu_ns(before.pids) - cpu_before, cpu_ns([route.driver_pid]) - client_before
    report, served = route.report(), _served(route, requests)
    if found := faults(route, requests, before, route.processes(), report, served):
        raise NotMeasuredError(f"{route.name}, {in_flight} in flight: " + "; ".join(found))
    return DispatchRound(
        route=route.name,
        in_flight=in_flight,
        requests=requests,
        per_s=requests / report.seconds,
        cpu_us=cpu / 1e3 / requests,
        client_cpu_us=client_cpu / 1e3 / requests if route.has_product else None,
        p50_us=report.p50_us,
        p99_us=report.p99_us,
        max_us=report.max_us,
        agent_cpu_us=served.cpu_s * 1e6 / requests,
        agent_busy=served.cpu_s / report.seconds,
    )


def warm_up(route: Route) -> None:
    """A first, unmeasured round, checked like the others."""
    measure_round(route, WARM_UP, 16)


def _served(route: Route, requests: int) -> Served:
    """What the agents did in a round, once the cancels behind the last answers have arrived, too."""
    deadline = time.monotonic() + SETTLE_S
    served = route.agents.stats()
    while route.cancels and served.cancels < requests and time.monotonic() < deadline:
        time.sleep(POLL_S)
        more = route.agents.stats()
        added = {name: getattr(served, name) + getattr(more, name) for name in Served.__struct_fields__}
        served = msgspec.structs.replace(more, **(added | {"held": more.held}))
    return served
