"""The admin endpoint of the real product: what it tells is so, and who may not ask."""

import asyncio
import itertools
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.admin import Samples, address, ask, ask_json, metrics, total, value, wait_for_metrics
from support.agents import Agent, registration
from support.fences import descriptors
from support.product import Product, StartProduct, environment, shared_product
from support.serving import ServingAgent
from support.waiting import wait_for

from dialout import RequestHeaders
from dialout.proxy.errors import PoolError
from dialout.proxy.pool_client import PoolClient

ADMIN = ("--admin", "127.0.0.1:0")


async def _request(product: Product, agent_ids: list[str], each: int) -> int:
    async def one(client: PoolClient, agent_id: str) -> bool:
        try:
            await client.send_request_headers(agent_id, RequestHeaders("GET", "/", {"host": ["a"]}))
        except PoolError:
            return False
        return True

    async with PoolClient(product.runtime_dir) as client:
        return sum(await asyncio.gather(*(one(client, agent_id) for agent_id in agent_ids for _ in range(each))))


def request(product: Product, *agent_ids: str, each: int = 20) -> int:
    """Ask each agent a few times; how many answers there were."""
    return asyncio.run(_request(product, list(agent_ids), each))


@pytest.fixture(scope="module")
def shared() -> Iterator[Product]:
    """A shardgate for the tests that leave it as they found it."""
    with shared_product(*ADMIN) as one:
        yield one


@pytest.fixture
def agents() -> Iterator[list[Agent]]:
    """Agents that are closed in the end."""
    found: list[Agent] = []
    yield found
    for agent in found:
        agent.close()


def backwards(before: Samples, after: Samples) -> list[Any]:
    """The counters that fell."""
    names = ("_total", "_bucket", "_count", "_sum")
    return [
        (key, n, after.get(key))
        for key, n in before.items()
        if key[0].endswith(names) and after.get(key, 0.0) < n - 1e-9
    ]


def disagreements(product: Product, pids: dict[str, int]) -> list[str]:
    """Where metrics and kernel differ by more than half a second makes at rest: descriptors, memory, processor."""
    found, differ = metrics(product), []
    for name, pid in pids.items():
        told = {what: value(found, f"process_{what}", process=name) for what in ("open_fds", "resident_memory_bytes")}
        if abs(told["open_fds"] - len(descriptors(pid))) > 2:
            differ.append(f"{name}: {told['open_fds']} descriptors")
        rss = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        if told["resident_memory_bytes"] != pytest.approx(rss, rel=0.05):
            differ.append(f"{name}: {told['resident_memory_bytes']} bytes")
        ticks = sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[11:13]))
        seconds = value(found, "process_cpu_seconds_total", process=name)
        if not ticks / os.sysconf("SC_CLK_TCK") - 0.5 <= seconds <= ticks / os.sysconf("SC_CLK_TCK") + 0.05:
            differ.append(f"{name}: {seconds} s of CPU")
    return differ


def test_endpoint_is_off_unless_it_is_asked_for(start_product: StartProduct) -> None:
    product = start_product(shards=1)

    listening = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=False).stdout
    assert f"pid={product.process.pid}," not in listening
    assert "admin endpoint" not in product.log.read_text()


