"""A configuration as KDL: what is shown means the same when it is read, and no secret is in it."""

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.config.kdl import parse_config
from supervisor.config.model import Config
from supervisor.config.show import NEEDS_RESTART, as_kdl, changes, quoted, settings

FULL = """
reverse-listener {
    path "/run/a.sock"
    socket-mode "0600"
    socket-owner 1000
    socket-group "adm"
    tcp-address "0.0.0.0:9090" "[::1]:9090"
    max-connections-per-agent 9
    handshake-timeout "90s"
    max-registration-bytes 1024
    max-handshakes 100
    max-handshakes-per-peer 50
    require-auth true
    allowed-agents "waf-*" "auth"
    allow-uid 0 1000
    auth {
        token "waf-*" "x" sha256="abababababababababababababababababababababababababababababababab"
    }
    agent-config "waf-*" { api-key "very secret" }
    shards 3
    placement "affinity"
    runtime-dir "/run/sg"
    orphan-timeout "1m"
    status-dir "/run/look"
    status-mode "0755"
    status-group "adm"
    admin {
        listen "/run/admin.sock"
        socket-mode "0660"
        allow-remote true
    }
    pool {
        strategy "random"
        request-timeout "1500ms"
        free-agent-memory false
    }
}
"""


def shown(config: Config) -> str:
    return "\n".join(as_kdl(settings(config), {}))


@pytest.mark.parametrize("config", [Config(), parse_config(FULL, "/etc/a.kdl")])
def test_what_is_shown_is_read_as_the_same_configuration(config: Config) -> None:
    # Digests are cut, and what agents are sent is not shown; uids beside TCP need tokens. All else comes back.
    plain = msgspec.structs.replace(
        config, tokens=(), agent_config=(), allow_uids=None, limits=config.limits, source="/etc/a.kdl"
    )
    plain = msgspec.structs.replace(plain, limits=msgspec.structs.replace(plain.limits, require_auth=False))
    assert parse_config(shown(plain), "/etc/a.kdl") == plain


def test_what_is_shown_has_no_secret_in_it() -> None:
    text = shown(parse_config(FULL, "a.kdl"))
    assert "very secret" not in text
    assert "ab" * 7 not in text
    assert f'token "waf-*" "x" sha256="{"ab" * 6}..."' in text
    digest = hashlib.sha256(b'{"api-key":"very secret"}').hexdigest()[:8]
    assert f'agent-config "waf-*" {{ /* 25 bytes of JSON, sha256 {digest} */ }}' in text
    assert text.isascii(), "what is not would be shown as an escape"


def test_notes_stand_behind_their_nodes_and_choose_them() -> None:
    lines = list(as_kdl(settings(Config()), {"shards": "x", "pool > strategy": "a.kdl:3"}, only_noted=True))
    assert [line.split("//") for line in lines[1:-2]] == [
        ["    pool {"],
        [f"        {'strategy ' + quoted('least-connections'):<48} ", " a.kdl:3"],
    ]
    both = list(as_kdl(settings(Config()), {"shards": "x", "pool > strategy": "y", "placement": "z"}, only_noted=True))
    assert len({line.index("//") for line in both if "//" in line}) == 1, "in one column"


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0$"), min_size=1, max_size=40))
def test_any_string_is_read_as_it_was(text: str) -> None:
    config = parse_config(f"reverse-listener {{ runtime-dir {quoted('/' + text)}; }}", "/a.kdl")
    assert config.runtime_dir == str(config.runtime_dir)
    assert parse_config(shown(config), "/a.kdl").runtime_dir == config.runtime_dir


def test_changes_name_nodes_with_what_they_were_and_what_they_are() -> None:
    old, new = parse_config(FULL, "a"), parse_config(FULL.replace("shards 3", "shards 4").replace('"auth"', ""), "a")
    assert [(c.node, c.old, c.new, c.needs_restart) for c in changes(settings(old), settings(new))] == [
        ("shards", ["3"], ["4"], True),
        ("allowed-agents", ['"waf-*" "auth"'], ['"waf-*"'], False),
    ]
    assert changes(settings(old), settings(old)) == []


def test_a_token_more_or_less_is_a_change() -> None:
    old, new = parse_config(FULL, "a"), parse_config(FULL.replace("abab", "cdab"), "a")
    [change] = changes(settings(old), settings(new))
    assert (change.node, change.needs_restart) == ("auth > token", False)


def test_what_agents_are_sent_is_a_change_also_when_it_is_as_long() -> None:
    old, new = parse_config(FULL, "a"), parse_config(FULL.replace("very secret", "Very secret"), "a")
    [change] = changes(settings(old), settings(new))
    assert (change.node, change.needs_restart) == ("agent-config", False)


def test_nodes_that_need_a_restart_are_nodes() -> None:
    tops = {setting.top for setting in settings(parse_config(FULL, "a"))}
    assert tops >= NEEDS_RESTART
