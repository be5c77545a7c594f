"""Single values, and the small types that hold them."""

import socket
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.config import values
from supervisor.config.errors import ConfigError, Problem
from supervisor.config.model import Config, ReverseConnectionConfig, TcpAddress, format_duration, validate
from supervisor.config.values import BadValue


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("10s", 10.0), ("2m", 120.0), ("1h", 3600.0), ("0.5s", 0.5), ("1.5 m", 90.0), (" 10s ", 10.0)],
)
def test_duration_is_read_in_seconds(text: str, seconds: float) -> None:
    assert values.duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "s", "10", "10S", "-1s", "1e3s", "1m30s", "10 s s", "\u0661s", "1_0s", None, True, 10]
)
def test_duration_is_refused_without_a_number_and_a_unit(text: object) -> None:
    with pytest.raises(BadValue, match="expected a time with its unit"):
        values.duration(text)


@given(st.integers(10, 600_000))
def test_duration_is_read_back_as_it_is_printed(milliseconds: int) -> None:
    assert values.duration(format_duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000, rel=1e-5)


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("0.0.0.0:9090", socket.AF_INET),
        ("127.0.0.1:0", socket.AF_INET),
        ("[::1]:65535", socket.AF_INET6),
        ("[::]:80", socket.AF_INET6),
        ("[fe80::1]:80", socket.AF_INET6),
        ("[::ffff:10.0.0.1]:80", socket.AF_INET6),
    ],
)
def test_tcp_address_is_printed_as_configured(text: str, family: socket.AddressFamily) -> None:
    address = values.tcp_address(text)

    assert str(address) == text
    assert address.family is family
    assert "[" not in address.host


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("127.0.0.1", 'did you mean "127.0.0.1:9090"?'),
        ("127.0.0.1:", None),
        ("127.0.0.1:65536", None),
        ("127.0.0.1:-1", None),
        ("[127.0.0.1]:80", 'did you mean "127.0.0.1:80"?'),
        ("::1:80", 'did you mean "[::1]:80"?'),
        ("[::1]", 'did you mean "[::1]:9090"?'),
        ("::1]:80", 'did you mean "[::1]:80"?'),
        ("[fe80::1%eth0]:80", "addresses with a zone are not supported"),
        ("010.0.0.1:80", "names are not looked up"),
        ("example.com:80", "names are not looked up"),
        ("LOCALHOST:80", 'did you mean "127.0.0.1:80" or "[::1]:80"?'),
        ("*:80", "for every address of this host"),
        ("80", 'did you mean "0.0.0.0:80"?'),
        ("", "for every address"),
    ],
)
def test_tcp_address_is_refused_with_a_hint_when_it_is_not_numeric(text: str, hint: str | None) -> None:
    with pytest.raises(BadValue) as caught:
        values.tcp_address(text)

    assert hint is None or (caught.value.hint or "").startswith(hint)


@pytest.mark.parametrize(
    ("text", "mode"), [("0660", 0o660), ("660", 0o660), ("0o600", 0o600), ("0", 0), ("00777", 0o777)]
)
def test_octal_mode_is_read_from_a_string(text: str, mode: int) -> None:
    assert values.octal_mode(text) == mode


@pytest.mark.parametrize(
    ("value", "owner"), [("proxy", "proxy"), ("33", 33), (33, 33), ("_svc-1.x", "_svc-1.x"), (0, 0)]
)
def test_owner_is_a_name_or_a_number(value: object, owner: object) -> None:
    assert values.owner(value) == owner


anything = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.text("0123456789.:[]smh*", max_size=12)
)


@given(
    st.sampled_from([values.boolean, values.integer, values.text, values.duration, values.octal_mode, values.owner])
    | st.sampled_from([values.unix_id, values.placement, values.pattern, values.tcp_address]),
    anything,
)
def test_any_value_is_converted_or_refused_in_printable_words(
    convert: Callable[[object], object], value: object
) -> None:
    try:
        convert(value)
    except BadValue as error:
        problem = Problem(None, None, "x", error.message, error.hint)
    else:
        return
    assert str(problem).isprintable()
    assert len(str(problem)) < 400


def test_problems_are_printed_one_per_line_with_what_is_known_of_their_place() -> None:
    error = ConfigError(
        [
            Problem("a.kdl", 7, "x > y", "is wrong", "do it right"),
            Problem("a.kdl", None, "", "is missing"),
            Problem(None, None, "--z", "is\nwrong"),
        ]
    )

    assert str(error).split("\n") == [
        "a.kdl:7: x > y: is wrong; do it right",
        "a.kdl: is missing",
        "--z: is\\nwrong",
    ]
    assert error.exit_code == 78


def test_validate_accepts_the_defaults_and_both_ends_of_every_range() -> None:
    assert validate(Config()) == []
    for timeout, number, size, total, shards in [(0.01, 1, 256, 1, 1), (600.0, 1_000_000, 1_048_576, 65_536, 64)]:
        config = Config(
            path="/" + "x" * 106,
            limits=ReverseConnectionConfig(handshake_timeout=timeout, max_connections_per_agent=number),
            max_registration_bytes=size,
            max_handshakes=total,
            max_handshakes_per_peer=total,
            shards=shards,
        )
        assert validate(config) == []


def test_validate_counts_bytes_and_not_characters_of_a_socket_path() -> None:
    [problem] = validate(Config(path="/" + "ü" * 54))

    assert problem.message.startswith("109 bytes are too many")


def test_validate_refuses_a_timeout_that_is_no_number() -> None:
    for timeout in (float("nan"), float("inf"), -1.0):
        assert validate(Config(limits=ReverseConnectionConfig(handshake_timeout=timeout)))


def test_validate_refuses_more_rules_than_a_registration_should_look_at() -> None:
    from supervisor.config.model import AgentConfigRule

    [problem] = validate(Config(agent_config=(AgentConfigRule(("a",), {}),) * 257))

    assert problem.message == "257 blocks are too many: there may be 256"


def test_addresses_differ_when_the_family_does() -> None:
    same = (TcpAddress("0.0.0.0", 1), TcpAddress("::", 1))

    assert validate(Config(tcp_addresses=same)) == []
    assert validate(Config(tcp_addresses=same * 2))[0].message == "the same address is there twice"