def test_metrics_agree_with_status_and_with_the_kernel_under_load(
    start_product: StartProduct, agents: list[Agent]
) -> None:
    product = start_product(*ADMIN)
    for _ in range(3):
        agents += [ServingAgent(product.socket, name) for name in ("waf", "auth")]
    for _ in range(2):
        with Agent(product.socket) as bad:
            bad.send(registration("waf").replace(b"waf", b"w f"))
            assert not bad.answer().accepted
    answered = request(product, "waf", "auth", each=50)
    assert request(product, "nobody", each=5) == 0

    def told(found: Samples) -> bool:
        # Both shards are asked for the agent that nobody knows. Each counts one request, however often it looks.
        ended = total(found, "requests_total", outcome="answered"), total(found, "shard_requests_in_flight")
        counted = sum(row["requests_total"] for row in product.query("status")["shards"])
        return ended == (answered, 0) and total(found, "requests_total") == counted == answered + 10

    found = wait_for_metrics(product, "all requests to be told", told)
    status, page = product.status(), ask_json(product, "/status.json")
    supervisor, shards = status["supervisor"], status["shards"]

    assert answered == total(found, "requests_total", outcome="answered") == 100
    assert total(found, "requests_total", outcome="agent_not_found") == 10
    assert total(found, "requests_total") == sum(row["requests_total"] for row in shards)
    assert total(found, "request_duration_seconds_count", outcome="answered") == answered
    assert 0 < total(found, "request_duration_seconds_sum") < 60
    assert value(found, "registrations_total", result="accepted") == supervisor["accepted_total"] == 6
    assert value(found, "registrations_total", result="bad_registration") == 2
    for code, number in supervisor["rejected_total"].items():
        assert value(found, "registrations_total", result=code) == number
    assert total(found, "handshake_duration_seconds_count") == 6
    assert total(found, "handoff_duration_seconds_count") == total(found, "registration_duration_seconds_count") == 6
    assert value(found, "slots", state="live") == total(found, "shard_connections") == 6
    assert value(found, "slots", state="reserved") == value(found, "held_descriptors") == 0
    assert value(found, "agents") == 2
    for row in shards:
        shard = str(row["id"])
        assert value(found, "shard_connections", shard=shard) == row["connections"]
        assert value(found, "connections_adopted_total", shard=shard) == row["adopted_total"]
        assert value(found, "frames_received_total", shard=shard) >= row["connections"]
    pids = {"supervisor": supervisor["pid"], **{f"shard-{row['id']}": row["pid"] for row in shards}}
    wait_for(lambda: not disagreements(product, pids), "metrics and kernel to agree")
    # The same object, by one way of making it.
    assert page.keys() == status.keys()
    assert page["supervisor"].keys() == supervisor.keys()
    assert [row.keys() for row in page["shards"]] == [row.keys() for row in shards]
    for row, other in zip(page["shards"], shards, strict=True):
        for name in ("id", "pid", "state", "connections", "agents", "requests_total", "failed_total", "adopted_total"):
            assert row[name] == other[name]


def test_agents_list_agrees_with_the_command(shared: Product, agents: list[Agent]) -> None:
    product = shared
    wait_for(lambda: sum(product.counts()) == 0, "the agents of other tests to be gone")
    for name, number in (("b", 3), ("a", 1), ("c", 2)):
        for _ in range(number):
            agents.append(Agent(product.socket))
            agents[-1].register(name)
    wait_for(lambda: sum(product.counts()) == 6, "all agents to be in a pool")

    whole = ask_json(product, "/agents.json")
    assert whole["agents"] == product.ask("agents")
    assert (whole["total"], whole["complete"], [row["agent_id"] for row in whole["agents"]]) == (
        3,
        True,
        ["a", "b", "c"],
    )
    paged = [ask_json(product, f"/agents.json?limit=1&after={after}")["agents"] for after in ("", "a", "b", "c")]
    assert [[row["agent_id"] for row in page] for page in paged] == [["a"], ["b"], ["c"], []]
    for wish in ("limit=0", "limit=-1", "limit=x", "limit=99999999999", "after=%00%ff"):
        assert ask(product, f"/agents.json?{wish}").status == 200


def test_agents_list_says_when_a_shard_did_not_answer(shared: Product) -> None:
    product = shared
    pid = product.shard_pid(1)
    os.kill(pid, signal.SIGSTOP)
    try:
        # Another page than other tests have asked for: an answer is given again for a moment.
        assert ask_json(product, "/agents.json?limit=7")["complete"] is False
    finally:
        os.kill(pid, signal.SIGCONT)


