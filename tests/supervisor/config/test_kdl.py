"""Reading the reverse-listener block, and every way to get it wrong."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.config.errors import ConfigError
from supervisor.config.kdl import load_config, parse_config
from supervisor.config.model import (
    AgentConfigRule,
    Config,
    Placement,
    ReverseConnectionConfig,
    TcpAddress,
    Token,
)
from supervisor.config.tokens import hash_token

HEX = hash_token("swordfish").hex()
OTHER = hash_token("other").hex()

# The block of the reverse connection document, word for word.
DOCUMENT = """\
reverse-listener {
    path "/var/run/sentinel/agents.sock"
    max-connections-per-agent 4
    handshake-timeout "10s"

    // Optional: TCP listener for remote agents
    // tcp-address "0.0.0.0:9090"

    // Security settings
    require-auth true
    allowed-agents "waf-*" "auth-agent"
}
"""

EVERYTHING = f"""\
system {{ worker-threads 0; listener-backlog "many" }}
reverse-listener {{
    path "/var/run/sentinel/agents.sock"
    socket-mode "0600"
    socket-owner "proxy"
    socket-group "1001"
    tcp-address "0.0.0.0:9090" "[::1]:9090"
    max-connections-per-agent 8
    max-connections 900
    max-connections-per-peer 90
    handshake-timeout "500ms"
    max-registration-bytes 4096
    max-handshakes 1024
    max-handshakes-per-peer 16
    require-auth true
    allowed-agents "waf-*" "auth-agent"
    allow-uid 1000 1001
    auth {{
        token "waf-*" "log-*" sha256="{HEX}"
        token-file "/etc/shardgate/tokens"
        token "auth-agent" sha256="{OTHER.upper()}" max-connections=20
        token-file "more" "sub/tokens"
    }}
    agent-config "waf-*" "auth-*" {{ rules_version "3.4.0"; limits {{ rate 10; burst 20 }} }}
    agent-config "waf-1" {{ limits burst=5; tags "a" "b"; none null }}
    shards 4
    placement "affinity"
    runtime-dir "run"
}}
route "x" {{ upstream "y" }}
"""


def block(lines: str) -> str:
    """Put lines into a block; the first of them is line 2 of the file."""
    return f"reverse-listener {{\n{lines}\n}}\n"


def errors(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "listener.kdl")
    return str(caught.value).split("\n")


def test_document_block_gives_its_values_when_a_token_is_there() -> None:
    token = f'auth {{ token "waf-*" sha256="{HEX}"; }}\n'
    for text in (DOCUMENT, DOCUMENT.replace("true", "#true")):
        config = parse_config(text.replace("    require-auth", token + "require-auth"), "/etc/sentinel.kdl")

        assert config == Config(
            path="/var/run/sentinel/agents.sock",
            limits=ReverseConnectionConfig(
                handshake_timeout=10.0,
                max_connections_per_agent=4,
                require_auth=True,
                allowed_agents=("waf-*", "auth-agent"),
            ),
            tokens=(Token(("waf-*",), hash_token("swordfish")),),
            source="/etc/sentinel.kdl",
        )


def test_document_block_word_for_word_lacks_only_a_token() -> None:
    for text in (DOCUMENT, DOCUMENT.replace("true", "#true")):
        assert errors(text) == [
            (
                "listener.kdl:10: reverse-listener > require-auth: no agent could register: there is no token; make "
                'one with "shardgate token" and add auth { token … } or auth { token-file … }'
            )
        ]
        assert parse_config(text.replace("require-auth", "// require-auth"), "x").path is not None


def test_document_block_word_for_word_is_read_when_an_option_names_a_token_file(tmp_path: Path) -> None:
    (tmp_path / "sentinel.kdl").write_text(DOCUMENT)
    (tmp_path / "tokens").write_text(f"* sha256:{HEX}\n")
    options = {"token_file": str(tmp_path / "tokens"), "uds": str(tmp_path / "agents.sock")}
    config = load_config(tmp_path / "sentinel.kdl", options)

    assert config.limits.require_auth
    assert config.path == str(tmp_path / "agents.sock")
    assert config.token_files == (str(tmp_path / "tokens"),)


def test_every_node_is_read_in_both_spellings() -> None:
    config = parse_config(EVERYTHING, "/etc/shardgate/listener.kdl")

    assert config == Config(
        path="/var/run/sentinel/agents.sock",
        socket_mode=0o600,
        socket_owner="proxy",
        socket_group=1001,
        tcp_addresses=(TcpAddress("0.0.0.0", 9090), TcpAddress("::1", 9090)),
        limits=ReverseConnectionConfig(
            handshake_timeout=0.5,
            max_connections_per_agent=8,
            require_auth=True,
            allowed_agents=("waf-*", "auth-agent"),
        ),
        max_connections=900,
        max_connections_per_peer=90,
        max_registration_bytes=4096,
        max_handshakes=1024,
        max_handshakes_per_peer=16,
        allow_uids=(1000, 1001),
        tokens=(Token(("waf-*", "log-*"), hash_token("swordfish")), Token(("auth-agent",), hash_token("other"), 20)),
        token_files=("/etc/shardgate/tokens", "/etc/shardgate/more", "/etc/shardgate/sub/tokens"),
        agent_config=(
            AgentConfigRule(("waf-*", "auth-*"), {"rules_version": "3.4.0", "limits": {"rate": 10, "burst": 20}}),
            AgentConfigRule(("waf-1",), {"limits": {"burst": 5}, "tags": ["a", "b"], "none": None}),
        ),
        shards=4,
        placement=Placement.AFFINITY,
        runtime_dir="/etc/shardgate/run",
        source="/etc/shardgate/listener.kdl",
    )
    sharp = EVERYTHING.replace(" true", " #true").replace(" null", " #null")
    assert parse_config(sharp, "/etc/shardgate/listener.kdl") == config


def test_empty_block_gives_the_defaults() -> None:
    config = parse_config("reverse-listener {\n}", "x")

    assert config == Config(source="x")
    assert config.limits == ReverseConnectionConfig(
        handshake_timeout=10.0, max_connections_per_agent=4, require_auth=False, allowed_agents=None
    )
    assert (config.socket_mode, config.max_registration_bytes) == (0o660, 16384)
    assert (config.max_handshakes, config.max_handshakes_per_peer) == (4096, 256)
    assert (config.shards, config.placement, config.allow_uids) == (None, Placement.SPREAD, None)


def test_limit_per_peer_follows_the_total_when_only_that_is_lowered() -> None:
    assert parse_config(block("max-handshakes 10"), "x").max_handshakes_per_peer == 10


def test_other_blocks_are_ignored_whatever_they_hold() -> None:
    others = 'listeners { listener "x" { path 1 } }\nlistener\nreverse-proxy "a" k=(u8)1\npath 5\nshards "x"\n'
    assert parse_config(others + block('path "a"') + others, "x").path == "a"


# One line each inside the block (the block begins on line 1, so they stand on line 2), and what is said.
SINGLE_LINE = [
    ('require-auth "tru"', 'require-auth: expected true or false, got the string "tru"; did you mean true?'),
    ("require-auth tru", 'require-auth: expected true or false, got the string "tru"; did you mean true?'),
    ('require-auth "off"', 'require-auth: expected true or false, got the string "off"; did you mean false?'),
    ("require-auth 1", "require-auth: expected true or false, got the number 1; did you mean true?"),
    ("require-auth null", "require-auth: expected true or false, got null"),
    ("require-auth", "require-auth: expected one value, got none"),
    ("require-auth true false", "require-auth: expected one value, got 2"),
    (
        "handshake-timeout 10",
        'handshake-timeout: expected a time with its unit, got the number 10; did you mean "10s"?',
    ),
    (
        'handshake-timeout "10"',
        'handshake-timeout: expected a time with its unit, got the string "10"; did you mean "10s"?',
    ),
    (
        'handshake-timeout "10 parsecs"',
        (
            'handshake-timeout: expected a time with its unit, got the string "10 parsecs"; write a number and ms, s, '
            'm or h, such as "10s"'
        ),
    ),
    ('handshake-timeout "1ms"', 'handshake-timeout: expected "10ms" to "10m", got "1ms"'),
    ('handshake-timeout "1h"', 'handshake-timeout: expected "10ms" to "10m", got "1h"'),
    ("shards 0", "shards: expected 1 to 64, got 0"),
    ("shards 65", "shards: expected 1 to 64, got 65"),
    ('shards "4"', 'shards: expected a whole number, got the string "4"; did you mean 4?'),
    ("shards 4.0", "shards: expected a whole number, got the number 4.0; did you mean 4?"),
    ("shards true", "shards: expected a whole number, got true"),
    ("shards 99999999999999999999", "shards: expected a whole number, got a huge number"),
    ("shards (u8)4", "shards: takes no type annotation"),
    ("(u8)shards 4", "shards: takes no type annotation"),
    ("max-connections-per-agent 0", "max-connections-per-agent: expected 1 to 1000000, got 0"),
    ("max-registration-bytes 255", "max-registration-bytes: expected 256 to 1048576, got 255"),
    ("max-handshakes 70000", "max-handshakes: expected 1 to 65536, got 70000"),
    (
        "max-handshakes-per-peer 4097",
        "max-handshakes-per-peer: expected 1 to 4096, got 4097; 4096 is the value of max-handshakes",
    ),
    (
        "socket-mode 660",
        'socket-mode: expected an octal mode in a string, got the number 660; write it as a string: "0660"',
    ),
    (
        'socket-mode "0680"',
        'socket-mode: expected an octal mode from 0000 to 0777, got the string "0680"; such as "0660"',
    ),
    (
        'socket-mode "4755"',
        'socket-mode: expected an octal mode from 0000 to 0777, got the string "4755"; such as "0660"',
    ),
    ('socket-owner "a b"', 'socket-owner: expected a name or a number, got the string "a b"'),
    ("socket-group -1", "socket-group: expected a number from 0 to 4294967294, got the number -1"),
    ('placement "sprad"', 'placement: expected "spread" or "affinity", got the string "sprad"; did you mean "spread"?'),
    ("placement 1", 'placement: expected "spread" or "affinity", got the number 1'),
    ("path 1", "path: expected a string, got the number 1"),
    ('path ""', "path: expected a string, got an empty one"),
    ('path "a\\u{0}b"', "path: a NUL character cannot be part of it"),
    (
        f'path "/{"x" * 107}"',
        "path: 108 bytes are too many: the path of a Unix socket has at most 107; choose a shorter folder",
    ),
    ('path "a" mode="0660"', 'path: takes no properties, got "mode"; write the value alone, without a name and ='),
    ('path "a" { b; }', "path: takes no block; write the value behind the name, without braces"),
    ("tcp-address", "tcp-address: expected at least one value, got none"),
    (
        'tcp-address "localhost:9090"',
        (
            'tcp-address: expected a numeric address in front of the port, got "localhost:9090"; did you mean '
            '"127.0.0.1:9090" or "[::1]:9090"?'
        ),
    ),
    (
        'tcp-address "::1:9090"',
        'tcp-address: expected a numeric address in front of the port, got "::1:9090"; did you mean "[::1]:9090"?',
    ),
    (
        'tcp-address "9090"',
        'tcp-address: expected HOST:PORT with a port from 0 to 65535, got "9090"; did you mean "0.0.0.0:9090"?',
    ),
    (
        'tcp-address ":9090"',
        (
            'tcp-address: expected a numeric address in front of the port, got ":9090"; for every address of this host '
            'write "0.0.0.0:9090" or "[::]:9090"'
        ),
    ),
    (
        "tcp-address 9090",
        'tcp-address: expected HOST:PORT in a string, got the number 9090; such as "0.0.0.0:9090" or "[::]:9090"',
    ),
    ('tcp-address "10.0.0.1:1" "10.0.0.1:1"', "tcp-address: the same address is there twice"),
    (
        "allowed-agents",
        "allowed-agents: an empty list would refuse every agent; name the agents, or leave the node out to allow all",
    ),
    ("allowed-agents 1", "allowed-agents: expected a pattern of agent ids in a string, got the number 1"),
    (
        'allowed-agents "waf-*,auth"',
        (
            'allowed-agents: a pattern is made of A-Z a-z 0-9 . _ : @ - and *, got "waf-*,auth"; give several patterns '
            "as separate strings"
        ),
    ),
    (
        'allowed-agents "w\\u{1b}[1m"',
        'allowed-agents: a pattern is made of A-Z a-z 0-9 . _ : @ - and *, got "w\\x1b[1m"',
    ),
    ("max-connections 0", "max-connections: expected 1 to 10000000, got 0"),
    ("max-connections-per-peer 0", "max-connections-per-peer: expected 1 to 10000000, got 0"),
    ("allow-uid", "allow-uid: expected at least one value, got none"),
    ("allow-uid 4294967295", "allow-uid: expected a number from 0 to 4294967294, got the number 4294967295"),
    ("allow-uid 0 root", 'allow-uid: expected a whole number, got the string "root"'),
    ("handshake_timeout 10", 'handshake_timeout: unknown node; did you mean "handshake-timeout"?'),
    ('paht "x"', 'paht: unknown node; did you mean "path"?'),
    ("zzz", "zzz: unknown node"),
    ('token-file "x"', "token-file: unknown node; it belongs into reverse-listener > auth"),
    ('auth "x"', "auth: takes no values of its own; write token or token-file between { and }"),
    ("auth { shards 4; }", "auth > shards: unknown node; it belongs directly into reverse-listener"),
    ('auth { tokn "x"; }', 'auth > tokn: unknown node; did you mean "token"?'),
    ("auth { token-file; }", "auth > token-file: expected at least one file, got none"),
    (
        'auth { token "a" sha256="abc"; }',
        (
            'auth > token: a SHA-256 is 64 hex digits, this has 3 characters; write token "PATTERN" sha256="…"; '
            '"shardgate token" prints such a line'
        ),
    ),
    (
        "agent-config { a 1; }",
        'agent-config: expected at least one pattern of agent ids, got none; agent-config "*" { … } is for every agent',
    ),
    (
        'agent-config "*" { a 1; a 2; }',
        (
            "agent-config > a: is there already, on line 2; write an array as one node "
            "with several values, or as a block of nodes called -"
        ),
    ),
    (
        'agent-config "*" { a; }',
        "agent-config > a: has no value; write one behind it: true, a number, a string; or (object) in front",
    ),
]


@pytest.mark.parametrize(("line", "message"), SINGLE_LINE)
def test_bad_value_is_reported_with_its_line_what_is_wrong_and_what_would_be_right(line: str, message: str) -> None:
    assert errors(block(line)) == [f"listener.kdl:2: reverse-listener > {message}"]


def test_hint_has_the_spelling_of_the_file_when_that_is_kdl_2() -> None:
    [error] = errors(block("agent-config a { b #false; }\nrequire-auth tru"))

    assert error.startswith("listener.kdl:3: reverse-listener > require-auth: expected true or false")
    assert error.endswith('got the string "tru"; did you mean #true?')


def test_all_problems_are_reported_in_the_order_of_the_file() -> None:
    found = errors(
        block(
            "shards 100\n"
            'tcp-address "x:1" "127.0.0.1:80" 7\n'
            "/- shards 5\n"
            'auth {\n token "a"\n tokn\n}\n'
            "shards 4\n"
            'agent-config "a" {\n x {\n  y\n  z 1 k=2\n }\n}\n'
            "require-auth true\n"
            "max-handshakes 0"
        )
    )

    assert [(int(line.split(":")[1]), line.split(": ")[1]) for line in found] == [
        (2, "reverse-listener > shards"),
        (3, "reverse-listener > tcp-address"),
        (3, "reverse-listener > tcp-address"),
        (6, "reverse-listener > auth > token"),
        (7, "reverse-listener > auth > tokn"),
        (9, "reverse-listener > shards"),
        (12, "reverse-listener > agent-config > x > y"),
        (13, "reverse-listener > agent-config > x > z"),
        (17, "reverse-listener > max-handshakes"),
    ]
    assert "is there already, on line 2; remove one of the two" in found[5]


def test_repeated_list_is_an_error_that_tells_how_to_join_it() -> None:
    assert errors(block('tcp-address "0.0.0.0:1"\ntcp-address "0.0.0.0:2"')) == [
        "listener.kdl:3: reverse-listener > tcp-address: is there already, on line 2; put all values into one node"
    ]


@pytest.mark.parametrize(
    "token",
    [
        'token "waf-*" "hunter2"',
        'token "waf-*" sha256="hunter2"',
        'token "waf-*" secret="hunter2"',
        'token "waf-*" sha256="hunter2" token="hunter2"',
        'token sha256="hunter2"',
        f'token sha256="{HEX}"',
        'token "waf-*" { sha256 "hunter2"; }',
        f'token "waf-*" sha256="{HEX}" "a b"',
        'token "waf-*" sha256=12345678',
        f'token "waf-*" sha256="{HEX}" max-connections="hunter2"',
        f'token "waf-*" sha256="{HEX}" max-connections=0',
        f'token "waf-*" sha256="{HEX}" max-connections=10000001',
        f'token "waf-*" sha256="{HEX}" max-connections=true',
        f'token "waf-*" sha256="{hash_token("").hex()}"',
    ],
)
def test_bad_token_is_an_error_that_shows_no_secret(token: str) -> None:
    for error in errors(block("auth {\n" + token + "\n}")):
        assert error.startswith("listener.kdl:3: reverse-listener > auth > token: ")
        assert "hunter2" not in error
        assert HEX not in error
        assert "12345678" not in error


@pytest.mark.parametrize(
    "name", ["reverse-listner", "reverse_listener", "Reverse-Listener", "reverse-listeners", "reverselistener"]
)
def test_misspelt_block_is_an_error_beside_a_right_one_or_alone(name: str) -> None:
    message = f'unknown block "{name}"; did you mean "reverse-listener"?'

    assert errors(f"\n{name} {{\n}}") == [f"listener.kdl:2: {message}"]
    assert errors(block("") + f"{name} {{\n}}") == [f"listener.kdl:4: {message}"]


def test_block_must_be_there_exactly_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDGATE_RUNTIME_DIR", "/run/shardgate")
    nothing = (
        'listener.kdl: there is no reverse-listener block; write reverse-listener { path "/run/shardgate/agents.sock" }'
    )
    assert errors("") == [nothing]
    assert errors("path 1\nlisteners {\n}") == [nothing]
    assert errors(block("") + block("")) == [
        "listener.kdl:4: reverse-listener: there is a block already, on line 1; join the two"
    ]
    assert errors('reverse-listener path="x" {\n}') == [
        "listener.kdl:1: reverse-listener: takes no values of its own; write each as a node between { and }"
    ]


def test_required_token_is_not_missed_when_it_could_not_be_read() -> None:
    [error] = errors(block('require-auth true\nauth {\n token "a" sha256="b"\n}'))
    assert "64 hex digits" in error


def test_too_large_an_object_for_one_agent_is_an_error() -> None:
    big = "x" * 30_000
    rules = f'agent-config "{{}}" {{ a "{big}" }}\n'.replace("{ a", "{{ a").replace('" }', '" }}')
    assert len(parse_config(block(rules.format("waf-*") + rules.format("auth-*")), "x").agent_config) == 2
    assert errors(block(rules.format("waf-*") + rules.format("auth-*") + rules.format("*-1"))) == [
        (
            'listener.kdl:2: reverse-listener > agent-config: an agent may be sent 49152 bytes of JSON, "waf-*" and '
            '"*-1" can add up to 60016'
        )
    ]


def test_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "listener.kdl"

    def error() -> str:
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        return str(caught.value)

    assert error() == f"{path}: cannot be read: No such file or directory"
    path.mkdir()
    assert error() == f"{path}: is a directory, expected a file"
    path.rmdir()
    path.write_bytes(b"// one\n// tw\xc3\n" + block("").encode())
    assert error() == f"{path}:2: is not UTF-8; save it as UTF-8"
    path.write_bytes(b" " * (1024 * 1024 + 1))
    assert error() == f"{path}: is larger than 1048576 bytes"
    path.unlink()
    os.mkfifo(path)
    assert error() == f"{path}: is not a regular file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "listener.kdl"
    path.touch(0)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        load_config(path)


def test_file_name_that_is_impossible_is_an_error() -> None:
    for name in ("a\0b", "x" * 5000):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_config(name)


def test_file_is_read_with_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "listener.kdl"
    path.write_bytes(b"\xef\xbb\xbf" + block("shards 4\nplacement 1").replace("\n", "\r\n").encode())
    with pytest.raises(ConfigError, match=r"listener\.kdl:3: .* placement"):
        load_config(path)


def test_relative_paths_count_from_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokens").write_text(f"a sha256:{HEX}\n")
    (tmp_path / "listener.kdl").write_text(
        block('path "agents.sock"\nruntime-dir "/run/x"\nrequire-auth true\nauth { token-file "tokens"; }')
    )
    config = load_config(tmp_path / "listener.kdl")
    assert (config.path, config.runtime_dir) == (f"{tmp_path}/agents.sock", "/run/x")
    assert config.token_files == (f"{tmp_path}/tokens",)

    monkeypatch.chdir(tmp_path)
    assert load_config("listener.kdl").path == "agents.sock"


def test_load_reports_token_files_and_block_together(tmp_path: Path) -> None:
    path = tmp_path / "listener.kdl"
    (tmp_path / "tokens").write_text("one\n")
    path.write_text(block('shards 0\nrequire-auth true\nauth { token-file "tokens" "absent"; }'))
    with pytest.raises(ConfigError) as caught:
        load_config(path)

    assert [str(p).split(":")[:2] for p in caught.value.problems] == [
        [str(path), "2"],
        [str(tmp_path / "tokens"), "1"],
        [str(tmp_path / "absent"), " cannot be read"],
    ]


def test_load_refuses_required_tokens_when_the_token_file_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "listener.kdl"
    (tmp_path / "tokens").write_text("# none\n")
    path.write_text(block('auth { token-file "tokens"; }\nrequire-auth true'))
    with pytest.raises(ConfigError) as caught:
        load_config(path)

    assert str(caught.value).startswith(f"{path}:3: reverse-listener > require-auth: no agent could register")
    path.write_text(block('auth { token-file "tokens"; }'))
    assert load_config(path).token_files


def test_error_escapes_control_characters_of_names_and_files() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(block('"\\u{1b}[2J" 1'), "evil\n\x1b.kdl")
    assert str(caught.value).isprintable()


def outcome(text: str) -> Config | ConfigError:
    try:
        return parse_config(text, "x.kdl")
    except ConfigError as error:
        result = error
    assert result.problems
    assert all(str(problem).isprintable() for problem in result.problems)
    return result


@settings(max_examples=200, deadline=None)
@given(st.text() | st.text().map(block) | st.characters(codec=None).map(lambda c: block(f'path "{c}"')))
def test_any_text_gives_a_config_or_a_config_error(text: str) -> None:
    outcome(text)


values = st.sampled_from(
    [
        "1",
        "-1",
        "1e999",
        "0",
        "4",
        "true",
        '"4"',
        '"a"',
        '"*"',
        '""',
        '"10s"',
        '"0660"',
        '"1.1.1.1:1"',
        "(t)1",
        "null",
        "k=1",
        'sha256="x"',
        f'sha256="{HEX}"',
        "{ a 1; }",
        "{ token 1; }",
        "{ - 1; - { a; }; }",
        "#nan",
        "9" * 500,
    ]
)
nodes = st.sampled_from(
    [
        "path",
        "socket-mode",
        "socket-owner",
        "tcp-address",
        "max-handshakes",
        "handshake-timeout",
        "require-auth",
        "allowed-agents",
        "allow-uid",
        "auth",
        "agent-config",
        "shards",
        "placement",
        "(array)shards",
        "/- auth",
    ]
)
lines = st.tuples(nodes, st.lists(values, max_size=3)).map(lambda line: " ".join([line[0], *line[1]]))


@settings(max_examples=300, deadline=None)
@given(st.lists(lines, max_size=6).map("\n".join))
def test_any_mix_of_known_nodes_gives_a_config_or_an_error_inside_the_block(body: str) -> None:
    result = outcome(block(body))

    if isinstance(result, ConfigError):
        assert all(p.line is not None and 2 <= p.line <= body.count("\n") + 3 for p in result.problems)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_damaged_file_gives_a_config_or_a_config_error(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(EVERYTHING)))
    end = data.draw(st.integers(start, min(start + 10, len(EVERYTHING))))
    outcome(EVERYTHING[:start] + data.draw(st.text('"{}=#\\/- \n1a;', max_size=3)) + EVERYTHING[end:])


@pytest.mark.parametrize("opener", ["a {", "/- {", 'agent-config "*" { ', "(", "/*", '"\\', "{"])
def test_deeply_nested_text_is_refused_without_a_crash(opener: str) -> None:
    assert isinstance(outcome("reverse-listener {" + opener * 100_000), ConfigError)


def test_problem_is_at_the_node_and_not_at_look_alikes() -> None:
    decoys: list[Callable[[str], str]] = [
        lambda node: f"// {node}",
        lambda node: f"/* {node} */",
        lambda node: f"/- {node}",
        lambda node: f'path r#"\n{node}"#',
        lambda node: f"/- auth {{\n {node}\n}}",
        lambda node: f'agent-config "*" {{\n {node}\n}}',
    ]
    for decoy in decoys:
        text = block(decoy("shards 100") + "\nmax-handshakes 5\nshards 100")
        [error] = errors(text)
        assert error.startswith(f"listener.kdl:{text.count(chr(10)) - 1}: reverse-listener > shards: expected 1 to 64")


@pytest.mark.parametrize(
    ("block", "listen", "mode", "remote"),
    [
        ('listen "127.0.0.1:9180"', TcpAddress("127.0.0.1", 9180), 0o600, False),
        ('listen "[::1]:0"', TcpAddress("::1", 0), 0o600, False),
        ('listen "./admin.sock"; socket-mode "0660"', "/etc/admin.sock", 0o660, False),
        ('listen "/run/a"', "/run/a", 0o600, False),
        ('listen "0.0.0.0:9180"; allow-remote true', TcpAddress("0.0.0.0", 9180), 0o600, True),
    ],
)
def test_admin_block_says_where_the_endpoint_is(block: str, listen: object, mode: int, remote: bool) -> None:
    config = parse_config(f"reverse-listener {{ admin {{ {block}; }}\n }}", "/etc/s.kdl")

    assert (config.admin_listen, config.admin_socket_mode, config.admin_allow_remote) == (listen, mode, remote)


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ("admin {}", 'admin: has no listen; write listen "127.0.0.1:9180" into it, or remove it'),
        ('admin { listen "9180"; }', 'got "9180"; such as "127.0.0.1:9180"'),
        ("admin { listen 9180; }", 'got the number 9180; such as "127.0.0.1:9180"'),
        ('admin { listen "localhost:9180"; }', 'did you mean "127.0.0.1:9180" or "[::1]:9180"?'),
        ('admin { listen "admin.sock"; }', "expected HOST:PORT, or a path with a slash"),
        ('admin { listen "[::]:9180"; }', "[::]:9180 can be reached from other hosts"),
        ('admin { listen "10.0.0.1:1"; allow-remote false; }', "10.0.0.1:1 can be reached from other hosts"),
        ('admin { listen "127.0.0.1:1"; allow-remote "yes"; }', "did you mean true?"),
        ('admin { lisen "127.0.0.1:1"; }', 'admin > lisen: unknown node; did you mean "listen"?'),
        ('admin "127.0.0.1:1"', "takes no values of its own"),
        ('listen "127.0.0.1:1"', "it belongs into reverse-listener > admin"),
        (f'admin {{ listen "/{"x" * 120}"; }}', "the path of a Unix socket has at most 107"),
        ('tcp-address "127.0.0.1:9"; admin { listen "127.0.0.1:9"; }', "agents register at 127.0.0.1:9"),
        ('path "/run/a"; admin { listen "/run/a"; }', "agents register at /run/a"),
    ],
)
def test_admin_block_that_cannot_be_used_is_explained(block: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f"reverse-listener {{ {block}\n }}", "/etc/s.kdl")

    assert problem in str(caught.value)
    assert str(caught.value).startswith("/etc/s.kdl:1: reverse-listener > ")
