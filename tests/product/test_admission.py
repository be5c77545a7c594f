"""What a newcomer costs before it is trusted, and what it may take afterwards."""

import hashlib
import os
import signal
from pathlib import Path
from typing import Self

import pytest
from support.agents import Agent
from support.product import StartProduct
from support.waiting import wait_for

from dialout import Dialect, RegistrationResponse, encode_frame


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@pytest.mark.parametrize("dialect", [Dialect.SDK, Dialect.CORE])
def test_token_comes_before_everything_that_is_dear_to_read(
    start_product: StartProduct, tmp_path: Path, dialect: Dialect
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"waf-* sha256:{digest('right')}\n")
    product = start_product("--require-auth", "--token-file", str(tokens), shards=1)
    floats = b"[" + b",".join([b"1e308"] * 2000) + b"]"

    def code(token: str, fields: bytes) -> str | None:
        with Agent(product.socket) as agent:
            head = b'{"protocol_version":2,"agent_id":"waf-1","auth_token":"%b"' % token.encode()
            agent.send(encode_frame(dialect.registration_type, b"%b,%b}" % (head, fields)))
            return agent.answer().error_code

    for fields in (
        b'"metadata":' + floats,
        b'"capabilities":' + floats,
        b'"metadata":{"a":1e999}',
        b'"capabilities":7',
    ):
        assert code("wrong", fields) == "auth_failed", fields[:20]
    assert code("right", b'"metadata":{"a":%b}' % floats) == "bad_registration"
    assert code("right", b'"capabilities":' + floats) == "bad_registration"
    assert code("wrong", b'"metadata":"%b"' % (b"x" * 16_384)) == "bad_registration"
    assert product.status()["supervisor"]["rejected_total"]["auth_failed"] == 4


def token_file(folder: Path, *lines: str) -> tuple[str, ...]:
    """Options for a product that asks for a token; the token of a pattern is the pattern itself."""
    file = folder / "tokens"
    named = [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]
    file.write_text("".join(f"{pattern} sha256:{digest(pattern)} {more}\n" for pattern, more in named))
    return ("--require-auth", "--token-file", str(file))


class Crowd:
    """Agents with ids of their own that stay connected."""

    def __init__(self, address: Path | tuple[str, int]) -> None:
        self.address = address
        self.held: list[Agent] = []

    def join(self, agent_id: str, token: str | None = None, source: str | None = None) -> RegistrationResponse:
        """Register; who is accepted stays."""
        agent = Agent(self.address, source=source)
        answer = agent.register(agent_id, auth_token=token)
        if answer.accepted:
            self.held.append(agent)
        else:
            agent.close()
        return answer

    def fill(self, name: str, token: str | None = None, most: int = 1000) -> RegistrationResponse:
        """Register new ids until one is refused."""
        for number in range(most):
            answer = self.join(f"{name}-{len(self.held)}-{number}", token)
            if not answer.accepted:
                return answer
        raise AssertionError(f"{most} were accepted")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for agent in self.held:
            agent.close()


LOW = ("sh", "-c", 'ulimit -n 260; exec "$@"', "sh")


def test_one_token_does_not_take_every_descriptor(start_product: StartProduct, tmp_path: Path) -> None:
    product = start_product(*token_file(tmp_path, "waf-*", "auth"), shards=1, prefix=LOW)
    with Crowd(product.socket) as crowd:
        refused = crowd.fill("waf", "waf-*")
        taken = len(crowd.held)
        assert (refused.error_code, refused.retry_after_ms) == ("overloaded", 1000)
        assert crowd.join("auth", "auth").accepted

        status = product.status()
        assert status["supervisor"]["connections"] == taken + 1
        assert status["supervisor"]["max_connections"] > taken
        assert status["shards"][0]["capacity"] > taken
        assert "declined" not in product.log.read_text()


def test_one_peer_does_not_take_every_descriptor(start_product: StartProduct) -> None:
    product = start_product("--tcp", "127.0.0.1:0", shards=1, prefix=LOW)
    with Crowd(product.tcp_address()) as crowd:
        refused = crowd.fill("any")
        assert (refused.error_code, refused.retry_after_ms) == ("overloaded", 1000)
        assert "what is left is for others" in (refused.error or "")
        assert crowd.join("any", source="127.0.0.2").accepted