def test_readiness_tells_one_of_two_shards_from_two_and_from_none(start_product: StartProduct) -> None:
    product = start_product(*ADMIN)

    def ready() -> tuple[int, str, int, int]:
        answer = ask(product, "/readyz")
        told = ask_json(product, "/readyz") if answer.status else {}
        return answer.status, told["status"], told["shards"]["ready"], told["shards"]["wanted"]

    assert ready() == (200, "ready", 2, 2)
    assert ask_json(product, "/readyz")["listeners"] == [{"kind": "uds", "address": str(product.socket)}]
    pids = [product.shard_pid(shard) for shard in (0, 1)]
    try:
        os.kill(pids[0], signal.SIGSTOP)
        wait_for(lambda: ready() == (200, "degraded", 1, 2), "one shard of two")
        assert "shard 0 takes no connections: it is unhealthy" in ask_json(product, "/readyz")["reasons"]
        os.kill(pids[1], signal.SIGSTOP)
        wait_for(lambda: ready() == (503, "not ready", 0, 2), "no shard of two")
        assert value(metrics(product), "ready") == 0
        assert ask(product, "/livez").status == 200
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    wait_for(lambda: ready() == (200, "ready", 2, 2), "both shards again")
    assert product.command("drain", "1").returncode == 0
    assert ready() == (200, "degraded", 1, 2)
    assert product.command("scale", "1").returncode == 0
    assert ready() == (200, "ready", 1, 1)


def test_counters_go_on_when_a_shard_and_when_the_supervisor_is_killed(
    start_product: StartProduct, agents: list[Agent]
) -> None:
    product = start_product(*ADMIN)
    agents += [ServingAgent(product.socket, "waf") for _ in range(4)]
    answered = request(product, "waf")
    before = wait_for_metrics(
        product, "all requests to be told", lambda found: total(found, "requests_total") == answered
    )
    assert total(before, "shard_restarts_total") == 0

    os.kill(product.shard_pid(0), signal.SIGKILL)
    seen = [before]

    def is_back(found: Samples) -> bool:
        seen.append(found)
        return value(found, "shard_restarts_total", shard="0") == 1 and value(found, "shards", state="running") == 2

    after = wait_for_metrics(product, "the shard to be back", is_back)
    for earlier, later in itertools.pairwise(seen):
        assert backwards(earlier, later) == []
    assert total(after, "requests_total", outcome="answered") == answered
    adopted = value(before, "connections_adopted_total", shard="0")
    assert value(after, "connections_closed_total", shard="0") == adopted
    assert value(after, "process_start_time_seconds", process="shard-0") > value(
        before, "process_start_time_seconds", process="shard-0"
    )

    product.process.kill()
    product.process.wait()
    product.start()
    product.wait_until_running()
    of_shards = {key: n for key, n in after.items() if {"shard", "outcome"} & dict(key[1]).keys()}
    restarts = ("shardgate_shard_restarts_total", "shardgate_bus_gaps_repaired_total")
    now = wait_for_metrics(
        product, "both shards to report", lambda found: total(found, "requests_total", outcome="answered") == answered
    )
    assert backwards({key: n for key, n in of_shards.items() if key[0] not in restarts}, now) == []


def test_moves_are_measured(start_product: StartProduct, agents: list[Agent]) -> None:
    product = start_product(*ADMIN)
    agents += [ServingAgent(product.socket, "waf") for _ in range(4)]
    wait_for(lambda: sum(product.counts()) == 4, "all agents to be in a pool")
    assert product.command("drain", "0").returncode == 0

    found = wait_for_metrics(
        product, "the moves to be told", lambda found: total(found, "connections_moved_total", shard="0") == 2
    )
    assert value(found, "move_duration_seconds_count") == 2
    assert 0 < value(found, "move_duration_seconds_sum") < 10


