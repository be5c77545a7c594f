"""Who may register, and what they are told, by configuration; and what a reload changes."""

import signal
from pathlib import Path

from support.agents import Agent
from support.product import StartProduct
from support.waiting import wait_for

from dialout import Dialect
from supervisor.config.tokens import hash_token


def write(file: Path, block: str) -> None:
    """Write a configuration file."""
    file.write_text(f"reverse-listener {{\n{block}\n}}\n")


def error_code(socket: Path, agent_id: str, token: str | None = None) -> str | None:
    """Why the agent was refused; None when it was accepted."""
    with Agent(socket) as agent:
        return agent.register(agent_id, auth_token=token).error_code


def test_agents_need_a_token_that_is_good_for_their_id(start_product: StartProduct, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"auth-* sha256:{hash_token('second').hex()}\n")
    tokens.chmod(0o600)
    file = tmp_path / "a.kdl"
    write(
        file,
        'require-auth true\nallowed-agents "waf-*" "auth-1"\n'
        f'auth {{ token "waf-*" sha256="{hash_token("first").hex()}"\ntoken-file "{tokens}" }}',
    )
    product = start_product("--config", str(file))
    answers = {}
    for agent_id, token in [
        ("waf-1", "first"), ("auth-1", "second"), ("waf-1", "second"), ("waf-1", None), ("waf-1", ""), ("waf-1", "x"),
        ("nobody", "x"), ("nobody", None), ("auth-2", "second"),
    ]:  # fmt: skip
        with Agent(product.socket) as agent:
            answer = agent.register(agent_id, auth_token=token)
            answers[agent_id, token] = (answer.error_code, answer.error)
    codes = {key: code for key, (code, _) in answers.items()}
    assert codes == {
        ("waf-1", "first"): None, ("auth-1", "second"): None, ("waf-1", "second"): "auth_failed",
        ("waf-1", None): "auth_failed", ("waf-1", ""): "auth_failed", ("waf-1", "x"): "auth_failed",
        ("nobody", "x"): "auth_failed", ("nobody", None): "auth_failed", ("auth-2", "second"): "not_allowed",
    }  # fmt: skip
    assert len({text for code, text in answers.values() if code == "auth_failed"}) == 1, "one answer for all"
    log = product.log.read_text()
    assert "second" not in log
    assert "first" not in log

    # Rotation: the new token is good after a reload, beside the old one, which a second reload ends.
    tokens.write_text(f"auth-* sha256:{hash_token('second').hex()}\nauth-* sha256:{hash_token('third').hex()}\n")
    assert error_code(product.socket, "auth-1", "third") == "auth_failed"
    product.process.send_signal(signal.SIGHUP)
    wait_for(lambda: error_code(product.socket, "auth-1", "third") is None, "the new token to be good")
    assert error_code(product.socket, "auth-1", "second") is None
    tokens.write_text(f"auth-* sha256:{hash_token('third').hex()}\n")
    assert product.command("reload").returncode == 0
    assert error_code(product.socket, "auth-1", "second") == "auth_failed"

    # A bad file keeps the old rules and says so.
    tokens.write_text("not a token line\n")
    refused = product.command("reload")
    assert refused.returncode == 5
    assert "tokens:1" in refused.stderr
    assert error_code(product.socket, "auth-1", "third") is None
    assert "tokens:1" in product.status()["supervisor"]["config_error"]


def test_agents_of_every_dialect_get_their_config_with_their_acceptance(
    start_product: StartProduct, tmp_path: Path
) -> None:
    file = tmp_path / "a.kdl"
    write(
        file,
        'agent-config "waf-*" { rules_version "3.4.0"\n limits { body 1024; hosts "a" "b" } }\n'
        'agent-config "waf-9" { rules_version "4" }',
    )
    product = start_product("--config", str(file))
    for dialect in Dialect:
        with Agent(product.socket) as agent:
            answer = agent.register("waf-1", dialect)
            assert answer.config == {"rules_version": "3.4.0", "limits": {"body": 1024, "hosts": ["a", "b"]}}
    with Agent(product.socket) as agent:
        config = agent.register("waf-9").config
        assert config is not None
        assert config["rules_version"] == "4"
    with Agent(product.socket) as agent:
        assert agent.register("other").config is None