def test_limits_for_all_for_a_token_and_for_a_peer_are_exact(start_product: StartProduct, tmp_path: Path) -> None:
    options = token_file(tmp_path, "waf-* max-connections:3", "geo-*", "auth")
    limits = ("--max-connections", "10", "--max-connections-per-peer", "7", "--tcp", "127.0.0.1:0")
    product = start_product(*options, *limits)
    with Crowd(product.tcp_address()) as crowd, Crowd(product.socket) as local:
        assert "agents with such a token have 3 connections, 3 are allowed" in (crowd.fill("waf", "waf-*").error or "")
        assert len(crowd.held) == 3
        assert "this peer has 7 connections, 7 are allowed" in (crowd.fill("geo", "geo-*").error or "")
        assert len(crowd.held) == 7
        assert crowd.join("geo-far", "geo-*", source="127.0.0.2").accepted
        refused = local.fill("geo", "geo-*")
        assert (refused.error_code, len(local.held)) == ("overloaded", 2)
        assert "10 connections, which are all that there may be" in (refused.error or "")


def test_place_that_an_agent_has_left_is_taken_by_another_one_at_once(
    start_product: StartProduct, tmp_path: Path
) -> None:
    options = token_file(tmp_path, "waf-* max-connections:2", "geo-*")
    product = start_product(*options, "--max-connections-per-peer", "4")
    with Crowd(product.socket) as crowd:
        for agent_id, token in [("waf-a", "waf-*"), ("waf-b", "waf-*"), ("geo-a", "geo-*"), ("geo-b", "geo-*")]:
            assert crowd.join(agent_id, token).accepted
        for number in range(40):
            name, token = (("waf", "waf-*"), ("geo", "geo-*"))[number % 2]
            crowd.held.pop(0 if number % 2 == 0 else 1).close()
            answer = crowd.join(f"{name}-{number}", token)
            assert answer.accepted, (number, answer.error)
            crowd.held.insert(number % 2, crowd.held.pop())


def test_counts_of_tokens_and_peers_outlive_supervisors_and_moves_and_die_with_their_shard(
    start_product: StartProduct, tmp_path: Path
) -> None:
    options = token_file(tmp_path, "waf-* max-connections:4", "geo-*")
    product = start_product(*options, "--max-connections-per-peer", "6")

    def check(crowd: Crowd) -> None:
        assert "such a token have 4 connections, 4" in (crowd.join("waf-more", "waf-*").error or "")
        assert "this peer has 6 connections, 6" in (crowd.join("geo-more", "geo-*").error or "")

    with Crowd(product.socket) as crowd:
        for agent_id in ("waf-a", "waf-b", "waf-c", "waf-d"):
            assert crowd.join(agent_id, "waf-*").accepted
        for agent_id in ("geo-a", "geo-b"):
            assert crowd.join(agent_id, "geo-*").accepted
        check(crowd)
        product.take_over()
        check(crowd)
        assert product.command("drain", "0").returncode == 0
        assert product.command("drain", "0", "--undo").returncode == 0
        product.take_over()
        check(crowd)
        product.process.kill()
        product.process.wait()
        product.start()
        product.wait_until_running()
        check(crowd)

        os.kill(product.shard_pid(1), signal.SIGKILL)
        wait_for(lambda: product.status()["supervisor"]["connections"] == 0, "the places to be free")
        with Crowd(product.socket) as again:
            wait_for(lambda: again.join("waf-a", "waf-*").accepted, "an agent to be accepted")
            assert "such a token have 4" in (again.fill("waf", "waf-*").error or "")
            assert len(again.held) == 4


def test_reload_changes_what_tokens_and_peers_may_have(start_product: StartProduct, tmp_path: Path) -> None:
    file = tmp_path / "a.kdl"

    def configure(*nodes: str) -> None:
        rules = f'token "waf-*" sha256="{digest("waf-*")}" {nodes[0]}\n token "geo" sha256="{digest("geo")}"'
        file.write_text(f"reverse-listener {{\n require-auth true\n auth {{\n {rules}\n }}\n{nodes[1]}\n}}\n")

    configure("max-connections=1", "")
    product = start_product("--config", str(file), shards=1)
    with Crowd(product.socket) as crowd:
        assert crowd.join("waf-1", "waf-*").accepted
        assert "1 are allowed" in (crowd.join("waf-2", "waf-*").error or "")
        configure("max-connections=3", "max-connections-per-peer 2")
        assert product.command("reload").returncode == 0
        assert crowd.join("waf-2", "waf-*").accepted
        assert "this peer has 2 connections, 2 are allowed" in (crowd.join("waf-3", "waf-*").error or "")
        shown = product.command("config", "show").stdout
        assert "max-connections=3" in shown
        assert "max-connections-per-peer 2" in shown
