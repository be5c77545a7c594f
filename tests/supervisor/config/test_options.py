"""Options of the command line over a configuration."""

import msgspec
import pytest

from supervisor.config.errors import ConfigError
from supervisor.config.kdl import parse_config
from supervisor.config.model import Config, Placement, ReverseConnectionConfig, TcpAddress, Token
from supervisor.config.options import OPTIONS, apply_options
from supervisor.config.tokens import hash_token

FILE = Config(
    path="/run/a.sock",
    tcp_addresses=(TcpAddress("127.0.0.1", 1),),
    limits=ReverseConnectionConfig(require_auth=True, allowed_agents=("a",)),
    tokens=(Token(("*",), hash_token("one")),),
    token_files=("/etc/tokens",),
    shards=2,
    source="/etc/listener.kdl",
)


def errors(config: Config, **options: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        apply_options(config, options)
    return str(caught.value).split("\n")


def test_options_not_given_change_nothing() -> None:
    assert apply_options(FILE, {}) == FILE
    assert apply_options(FILE, dict.fromkeys(OPTIONS)) == FILE
    assert apply_options(FILE, {"tcp": (), "allowed_agents": (), "token_file": ()}) == FILE


def test_option_says_where_the_admin_endpoint_is() -> None:
    assert apply_options(Config(), {"admin": "127.0.0.1:9180"}).admin_listen == TcpAddress("127.0.0.1", 9180)
    assert apply_options(Config(), {"admin": "./a"}).admin_listen == "./a"
    remote = {"admin": "0.0.0.0:9180", "admin_allow_remote": True}
    assert apply_options(Config(), remote).admin_listen == TcpAddress("0.0.0.0", 9180)
    (error,) = errors(Config(), admin="0.0.0.0:9180")
    assert error.startswith("--admin: 0.0.0.0:9180 can be reached from other hosts")
    assert error.endswith('write "127.0.0.1:9180", or allow it with "allow-remote true" (--admin-allow-remote)')


def test_options_replace_what_the_file_says() -> None:
    config = apply_options(
        FILE,
        {
            "uds": "b.sock",
            "tcp": ("0.0.0.0:80", "[::1]:0"),
            "shards": 4,
            "runtime_dir": "/run/x",
            "placement": "affinity",
            "max_connections_per_agent": 9,
            "handshake_timeout": "2m",
            "max_registration_bytes": 512,
            "max_handshakes": 1000,
            "max_handshakes_per_peer": 10,
            "require_auth": True,
            "allowed_agents": ("waf-*,log-*", "auth"),
            "allow_uid": (0, 1000),
            "token_file": "t1,t2",
            "socket_mode": "0600",
            "socket_owner": "proxy",
            "socket_group": "12",
        },
    )

    assert config == Config(
        path="b.sock",
        socket_mode=0o600,
        socket_owner="proxy",
        socket_group=12,
        tcp_addresses=(TcpAddress("0.0.0.0", 80), TcpAddress("::1", 0)),
        limits=ReverseConnectionConfig(
            handshake_timeout=120.0,
            max_connections_per_agent=9,
            require_auth=True,
            allowed_agents=("waf-*", "log-*", "auth"),
        ),
        max_registration_bytes=512,
        max_handshakes=1000,
        max_handshakes_per_peer=10,
        allow_uids=(0, 1000),
        tokens=FILE.tokens,
        token_files=("t1", "t2"),
        shards=4,
        placement=Placement.AFFINITY,
        runtime_dir="/run/x",
        source="/etc/listener.kdl",
    )


def test_every_option_names_a_field_and_says_so_with_its_own_spelling() -> None:
    fields = {*Config.__struct_fields__, *ReverseConnectionConfig.__struct_fields__}
    for name, option in OPTIONS.items():
        assert option.field in fields
        [error] = errors(Config(), **{name: [b""] if option.several else b""})
        assert error.startswith(f"--{name.replace('_', '-')}: expected ")


def test_bad_options_are_all_reported_without_a_file() -> None:
    assert errors(FILE, handshake_timeout="10", shards=65, tcp=("localhost:1", "127.0.0.1:1"), require_auth=True) == [
        '--handshake-timeout: expected a time with its unit, got the string "10"; did you mean "10s"?',
        (
            '--tcp: expected a numeric address in front of the port, got "localhost:1"; did you mean "127.0.0.1:1" '
            'or "[::1]:1"?'
        ),
        "--shards: expected 1 to 64, got 65",
    ]


def test_problem_of_the_file_keeps_its_place_when_an_option_is_fine() -> None:
    [error] = errors(msgspec.structs.replace(FILE, shards=100), max_handshakes=5)

    assert error == "/etc/listener.kdl: reverse-listener > shards: expected 1 to 64, got 100"
    twice = msgspec.structs.replace(FILE, tcp_addresses=FILE.tcp_addresses * 2)
    assert errors(twice, tcp=()) == [
        "/etc/listener.kdl: reverse-listener > tcp-address: the same address is there twice"
    ]


def test_required_tokens_are_asked_for_where_they_were_required() -> None:
    assert errors(Config(), require_auth=True)[0].startswith("--require-auth: no agent could register")
    config = apply_options(Config(), {"require_auth": True, "token_file": "x"})
    assert config.limits.require_auth


def test_limit_per_peer_follows_the_total_when_only_that_is_lowered() -> None:
    assert apply_options(Config(), {"max_handshakes": 10}).max_handshakes_per_peer == 10
    [error] = errors(msgspec.structs.replace(FILE, max_handshakes_per_peer=100), max_handshakes=10)
    assert "max-handshakes-per-peer: expected 1 to 10, got 100" in error
    assert errors(Config(), max_handshakes=0) == ["--max-handshakes: expected 1 to 65536, got 0"]


def test_unknown_option_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(TypeError, match="jsn"):
        apply_options(Config(), {"jsn": True})


def test_same_value_is_judged_the_same_in_a_file_and_as_an_option() -> None:
    for node, value in [
        ("handshake-timeout", "1ms"),
        ("socket-mode", "999"),
        ("placement", "x"),
        ("tcp-address", "::1"),
        ("allowed-agents", "a/b"),
        ("socket-owner", "/"),
    ]:
        with pytest.raises(ConfigError) as caught:
            parse_config(f'reverse-listener {{\n {node} "{value}"\n}}', "f")
        [in_file] = caught.value.problems
        [as_option] = errors(Config(), **{node.replace("-", "_"): value})
        assert as_option == f"--{node}: {in_file.message}" + (f"; {in_file.hint}" if in_file.hint else "")


def test_an_option_can_ask_for_no_token_where_the_file_asks_for_one() -> None:
    assert not apply_options(FILE, {"require_auth": False}).limits.require_auth


def test_uids_alone_are_no_rule_for_a_tcp_address_of_an_option_either() -> None:
    (error,) = errors(Config(), tcp=("127.0.0.1:9090",), allow_uid=(1000,))
    assert error.startswith("--allow-uid: agents at 127.0.0.1:9090 have no uid, since it is a TCP address")
    assert apply_options(Config(), {"tcp": ("127.0.0.1:9090",)}).allow_uids is None
    assert apply_options(FILE, {"allow_uid": (1000,)}).allow_uids == (1000,)


def test_hints_propose_options_to_who_gives_options() -> None:
    assert errors(Config(), uds="localhost:9090")[0].endswith("; write --tcp 127.0.0.1:9090")
    assert errors(Config(), tcp=("/run/a b.sock",))[0].endswith("; write --uds '/run/a b.sock'")
    assert errors(Config(), uds="${NO_SUCH_NAME}/a")[0].endswith("let the shell replace it: no single quotes")
    assert errors(Config(), uds="unix:///run/a.sock")[0].endswith('; did you mean "/run/a.sock"?')