def test_reloads_are_told(start_product: StartProduct, tmp_path: Path) -> None:
    file = tmp_path / "s.kdl"
    file.write_text("reverse-listener { max-connections-per-agent 2\n }")
    product = start_product("--config", str(file), *ADMIN, shards=1)
    before = metrics(product)
    assert value(before, "config_last_reload_successful") == 1

    file.write_text("reverse-listener { max-connections-per-agent 7\n }")
    assert product.command("reload").returncode == 0
    file.write_text("reverse-listener { max-connections-per-agent none\n }")
    assert product.command("reload").returncode == 5
    after = metrics(product)
    told = [json.loads(line) for line in product.log.read_text().splitlines() if "reloaded" in line]
    assert [(line["level"], line.get("changed")) for line in told] == [
        ("info", ["max-connections-per-agent"]), ("error", None),
    ]  # fmt: skip

    assert value(after, "max_connections_per_agent") == 7
    assert value(after, "config_last_reload_successful") == 0
    assert [value(after, "config_reloads_total", result=result) for result in ("success", "failure")] == [1, 1]
    name = "config_last_reload_success_timestamp_seconds"
    assert value(after, name) >= value(before, name) > 1_600_000_000


def test_nothing_can_be_changed_and_other_paths_are_not_there(shared: Product) -> None:
    product = shared
    for path in ("/", "/metrics", "/livez", "/readyz", "/status.json", "/agents.json"):
        assert ask(product, path).status == 200
        assert ask(product, path, method="HEAD").body == b""
        for method in ("POST", "PUT", "DELETE"):
            assert ask(product, path, method=method).status == 405
    for path in ("/x", "/metrics/", "//", "/../etc/passwd", "/stop", "/reload"):
        assert ask(product, path).status == 404


def test_browser_that_was_led_here_by_another_name_is_refused(shared: Product) -> None:
    product = shared
    for path in ("/", "/metrics", "/status.json", "/live"):
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::2]:1", "", "169.254.1.1"):
            assert ask(product, path, Host=host).status == 421
    for own in ("localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.2:9", "[::1]:80"):
        assert ask(product, "/livez", Host=own).status == 200


def test_unix_socket_has_its_mode_and_goes_with_the_supervisor(start_product: StartProduct, tmp_path: Path) -> None:
    file = tmp_path / "s.kdl"
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    file.write_text('reverse-listener { admin { listen "./admin.sock"; socket-mode "0640" }\n }')
    product = start_product("--config", str(file), shards=1)

    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert address(product) == str(path)
    assert ask(product, "/readyz", Host="any.name.at.all").status == 200
    second = start_product("--config", str(file), wait=False)
    assert second.process.wait(20) == 1
    assert f"{path}: a running process listens there" in second.log.read_text()
    second.process.returncode = 0
    product.end()
    assert not path.exists()


def test_port_that_is_taken_is_named_and_nothing_is_left(start_product: StartProduct) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        product = start_product("--admin", where, wait=False)
        assert product.process.wait(20) == 1
        assert (
            f"shardgate: {where}: cannot listen: Address already in use; 'ss -ltnp' shows who does"
            in product.log.read_text()
        )
        assert not product.socket.exists()
        product.process.returncode = 0


def test_address_that_others_can_reach_is_refused_unless_it_is_allowed(start_product: StartProduct) -> None:
    command = [sys.executable, "-P", "-m", "shardgate", "run", "--admin", "0.0.0.0:0"]
    refused = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False, timeout=120)
    assert refused.returncode == 78
    assert "--admin: 0.0.0.0:0 can be reached from other hosts" in refused.stderr

    product = start_product("--admin", "0.0.0.0:0", "--admin-allow-remote", shards=1)
    assert ask(product, "/livez", Host="metrics.example").status == 200
    assert "the admin endpoint can be reached from other hosts, and asks nobody who they are" in product.log.read_text()


def test_host_that_stops_is_alive_and_not_ready(start_product: StartProduct, agents: list[Agent]) -> None:
    product = start_product(*ADMIN, shards=1)
    pid = product.shard_pid(0)
    os.kill(pid, signal.SIGSTOP)
    try:
        product.process.terminate()
        wait_for(lambda: ask(product, "/readyz").status == 503, "the host to say that it stops")
        answer = ask_json(product, "/readyz")
        assert (answer["status"], answer["listeners"]) == ("not ready", [])
        assert "the supervisor is stopping" in answer["reasons"]
        assert ask(product, "/livez").status == 200
        assert value(metrics(product), "ready") == 0
    finally:
        os.kill(pid, signal.SIGCONT)