def test_reload_changes_limits_and_names_what_needs_a_restart(start_product: StartProduct, tmp_path: Path) -> None:
    file = tmp_path / "a.kdl"
    write(file, "max-connections-per-agent 2")
    product = start_product("--config", str(file))
    held = [Agent(product.socket) for _ in range(3)]
    assert [agent.register("a").accepted for agent in held] == [True, True, False]
    write(file, 'max-connections-per-agent 3\nplacement "affinity"\npool { request-timeout "1s" }')
    done = product.ask("reload")
    assert done["changed"] == ["max-connections-per-agent", "placement"]
    assert done["restart_needed"] == ["pool > request-timeout"]
    with Agent(product.socket) as third:
        assert third.register("a").accepted
    assert product.status()["supervisor"]["max_connections_per_agent"] == 3
    # With affinity all connections of one agent come to one shard.
    crowd = [Agent(product.socket) for _ in range(12)]
    for number, agent in enumerate(crowd):
        assert agent.register(f"b{number // 3}").accepted
    shards: dict[str, set[int]] = {}
    for row in product.connections():
        shards.setdefault(row["agent_id"], set()).add(row["shard"])
    assert all(len(shards[f"b{n}"]) == 1 for n in range(4))
    for agent in [*held, *crowd]:
        agent.close()
    assert product.command("reload").returncode == 0


def test_only_the_uids_that_are_allowed_may_register_over_the_unix_socket(
    start_product: StartProduct, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"* sha256:{hash_token('swordfish').hex()}\n")
    rules = ("--require-auth", "--token-file", str(tokens), "--allow-uid", "4242424")
    product = start_product(*rules, "--tcp", "127.0.0.1:0")
    with Agent(product.socket) as agent:
        assert agent.register("a", auth_token="swordfish").error_code == "not_allowed"
    host, _, port = product.query("status")["supervisor"]["listeners"][1]["address"].rpartition(":")
    with Agent((host, int(port))) as agent:
        assert agent.register("a", auth_token="swordfish").accepted, "over TCP the token is what counts"
    doctor = product.command("doctor")
    assert (doctor.returncode in (0, 1), doctor.stderr) == (True, ""), "it does without tokens, which it is not shown"


def test_a_tcp_address_whose_only_rule_would_be_uids_is_not_listened_on(start_product: StartProduct) -> None:
    product = start_product("--allow-uid", "4242424", "--tcp", "127.0.0.1:0", wait=False)
    assert product.process.wait(20) == 78
    assert "--allow-uid: agents at 127.0.0.1:0 have no uid" in product.log.read_text()


def test_a_reload_does_not_leave_a_tcp_address_without_a_rule(start_product: StartProduct, tmp_path: Path) -> None:
    """The address goes with the restart only, and the uids would be in force at once."""
    file = tmp_path / "listener.kdl"
    file.write_text('reverse-listener {\n tcp-address "127.0.0.1:0"\n}\n')
    product = start_product("--config", str(file))
    file.write_text("reverse-listener {\n allow-uid 4242424\n}\n")

    for option in (["--dry-run"], []):
        done = product.command("reload", *option)
        assert done.returncode == 5
        assert "allow-uid: agents at 127.0.0.1:" in done.stderr
    (_, address) = (row["address"] for row in product.query("status")["supervisor"]["listeners"])
    host, _, port = address.rpartition(":")
    with Agent((host, int(port))) as agent:
        assert agent.register("a").accepted, "the old rules stay"


def test_a_reload_refuses_rules_that_any_user_may_write_and_the_old_ones_stay(
    start_product: StartProduct, tmp_path: Path
) -> None:
    file = tmp_path / "listener.kdl"
    write(file, 'allowed-agents "waf-*"')
    product = start_product("--config", str(file))
    write(file, "shards 2")
    file.chmod(0o666)
    done = product.command("reload")
    assert done.returncode == 5
    assert "everybody may write this file" in done.stderr
    assert error_code(product.socket, "auth-1") == "not_allowed"
    doctor = product.command("doctor")
    assert doctor.returncode == 1
    assert f"files: {file}: everybody may write this file" in doctor.stdout
    file.chmod(0o644)
    assert product.command("reload").returncode == 0
    assert error_code(product.socket, "auth-1") is None
    assert "files: configuration and token files are closed to other users" in product.command("doctor").stdout
