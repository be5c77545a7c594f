"""What a newcomer costs before it is trusted, and what it may take afterwards."""

import hashlib
from pathlib import Path

import pytest
from support.agents import Agent
from support.product import StartProduct

from dialout import Dialect, encode_frame


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
