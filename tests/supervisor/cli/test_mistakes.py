"""Mistakes that people make in a configuration, each checked and run for real.

Every one gives the file, the line, what is wrong and what would be right, exits with 78, and starts nothing.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.product import environment

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

DIGEST = "ab" * 32

# name: the nodes of the block from line 2 on, the line that is to blame, what is said of it, and of what is right
MISTAKES: dict[str, tuple[str, int, str, str]] = {
    "a misspelt node": ("tcp-adress \"127.0.0.1:1\"", 2, "unknown node", 'did you mean "tcp-address"?'),
    "an underscore in a node": ("socket_mode \"0660\"", 2, "unknown node", 'did you mean "socket-mode"?'),
    "a node of the pool outside": ('strategy "random"', 2, "unknown node", "it belongs into reverse-listener > pool"),
    "a node of auth outside of it": (f'token "*" sha256="{DIGEST}"', 2, "unknown node", "reverse-listener > auth"),
    "a node of the block in the pool": ("pool {\n shards 2\n}", 3, "unknown node", "it belongs directly into"),
    "a misspelt node in the pool": ('pool {\n strateggy "random"\n}', 3, "unknown node", 'did you mean "strategy"?'),
    "a node twice": ("shards 1\nshards 2", 3, "is there already, on line 2", "remove one of the two"),
    "a list in two nodes": (
        'allowed-agents "a"\nallowed-agents "b"', 3, "is there already, on line 2", "put all values into one node"),
    "a misspelt boolean": ('require-auth "tru"', 2, 'or false, got the string "tru"', "did you mean true?"),
    "a boolean in words": ('require-auth "yes"', 2, "expected true or false", "did you mean true?"),
    "a number for a boolean": ("require-auth 0", 2, "expected true or false, got the number 0", "did you mean false?"),
    "a number in quotes": ('shards "4"', 2, 'expected a whole number, got the string "4"', "did you mean 4?"),
    "a number with commas": ('max-handshakes "4,096"', 2, "expected a whole number", "did you mean 4096?"),
    "half a shard": ("shards 1.5", 2, "expected a whole number, got the number 1.5", ""),
    "a whole number as a fraction": ("shards 2.0", 2, "expected a whole number", "did you mean 2?"),
    "too many shards": ("shards 65", 2, "expected 1 to 64, got 65", ""),
    "no shard": ("shards 0", 2, "expected 1 to 64, got 0", ""),
    "a limit of nothing": ("max-connections-per-agent 0", 2, "expected 1 to 1000000, got 0", ""),
    "more for a peer than for all": (
        "max-handshakes 10\nmax-handshakes-per-peer 20", 3, "expected 1 to 10", "is the value of max-handshakes"),
    "a time without its unit": ("handshake-timeout 10", 2, "expected a time with its unit", 'did you mean "10s"?'),
    "a time with another unit": ('handshake-timeout "10 sec"', 2, "expected a time", 'such as "10s"'),
    "a time that is too long": ('handshake-timeout "1h"', 2, 'expected "10ms" to "10m", got "1h"', ""),
    "a time without quotes": ("handshake-timeout 10s", 2, "syntax error", 'put it in double quotes: "10s"'),
    "a port of its own": ('tcp-address "9090"', 2, "expected HOST:PORT", 'did you mean "0.0.0.0:9090"?'),
    "a name for a host": ('tcp-address "localhost:9090"', 2, "", "127.0.0.1:9090"),
    "a port that is none": ('tcp-address "127.0.0.1:99999"', 2, "port", ""),
    "an IPv6 address without brackets": ('tcp-address "::1:9090"', 2, "", "[::1]:9090"),
    "an address twice": ('tcp-address "127.0.0.1:1" "127.0.0.1:1"', 2, "the same address is there twice", ""),
    "a mode in decimal": ("socket-mode 660", 2, "", '"0660"'),
    "a mode that is none": ('socket-mode "rw-rw----"', 2, "", '"0660"'),
    "a pattern with a blank": ('allowed-agents "waf *"', 2, "a pattern is made of", ""),
    "a regular expression": ('allowed-agents "waf-[0-9]+"', 2, "a pattern is made of A-Z a-z 0-9", ""),
    "an empty allowlist": ("allowed-agents", 2, "an empty list would refuse every agent", "leave the node out"),
    "a required token that nobody can have": (
        "require-auth true", 2, "no agent could register: there is no token", 'make one with "shardgate token"'),
    "the token instead of its digest": (
        'auth {\n token "*" sha256="hunter2"\n}', 3, "64 hex digits, this has 7 characters", "shardgate token"),
    "a token in the open": ('auth {\n token "*" "hunter2"\n}', 3, 'has no sha256="…"', "shardgate token"),
    "a digest of nothing": (
        'auth {\n token "*" sha256="e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"\n}', 3,
        "this is the SHA-256 of nothing", "shardgate token"),
    "a misspelt property": (f'auth {{\n token "*" sha265="{DIGEST}"\n}}', 3, 'property "sha265"', "sha256="),
    "a misspelt strategy": ('pool {\n strategy "least-conections"\n}', 3, "", "least-connections"),
    "a misspelt placement": ('placement "spred"', 2, "", "spread"),
    "a block that takes values": ('auth "x" {\n}', 2, "takes no values of its own", "between { and }"),
    "a value in braces": ("path { agents; }", 2, "takes no block", "without braces"),
    "a value as a property": ("shards n=4", 2, 'takes no properties, got "n"', "write the value alone"),
    "two values for one": ('path "/a" "/b"', 2, "expected one value, got 2", ""),
    "no value": ("path", 2, "expected one value, got none", ""),
    "a path that is too long": (f'path "/{"x" * 200}"', 2, "201 bytes are too many", "choose a shorter folder"),
    "a brace that is missing": ("pool {\n strategy \"random\"", 1, "syntax error: this block is never closed", ""),
    "a quote that is missing": ('path "/a\nshards 2', 2, "syntax error", ""),
    "both versions of KDL": (
        "require-auth #true\npool {\n free-agent-memory true\n}", 4, "syntax error", "KDL 2 writes #true"),
    "a group for no directory": ('status-group "adm"', 2, "there is no status-dir", "add status-dir"),
    "a status directory for writers": (
        'status-dir "/run/x"\nstatus-mode "0770"', 3, "others could put sockets into it", '"0750" for a group'),
    "a configuration of an agent with a value and a block": (
        'agent-config "*" {\n a 1 { b 2; }\n}', 3, "values beside properties or children", "a name of their own"),
}  # fmt: skip


def test_there_are_enough_mistakes() -> None:
    assert len(MISTAKES) >= 30


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found_with_its_line_and_what_would_be_right(
    name: str, cli: Cli, tmp_path: Path, rundir: Path
) -> None:
    nodes, line, wrong, right = MISTAKES[name]
    file = tmp_path / "a.kdl"
    file.write_text(f"reverse-listener {{\n{nodes}\n}}\n")

    checked = cli("check", file)
    assert (checked.returncode, checked.stdout) == (78, "")
    [problem] = checked.stderr.splitlines()
    assert problem.startswith(f"{file}:{line}: "), problem
    assert wrong in problem
    assert right in problem
    assert "hunter2" not in problem

    # In this process, which would go on to serve if the file were good enough.
    run = cli("run", "--config", file, "--runtime-dir", rundir / "run")
    assert (run.returncode, run.stdout, run.stderr) == (78, "", checked.stderr)
    assert not (rundir / "run").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "there is no reverse-listener block; write reverse-listener { path"),
        ("reverse-listner {\n}\n", ':1: unknown block "reverse-listner"; did you mean "reverse-listener"?'),
        ("reverse-listener {\n}\nreverse-listener {\n}\n", ":3: reverse-listener: there is a block already, on line 1"),
        ("reverse-listener 5 {\n}\n", ":1: reverse-listener: takes no values of its own"),
        ("reverse-listener {\n    path b\"x\"\n}\n", ":2: syntax error"),
        ('reverse-listener {\n auth {\n token-file "none"\n }\n}\n', "none: cannot be read: No such file or directory"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_as_a_whole_exits_78_as_a_process_too(
    content: str, said: str, tmp_path: Path, rundir: Path
) -> None:
    file = tmp_path / "a.kdl"
    file.write_text(content)

    for command in (["check", str(file)], ["run", "--config", str(file), "--runtime-dir", str(rundir / "run")]):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "shardgate", *command],
            capture_output=True, text=True, env=environment(), check=False, timeout=120,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (78, "")
        assert said in done.stderr
    assert not (rundir / "run").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("waf-*", ":2: token: expected patterns and a SHA-256; a line is PATTERN"),
        (f"waf-* md5:{DIGEST}", ":2: token: expected patterns and a SHA-256"),
        ("waf-* sha256:hunter2", ":2: token: a SHA-256 is 64 hex digits, this has 7 characters"),
        (f"waf ? sha256:{DIGEST}", ":2: token: expected patterns and a SHA-256"),
        (f"wäf sha256:{DIGEST}", ":2: token: a pattern is made of"),
    ],
)
def test_a_mistake_in_a_token_file_is_found_with_its_line(line: str, said: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"# for the WAFs\n{line}\n")
    (tmp_path / "a.kdl").write_text('reverse-listener {\n auth { token-file "tokens"; }\n}\n')

    done = cli("check", tmp_path / "a.kdl")

    assert done.returncode == 78
    assert f"{tmp_path}/tokens{said}" in done.stderr
    assert "hunter2" not in done.stderr
