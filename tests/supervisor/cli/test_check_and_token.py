"""``shardgate check`` and ``shardgate token``."""

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

GOOD = """
reverse-listener {
    path "agents.sock"
    tcp-address "127.0.0.1:9090" "[::1]:9090"
    require-auth true
    allowed-agents "waf-*" "auth-agent"
    handshake-timeout "90s"
    auth {
        token "waf-*" sha256="%s"
        token-file "tokens"
    }
    agent-config "waf-*" { rules-version "3" }
}
""" % ("ab" * 32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a good and a bad configuration."""
    (tmp_path / "good.kdl").write_text(GOOD)
    (tmp_path / "tokens").write_text(f"auth-agent sha256:{'cd' * 32}\n* sha256:{'ef' * 32}\n")
    (tmp_path / "bad.kdl").write_text('reverse-listener {\n    pth "a"\n    require-auth "tru"\n    shards 900\n}\n')
    return tmp_path


def test_check_shows_what_is_in_effect_when_the_file_is_good(cli: Cli, folder: Path) -> None:
    done = cli("check", folder / "good.kdl")

    assert (done.returncode, done.stderr) == (0, "")
    first, *summary = done.stdout.splitlines()
    assert first == f"{folder}/good.kdl: ok"
    told = dict(line.strip().split(maxsplit=1) for line in summary)
    assert told["listeners"] == f"uds {folder}/agents.sock, tcp 127.0.0.1:9090, tcp [::1]:9090"
    assert told["limits"].startswith("4 connections per agent; registration within 90s and 16,384 bytes")
    assert told["auth"] == "required, 3 tokens"
    assert told["agents"] == "waf-*, auth-agent"
    assert told["agent-config"] == "waf-*"


def test_check_json_has_the_configuration_and_no_digest(cli: Cli, folder: Path) -> None:
    done = cli("check", "--json", folder / "good.kdl")

    told = json.loads(done.stdout)
    assert (done.returncode, told["schema"], told["ok"], told["problems"]) == (0, 1, True, [])
    assert told["config"]["tokens"] == [{"patterns": ["waf-*"]}, {"patterns": ["auth-agent"]}, {"patterns": ["*"]}]
    assert told["config"]["handshake_timeout_s"] == 90
    assert all(digits * 32 not in done.stdout for digits in ("ab", "cd", "ef"))


def test_check_prints_every_problem_on_a_line_and_exits_78(cli: Cli, folder: Path) -> None:
    text = cli("check", folder / "bad.kdl")
    assert (text.returncode, text.stdout) == (78, "")
    lines = text.stderr.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{folder}/bad.kdl:{number}" for number in (2, 3, 4)]
    assert 'did you mean "path"?' in lines[0]

    as_json = cli("check", "--json", folder / "bad.kdl")
    assert as_json.returncode == 78
    assert [problem["line"] for problem in json.loads(as_json.stdout)["problems"]] == [2, 3, 4]


def test_check_exits_78_when_a_token_file_is_missing(cli: Cli, folder: Path) -> None:
    (folder / "tokens").unlink()

    done = cli("check", folder / "good.kdl")

    assert done.returncode == 78
    assert f"{folder}/tokens: cannot be read" in done.stderr


def test_token_new_prints_lines_that_check_accepts_and_the_token_once(cli: Cli, tmp_path: Path) -> None:
    done = cli("token", "new", "--pattern", "waf-*", "--pattern", "auth")
    lines = [line.strip() for line in done.stdout.splitlines()]
    token, kdl, line = lines[1], lines[3], lines[5]
    (tmp_path / "tokens").write_text(f"{line}\n")
    (tmp_path / "a.kdl").write_text(
        f'reverse-listener {{\n require-auth true\n auth {{\n {kdl}\n token-file "tokens"\n }}\n}}\n'
    )

    assert done.stdout.count(token) == 1
    assert len(token) >= 40
    assert hashlib.sha256(token.encode()).hexdigest() in kdl
    told = json.loads(cli("check", "--json", tmp_path / "a.kdl").stdout)
    assert told["config"]["tokens"] == [{"patterns": ["waf-*", "auth"]}] * 2


def test_token_is_new_each_time_and_good_for_all_agents_when_nothing_is_said(cli: Cli) -> None:
    one, two = (cli("token").stdout.splitlines() for _ in range(2))

    assert one[1] != two[1]
    assert one[3].startswith('  token "*" sha256="')


@pytest.mark.parametrize("given", ["secret-1", "secret-1\n", "secret-1\r\n"])
def test_token_hash_takes_one_line_of_standard_input(given: str, cli: Cli) -> None:
    digest = hashlib.sha256(b"secret-1").hexdigest()

    told = json.loads(cli("token", "hash", "--json", "--pattern", "a", stdin=given).stdout)

    assert told == {"schema": 1, "kdl": f'token "a" sha256="{digest}"', "token_file": f"a sha256:{digest}"}


@pytest.mark.parametrize("given", ["", "\n", "a\nb\n", "\udcff", "x" * 65_537])
def test_token_hash_refuses_what_is_no_token_and_never_repeats_it(given: str, cli: Cli) -> None:
    done = cli("token", "hash", stdin=given)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("shardgate: ")
    assert len(done.stderr) < 120


@pytest.mark.parametrize("arguments", [["hunter2"], ["--hunter2"], ["--pattern", "a", "hunter2"]])
def test_token_hash_never_takes_a_token_as_an_argument_nor_repeats_it(arguments: list[str], cli: Cli) -> None:
    done = cli("token", "hash", *arguments, stdin="x")

    assert (done.returncode, done.stdout) == (2, "")
    assert "standard input" in done.stderr
    assert "hunter2" not in done.stderr


def test_token_hash_asks_without_echo_on_a_terminal(on_terminal: Callable[..., tuple[str, int]]) -> None:
    shown, code = on_terminal("token", "hash", typed="hunter2\n")

    assert code == 0
    assert "hunter2" not in shown
    assert hashlib.sha256(b"hunter2").hexdigest() in shown


def test_token_refuses_a_pattern_that_can_match_nothing(cli: Cli) -> None:
    done = cli("token", "new", "--pattern", "waf ?")

    assert (done.returncode, done.stdout) == (2, "")


PROXY = """
schema-version "1.0"
include "routes/*.kdl"
system { worker-threads 0 }
listeners { listener "http" { address "0.0.0.0:8080"; protocol "http" } }
agents {
    agent "waf" type="waf" {
        unix-socket path="/var/run/waf.sock"
        events "request_headers" "request_body"
        timeout-ms 200
        failure-mode "open"
    }
}
"""


def test_check_names_what_it_does_not_read_of_a_proxys_file(cli: Cli, tmp_path: Path, rundir: Path) -> None:
    file = tmp_path / "zentinel.kdl"
    file.write_text(PROXY + f'reverse-listener {{ path "a.sock"; runtime-dir "{rundir}/run" }}\n')
    done = cli("check", "--file-only", file)
    assert done.returncode == 0
    last = done.stdout.splitlines()[-1]
    assert last == (
        "  not read      schema-version, include, system, listeners, agents: for a proxy; nor is what include names"
    )
    not_read = json.loads(cli("check", "--file-only", "--json", file).stdout)["not_read"]
    assert not_read == ["schema-version", "include", "system", "listeners", "agents"]


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        (PROXY, "", "there is no reverse-listener block; include is not read: write reverse-listener { path"),
        (PROXY.replace("include", "// include"), "", "system, listeners, agents of a proxy are not read: write"),
        ("agents {\n reverse-listener {\n }\n}\n", ":2", 'move "reverse-listener" out of "agents", to the top'),
        ('agents {\n agent "a" {\n  reverse-listener {\n  }\n }\n}\n', ":3", 'out of "agent", to the top of the file'),
        ('path "a.sock"\nshards 2\n', ":1", 'put "path" and the other nodes into reverse-listener { … }'),
        ('[reverse-listener]\npath = "x"\n', ":1", "this looks like TOML or INI"),
        ('{"reverse-listener": {"path": "x"}}\n', ":1", "this looks like JSON"),
        ('reverse-listener:\n  path: "x"\n', ":1", 'did you mean "reverse-listener"? A block stands between { and }'),
        ("reverse-listener\n{\n}\n", ":2", "the brace stands on the line of the name"),
        ("reverse-listener{\n}\n", ":1", "a space in front of each value and brace"),
        ('reverse-listener "agents" {\n}\n', ":1", "remove what is between reverse-listener and {"),
        ("# reverse-listener\n", ":1", "a comment begins with //"),
        ("#reverse-listener {\n}\n", ":1", "a comment begins with //"),
        ("reverse-listener {\n}\n404 {\n}\n", ":3", 'a name that begins with a digit stands in double quotes: "404"'),
        ("reverse-listener {\r // x\r shardz 2\r}\r", ":3", 'did you mean "shards"?'),
        ("reverse-listener {\r\n // x\r\n shardz 2\r\n}\r\n", ":3", 'did you mean "shards"?'),
        ("reverse-listener {\x85 shards 2\x85 shardz 2\x85}\x85", ":3", 'did you mean "shards"?'),
    ],
)
def test_check_says_where_the_block_is_to_be(text: str, where: str, said: str, cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "a.kdl"
    with file.open("w", encoding="utf-8", newline="") as stream:
        stream.write(text)
    done = cli("check", file)
    assert (done.returncode, done.stdout) == (78, "")
    [problem] = done.stderr.splitlines()
    assert problem.startswith(f"{file}{where}: ")
    assert said in problem


@pytest.mark.parametrize("text", ["", "// nothing yet\n", PROXY, 'include "listener.kdl"\n'])
def test_the_block_that_check_proposes_is_good(text: str, cli: Cli, rundir: Path, tmp_path: Path) -> None:
    file, env = tmp_path / "a.kdl", {"SHARDGATE_RUNTIME_DIR": str(rundir / "run")}
    file.write_text(text)
    refused = cli("check", file, env=env)
    assert refused.returncode == 78
    file.write_text(text + refused.stderr.strip().rpartition("write ")[2])
    done = cli("check", file, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"uds {rundir}/run/agents.sock" in done.stdout
