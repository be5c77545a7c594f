"""The doctor: each thing that can be wrong is found, and its finding says what to do."""

from typing import Any

import msgspec
import pytest

from supervisor.config.errors import Problem
from supervisor.config.model import Config, ReverseConnectionConfig, TcpAddress
from supervisor.doctor import Facts, Level, findings

HEALTHY = Facts(
    config=Config(),
    cpus=2,
    nofile_soft=65_536,
    nofile_hard=65_536,
    file_max=1_000_000,
    somaxconn=4096,
    directory="/run/shardgate",
    mode=0o700,
    owner=1000,
    uid=1000,
    free_bytes=1 << 30,
    records={"supervisor": True, "shard-0": True},
    sockets=(),
    clock_offset_change=0.0001,
    clock_synchronised=True,
    strangers={},
    running=True,
    limits={"supervisor": 65_536, "shard-0": 65_536},
    versions={"supervisor": "1", "shard-0": "1"},
    version="1",
)
NETWORK = (TcpAddress("0.0.0.0", 9090),)


def test_a_healthy_host_has_nothing_but_ok() -> None:
    assert {finding.level for finding in findings(HEALTHY)} == {Level.OK}


@pytest.mark.parametrize(
    ("changes", "level", "found", "do"),
    [
        ({"strangers": {"supervisor": ("supervisor",)}}, Level.PROBLEM, "also belongs to supervisor", "of its own"),
        ({"versions": {"shard-0": "0.9"}}, Level.HINT, "shard-0 0.9; installed: 1", "restart --rolling"),
        ({"owner": 0}, Level.PROBLEM, "belongs to uid 0", "as the user it belongs to"),
        ({"mode": 0o755}, Level.PROBLEM, "has mode 0755", "chmod 700 /run/shardgate"),
        ({"free_bytes": 100}, Level.PROBLEM, "100 bytes are free", "make room"),
        ({"limits": {}, "nofile_hard": 1024}, Level.PROBLEM, "max-handshakes is 4,096", "4,352 or more"),
        ({"limits": {}, "nofile_hard": 8192}, Level.HINT, "7,936 connections", "raise the open files limit"),
        # What runs has its own limits, whatever that of the command is.
        ({"limits": {"supervisor": 9000, "shard-0": 1024}}, Level.PROBLEM, "the limit of shard-0, which runs", "4,352"),
        ({"limits": {"shard-0": 8192}}, Level.HINT, "7,936 connections (limit 8,192 of shard-0", "raise the open"),
        ({"file_max": 70_000}, Level.HINT, "fs.file-max is 70,000", "sysctl fs.file-max="),
        ({"somaxconn": 128}, Level.PROBLEM, "net.core.somaxconn is 128", "sysctl net.core.somaxconn="),
        ({"somaxconn": None}, Level.HINT, "cannot be read", "sysctl"),
        ({"running": False, "records": {"supervisor": False}}, Level.HINT, "gone: supervisor", "removes them"),
        ({"sockets": ("bus",)}, Level.HINT, "nobody serves: bus", "takes their places"),
        (
            {"running": False, "records": {"shard-0": True, "shard-1": True}},
            Level.PROBLEM, "2 shards serve on without one", "adopts them",
        ),
        ({"clock_offset_change": -3.0}, Level.PROBLEM, "set by -3.0 s", "have one service set it"),
        ({"clock_synchronised": False}, Level.HINT, "nobody keeps the clock right", "time service"),
        ({"config": Config(tcp_addresses=NETWORK)}, Level.PROBLEM, "0.0.0.0:9090 can be reached", "require-auth"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found_once_and_says_what_to_do(
    changes: dict[str, Any], level: Level, found: str, do: str
) -> None:
    [finding] = [f for f in findings(msgspec.structs.replace(HEALTHY, **changes)) if f.level is not Level.OK]
    assert finding.level is level
    assert found in finding.found
    assert do in finding.do


def test_an_address_of_a_network_is_well_with_tokens_and_a_local_one_without() -> None:
    limits = ReverseConnectionConfig(require_auth=True)
    for config in (
        Config(tcp_addresses=NETWORK, limits=limits),
        Config(tcp_addresses=(TcpAddress("127.0.0.1", 1), TcpAddress("::1", 1))),
    ):
        facts = msgspec.structs.replace(HEALTHY, config=config)
        assert all(finding.level is Level.OK for finding in findings(facts))


def test_a_directory_that_is_not_there_is_no_problem() -> None:
    facts = msgspec.structs.replace(HEALTHY, mode=None, owner=None, records={}, versions={}, running=False)
    assert {finding.level for finding in findings(facts)} == {Level.OK}


def test_a_file_that_others_could_change_is_a_problem() -> None:
    problem = Problem("/etc/tokens", None, "", "everybody may write this file", "run: chmod o-w /etc/tokens")
    found = [one for one in findings(msgspec.structs.replace(HEALTHY, access=(problem,))) if one.about == "files"]
    assert [(one.level, one.found, one.do) for one in found] == [
        (Level.PROBLEM, "/etc/tokens: everybody may write this file", "run: chmod o-w /etc/tokens")
    ]
