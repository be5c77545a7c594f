"""Who may register, and what those are told who may not."""

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialout import Capabilities, Dialect, ErrorCode, Registration, Rejection
from supervisor.config.errors import ConfigError
from supervisor.config.model import Config, ReverseConnectionConfig, Token
from supervisor.config.tokens import hash_token
from supervisor.policy import Policy

SWORDFISH = Token(("waf-*", "auth"), hash_token("swordfish"))
OTHER = Token(("geo",), hash_token("opensesame"))


def registration(agent_id: str, token: str | None = None, dialect: Dialect = Dialect.SDK) -> Registration:
    return Registration(dialect, agent_id, token, Capabilities())


def policy(
    *,
    tokens: tuple[Token, ...] = (),
    allowed: tuple[str, ...] | None = None,
    uids: tuple[int, ...] | None = None,
) -> Policy:
    limits = ReverseConnectionConfig(require_auth=bool(tokens), allowed_agents=allowed)
    return Policy(Config(limits=limits, tokens=tokens, allow_uids=uids))


def refusal(policy: Policy, registration: Registration, uid: int | None = None) -> ErrorCode | None:
    """The error code that the agent is refused with; None when it may register."""
    try:
        policy.check(registration, uid)
    except Rejection as rejection:
        return rejection.error_code
    return None


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize(("good_token", "listed", "good_uid"), list(product([True, False], repeat=3)))
def test_policy_names_the_first_of_token_allowlist_and_uid_that_fails(
    good_token: bool, listed: bool, good_uid: bool, dialect: Dialect
) -> None:
    rules = policy(tokens=(SWORDFISH,), allowed=("waf-1",), uids=(1000,))
    agent = registration("waf-1" if listed else "waf-2", "swordfish" if good_token else "wrong", dialect)

    with_uid = 1000 if good_uid else 1001
    if good_token and listed and good_uid:
        rules.check(agent, with_uid)
        return
    with pytest.raises(Rejection) as caught:
        rules.check(agent, with_uid)
    word = "authentication" if not good_token else "allowed-agents" if not listed else "allow-uid"
    assert word in caught.value.message
    assert caught.value.error_code is (ErrorCode.NOT_ALLOWED if good_token else ErrorCode.AUTH_FAILED)
    assert caught.value.answer_type == dialect.answer_type
    assert caught.value.retry_after_ms is None


@pytest.mark.parametrize(
    ("agent_id", "token", "expected"),
    [
        ("waf-1", "swordfish", None),
        ("waf-", "swordfish", None),
        ("auth", "swordfish", None),
        ("geo", "opensesame", None),
        ("geo", "swordfish", ErrorCode.AUTH_FAILED),
        ("waf-1", "opensesame", ErrorCode.AUTH_FAILED),
        ("auth-2", "swordfish", ErrorCode.AUTH_FAILED),
        ("waf-1", "Swordfish", ErrorCode.AUTH_FAILED),
        ("waf-1", "swordfish ", ErrorCode.AUTH_FAILED),
        ("waf-1", "", ErrorCode.AUTH_FAILED),
        ("waf-1", None, ErrorCode.AUTH_FAILED),
        ("waf-1", hash_token("swordfish").hex(), ErrorCode.AUTH_FAILED),
        ("nobody", "swordfish", ErrorCode.AUTH_FAILED),
    ],
)
def test_policy_takes_a_token_for_the_agents_of_its_patterns_only(
    agent_id: str, token: str | None, expected: ErrorCode | None
) -> None:
    assert refusal(policy(tokens=(SWORDFISH, OTHER)), registration(agent_id, token)) is expected


def test_policy_tells_an_unknown_agent_what_it_tells_one_with_a_wrong_token() -> None:
    rules = policy(tokens=(SWORDFISH,), allowed=("waf-1",))
    said = set()
    for agent in (registration("waf-1", "wrong"), registration("waf-1"), registration("nobody", "swordfish")):
        with pytest.raises(Rejection) as caught:
            rules.check(agent, None)
        said.add((caught.value.error_code, caught.value.message))

    assert len(said) == 1


@given(
    st.text(st.characters(codec="utf-8"), min_size=6, max_size=40),
    st.from_regex(r"[A-Za-z0-9._:@-]{6,40}", fullmatch=True),
)
def test_policy_repeats_neither_token_nor_agent_id_when_it_refuses(token: str, agent_id: str) -> None:
    for rules in (policy(tokens=(SWORDFISH,)), policy(allowed=("none",)), policy(uids=(1,))):
        said = set()
        for agent in (registration(agent_id, token), registration("x", "y")):
            with pytest.raises(Rejection) as caught:
                rules.check(agent, 2)
            said.add((str(caught.value), repr(caught.value), caught.value.message))
        assert len(said) == 1


