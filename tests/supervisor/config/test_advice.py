"""Advice is never wrong: what a hint proposes is put into the file, and the file is good then."""

import re
from collections.abc import Iterator

import pytest

from supervisor.config.errors import ConfigError, Problem
from supervisor.config.kdl import parse_config

HEAD = 'reverse-listener {\n    path "/tmp/x.sock"\n'
TAIL = "\n}\n"

# As people write it: the nodes of the block from line 3 on, and what the hint says.
SPELLINGS = [
    ("socket-mode 0o660", 'write it as a string: "0660"'),
    ("socket-mode 0x1b0", 'write it as a string: "0660"'),
    ("socket-mode 0660", 'write it as a string: "0660"'),
    ("socket-mode 660", 'write it as a string: "0660"'),
    ("socket-mode 420", 'write it as a string: "0644"'),
    ("socket-mode 432", 'write it as a string: "0660"'),
    ('socket-mode "rw-rw----"', 'did you mean "0660"?'),
    ("socket-mode '0660'", 'did you mean "0660"?'),
    ("socket-mode “0660”", 'did you mean "0660"?'),
    ("shards=2", "write shards 2"),
    ("shards = 2", "write shards 2"),
    ("shards: 2", 'did you mean "shards"?'),
    ("shards\u200b 2", 'did you mean "shards"? U+200B is in it'),
    ('shards "2"', "did you mean 2?"),
    ('shards "2,"', "did you mean 2?"),
    ('shards "auto"', "leave the node out for its default"),
    ("maxConnectionsPerAgent 4", 'did you mean "max-connections-per-agent"?'),
    ("require-auth=false", "write require-auth false"),
    ("require-auth False", "did you mean false?"),
    ("require-auth off\nallowed-agents waf-1", "did you mean #false?"),
    ("require-auth #False", "write require-auth #false"),
    ("# shards 2", "a comment begins with //"),
    ("#shards 2", "a comment begins with //"),
    ("shards 2 # two", "a comment begins with //"),
    ("-- shards 2", "a comment begins with //"),
    ("shards 2 -- two", "a comment begins with //"),
    ("; shards 2", "a comment begins with //"),
    ("pool {\n ; strategy \"nonsense\"\n}", "a comment begins with //"),
    ('allowed-agents "a", "b"', 'write allowed-agents "a" "b"'),
    ('allowed-agents ["a", "b"]', 'write allowed-agents "a" "b"'),
    ('allowed-agents [\n "a"\n "b"\n]', 'write allowed-agents "a" "b"'),
    ('allowed-agents = [ a, b ]', 'write allowed-agents "a" "b"'),
    ('allowed-agents "a",\n  "b"', "behind a backslash at the end of the line"),
    ('allowed-agents "a" shards 2', "end each node with a line break or a semicolon, also in front of shards"),
    ("allowed-agents a path b", "end each node with a line break or a semicolon, also in front of path"),
    ("shards 2 placement spread", "end each node with a line break or a semicolon, also in front of placement"),
    ('pool { strategy "random" request-timeout "30s" }', "also in front of request-timeout"),
    ("allow-uid 1000,1001", "write allow-uid 1000 1001"),
    ("max-handshakes 4,096", "write max-handshakes 4096"),
    ('max-registration-bytes "64 KiB"', "did you mean 65536?"),
    ('max-registration-bytes "64KB"', "write the number of bytes, such as 65536 for 64 KiB"),
    ("max-registration-bytes 64k", "write the number of bytes, such as 65536 for 64 KiB"),
    ("handshake-timeout 10s", 'put it in double quotes: "10s"'),
    ("handshake-timeout 10", 'did you mean "10s"?'),
    ("handshake-timeout 10 s", 'did you mean "10s"?'),
    ('handshake-timeout "1m30s"', 'did you mean "90s"?'),
    ('handshake-timeout "10S"', 'did you mean "10s"?'),
    ('handshake-timeout "2 min"', 'did you mean "2m"?'),
    ("tcp-address 127.0.0.1:9090", 'write tcp-address "127.0.0.1:9090"'),
    ('tcp-address "tcp://127.0.0.1:9090"', 'did you mean "127.0.0.1:9090"?'),
    ('tcp-address "localhost:9090"', 'did you mean "127.0.0.1:9090" or "[::1]:9090"?'),
    ('tcp-address "::1:9090"', 'did you mean "[::1]:9090"?'),
    ('tcp-address "127.0.0.1:9090/"', 'did you mean "127.0.0.1:9090"?'),
    ('tcp-address "127.0.0.1:90,127.0.0.1:91"', "write each address as a string of its own"),
    ('admin "127.0.0.1:9180"', 'write admin { listen "127.0.0.1:9180" }'),
    ("admin { port 9180; }", 'it is listen, as in listen "127.0.0.1:9180"'),
    ('admin { listen "http://127.0.0.1:9180/"; }', 'did you mean "127.0.0.1:9180"?'),
    ('admin { listen "admin.sock"; }', 'did you mean "./admin.sock"?'),
    ('auth { token "*" sha256="${DIGEST}"; }', "a token-file keeps digests apart"),
    ('agent-config "*" { "a": 1 }', "without = or :"),
    ('reverse-listener { path "/x"; }', "it is inside reverse-listener already"),
    ("runtime-dir ~/run", "put text in double quotes"),
    ("shards { 2 }", "a value stands behind the name of its node, on the same line and without braces"),
    # What the configuration of the protocol's own proxy says of its agents.
    ('unix-socket path="/var/run/waf.sock"', "agents' addresses are path and tcp-address"),
    ('grpc "http://localhost:50051"', "agents' addresses are path and tcp-address"),
    ('events "request_headers"', "an agent says so itself when it registers"),
    ('failure-mode "closed"', "is the proxy's matter"),
    ("timeout-ms 200", "it is pool > request-timeout"),
    ("circuit-breaker { failure-threshold 5; }", "it is pool > breaker-threshold"),
    ("max-concurrent-calls 100", "it is pool > max-concurrent-per-connection"),
    ('load-balancing "round_robin"', "it is pool > strategy"),
    ('pool { strategy "least_connections"; }', 'did you mean "least-connections"?'),
    ('pool { flow-control "fail_closed"; }', 'did you mean "fail-closed"?'),
    ('tls { cert-file "x"; }', "TLS is not spoken"),
    ("worker-threads 4", "it is shards"),
    ('auth-token "hunter2"', "it is auth { token … }"),
]  # fmt: skip