def test_policy_asks_for_no_token_when_none_is_required() -> None:
    limits = ReverseConnectionConfig(require_auth=False)
    rules = Policy(Config(limits=limits, tokens=(SWORDFISH,)))

    assert refusal(rules, registration("anybody")) is None
    assert refusal(rules, registration("waf-1", "wrong")) is None


@pytest.mark.parametrize(
    ("uids", "uid", "expected"),
    [
        (None, 0, None),
        (None, 1000, None),
        (None, None, None),
        ((1000, 1001), 1001, None),
        ((1000, 1001), 0, ErrorCode.NOT_ALLOWED),
        ((0,), 0, None),
        ((0,), 1000, ErrorCode.NOT_ALLOWED),
        ((), 0, ErrorCode.NOT_ALLOWED),
        # A TCP peer has no uid, and the rule is one about Unix sockets.
        ((1000,), None, None),
        ((), None, None),
    ],
)
def test_policy_holds_uids_against_peers_of_a_unix_socket_only(
    uids: tuple[int, ...] | None, uid: int | None, expected: ErrorCode | None
) -> None:
    assert refusal(policy(uids=uids, tokens=(SWORDFISH,)), registration("waf-1", "swordfish"), uid) is expected
    without_token = expected or (ErrorCode.NOT_ALLOWED if uids is not None and uid is None else None)
    assert refusal(policy(uids=uids), registration("waf-1"), uid) is without_token, (
        "a peer without uid has no rule then"
    )


@pytest.mark.parametrize(
    ("allowed", "agent_id", "expected"),
    [
        (None, "anybody", None),
        (("waf", "auth-*"), "waf", None),
        (("waf", "auth-*"), "auth-9", None),
        (("waf", "auth-*"), "waf-1", ErrorCode.NOT_ALLOWED),
        (("waf", "auth-*"), "WAF", ErrorCode.NOT_ALLOWED),
        ((), "waf", ErrorCode.NOT_ALLOWED),
    ],
)
def test_policy_lets_only_those_in_that_the_allowlist_names(
    allowed: tuple[str, ...] | None, agent_id: str, expected: ErrorCode | None
) -> None:
    assert refusal(policy(allowed=allowed), registration(agent_id)) is expected


def test_policy_names_the_rule_that_lets_an_agent_in_and_what_each_may_have() -> None:
    limited = Token(SWORDFISH.patterns, hash_token("swordfish 2"), 7)
    with_tokens = policy(tokens=(SWORDFISH, limited, OTHER), allowed=("*",))
    assert with_tokens.rules == {"auth,waf-*": 7, "geo": None}
    assert with_tokens.check(registration("waf-1", "swordfish"), None) == "auth,waf-*"

    with_list = policy(allowed=("waf-*", "*-1", "geo-1"))
    assert with_list.rules == {"waf-*": None, "*-1": None, "geo-1": None}
    assert with_list.check(registration("waf-1"), None) == "waf-*"
    assert with_list.check(registration("geo-1"), None) == "geo-1"
    assert with_list.check(registration("log-1"), None) == "*-1"

    assert (policy().rules, policy().check(registration("any"), None)) == ({}, "")


def test_policy_reads_token_files(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"waf-*,auth sha256:{hash_token('swordfish').hex()}\n", "utf-8")
    path.chmod(0o640)
    rules = Policy(Config(limits=ReverseConnectionConfig(require_auth=True), token_files=(str(path),)))

    assert refusal(rules, registration("waf-1", "swordfish")) is None
    assert refusal(rules, registration("geo", "swordfish")) is ErrorCode.AUTH_FAILED


def test_policy_cannot_be_made_when_tokens_are_required_and_there_are_none(tmp_path: Path) -> None:
    limits = ReverseConnectionConfig(require_auth=True)

    with pytest.raises(ConfigError):
        Policy(Config(limits=limits))
    with pytest.raises(ConfigError):
        Policy(Config(limits=limits, token_files=(str(tmp_path / "missing"),)))


def test_policy_does_not_begin_where_a_tcp_address_would_have_no_rule() -> None:
    addresses = ["127.0.0.1:9090"]
    with pytest.raises(ConfigError, match=r"allow-uid: agents at 127\.0\.0\.1:9090 have no uid"):
        Policy(Config(allow_uids=(1000,)), addresses)
    limits = ReverseConnectionConfig(require_auth=True)
    Policy(Config(allow_uids=(1000,), limits=limits, tokens=(SWORDFISH,)), addresses)
    Policy(Config(allow_uids=(1000,)))
    Policy(Config(), addresses)