def problems_of(text: str) -> list[Problem]:
    try:
        parse_config(text, "listener.kdl")
    except ConfigError as error:
        return error.problems
    return []


@pytest.mark.parametrize(("nodes", "said"), SPELLINGS)
def test_hint_knows_how_people_write(nodes: str, said: str) -> None:
    [problem] = problems_of(HEAD + nodes + TAIL)
    assert problem.line is not None
    assert problem.line >= 3
    assert said in (problem.hint or "")
    assert "hunter2" not in str(problem)
    for proposal in proposals(problem.hint or ""):
        mended = applied(nodes, problem, proposal)
        assert problems_of(HEAD + mended + TAIL) == [], mended


def proposals(hint: str) -> list[str]:
    """The values and lines that a hint proposes, each of which has to be good."""
    found = re.match(r"did you mean (.+?)\?(?: |$)", hint)
    if found is not None:
        return found[1].split(" or ")
    found = re.match(r"(?:write it as a string: |put it in double quotes: |write )(\S.*)", hint)
    if found is None or hint.startswith(("write each", "write the", "write PATTERN", "write a ", "write token ")):
        return []
    return [found[1]]


PARTS = re.compile(r"((?:\w+ \{ )?)([^\s:=\u200b]+)[:=\u200b]?(.*?)(;? \}|)", re.DOTALL)


def applied(nodes: str, problem: Problem, proposal: str) -> str:
    """Put a proposal in the place of what it is about: a whole line, a name, or the values of a node."""
    lines = nodes.split("\n")
    at = (problem.line or 0) - 3
    parts = PARTS.fullmatch(lines[at])
    assert parts is not None
    begin, name, values, end = parts.groups()
    if problem.message == "unknown node":
        lines[at] = begin + proposal.strip('"') + values + end
    elif (problem.hint or "").startswith("write ") and "write it as" not in (problem.hint or ""):
        # A list may go over several lines.
        rest = lines[at + 1 :] if "]" in lines[at] or "[" not in lines[at] else []
        return "\n".join([*lines[:at], begin + proposal + end, *rest])
    else:
        lines[at] = f"{begin}{name} {proposal}{end}"
    return "\n".join(lines)


GOOD = {
    "socket-mode": ['"0660"'], "shards": ["2"], "max-handshakes": ["1024"], "max-registration-bytes": ["65536"],
    "require-auth": ["false"], "placement": ['"affinity"'], "handshake-timeout": ['"10s"', '"500ms"'],
    "tcp-address": ['"127.0.0.1:9090"', '"[::1]:9090"'], "allowed-agents": ['"waf-1"', '"waf-*"'],
    "allow-uid": ["1000"], "runtime-dir": ['"/run/x"'], "status-dir": ['"/run/y"'], "socket-owner": ['"proxy"', "33"],
}  # fmt: skip


def ways(name: str, value: str) -> Iterator[str]:
    """A node as people write it that are used to other languages."""
    bare = value.strip('"')
    yield from (f"{name}={value}", f"{name} = {value}", f"{name}: {value}", f"{name} := {value}", f"{name}={bare}")
    yield from (f"{name} {bare}", f"{name} '{bare}'", f"{name} “{bare}”", f"{name} „{bare}“", f"{name} «{bare}»")
    yield from (f"{name} {value},", f"{name} {bare},", f'{name} "{bare},"', f'{name} "{bare};"', f'{name} " {bare}"')
    yield from (f"{name} [{value}]", f"{name} [{bare}]", f"{name} = [ {value} ]", f"{name} {value} # why")
    yield from (
        f"{name.upper()} {value}",
        f"{name.replace('-', '_')} {value}",
        f"{name}s {value}",
        f'"{name}": {value}',
    )
    yield from (
        f'"{name}": {value}',
        f'{name} "{bare.upper()}"',
        f"{name} `{bare}`",
        f"{name} {value} {value},",
        f"{name} \"'{bare}'\"",
    )


@pytest.mark.parametrize("name", GOOD)
def test_each_proposal_is_good_however_a_node_was_written(name: str) -> None:
    proposed = 0
    for value in GOOD[name]:
        assert problems_of(f"{HEAD}{name} {value}{TAIL}") == []
        for nodes in ways(name, value):
            found = problems_of(HEAD + nodes + TAIL)
            assert all(problem.line == 3 for problem in found), nodes
            for problem in found:
                for proposal in proposals(problem.hint or ""):
                    mended = applied(nodes, problem, proposal)
                    assert problems_of(HEAD + mended + TAIL) == [], (nodes, problem.hint, mended)
                    proposed += 1
    assert proposed >= 8
