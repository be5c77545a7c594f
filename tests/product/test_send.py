"""``shardgate send`` shows the decision that a proxy would get, whichever shard has the agent."""

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.agents import Agent
from support.product import Product
from support.sending import decided, send
from support.serving import Decide, ServingAgent

from dialout import (
    ALLOWED,
    Allow,
    Audit,
    Block,
    BodyMutation,
    Capabilities,
    Challenge,
    Decision,
    Dialect,
    Event,
    HeaderOp,
    Redirect,
    RequestBodyChunk,
    RequestHeaders,
)
from dialout.proxy.wire import encode_refusal

POLICY = {
    "fail_closed": "the proxy refuses the request itself",
    "fail_open": "the proxy lets the request pass, and no agent has looked at it",
}


@contextlib.contextmanager
def serving(product: Product, agent_id: str, decide: Decide, dialect: Dialect = Dialect.CORE) -> Iterator[ServingAgent]:
    """An agent with one connection."""
    agent = ServingAgent(product.socket, agent_id, dialect, decide)
    try:
        yield agent
    finally:
        agent.close()


def always(response: Decision | None) -> Decide:
    """An agent that answers the same to everything."""
    return lambda _: response


def shard_of(product: Product, agent_id: str) -> int:
    """The shard that has the agent's connection."""
    return next(shard for shard in (0, 1) for row in product.query_connections(shard) if row["agent_id"] == agent_id)


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize(
    ("decision", "as_json", "as_text"),
    [
        (Allow(), "allow", "allow"),
        (Block(403, "go away"), {"block": {"status": 403, "body": "go away"}}, 'block with status 403: "go away"'),
        (
            Redirect("https://example.com/login", 302),
            {"redirect": {"url": "https://example.com/login", "status": 302}},
            "redirect with status 302 to https://example.com/login",
        ),
        (
            Challenge("captcha", {"site": "k"}),
            {"challenge": {"challenge_type": "captcha", "params": {"site": "k"}}},
            'challenge captcha {"site":"k"}',
        ),
    ],
)
def test_send_prints_each_decision_of_each_dialect_for_programs_and_people(
    product: Product, dialect: Dialect, decision: Any, as_json: object, as_text: str
) -> None:
    with serving(product, "waf-1", always(Decision(decision)), dialect) as agent:
        answer = decided(product, "waf-1")
        assert answer["decision"] == as_json
        assert (answer["agent_id"], answer["connection_id"]) == ("waf-1", agent.connection_id)
        assert answer["shard"] == shard_of(product, "waf-1")
        assert 0 < answer["duration_ms"] < 5000

        done = send(product, "waf-1")
        assert (done.returncode, done.stderr) == (0, "")
        (line,) = done.stdout.splitlines()
        assert line.startswith(f"{as_text}  ({agent.connection_id}, shard {answer['shard']}, ")


def test_send_shows_the_agent_the_request_that_was_asked_for(product: Product) -> None:
    with serving(product, "waf-1", always(ALLOWED)) as agent:
        done = product.command(
            "send", "waf-1", "--method", "PUT", "--uri", "/x?y=1",
            "--header", "Host: example.com", "--header", "X-A:1", "--header", "X-A: 2:3",
        )  # fmt: skip
        assert done.returncode == 0
        event = agent.seen[0][2]
        assert isinstance(event, RequestHeaders)
        assert (event.method, event.uri) == ("PUT", "/x?y=1")
        assert event.headers == {"Host": ["example.com"], "X-A": ["1", "2:3"]}


@pytest.mark.parametrize("start", [0, 1])
def test_request_starts_at_the_shard_asked_for_and_is_answered_by_the_one_that_has_the_agent(
    product: Product, start: int
) -> None:
    with serving(product, "waf-1", always(ALLOWED)):
        holder = shard_of(product, "waf-1")
        answer = decided(product, "waf-1", "--shard", str(start))
        assert (answer["shard"], answer["asked_shard"], answer["relayed"]) == (holder, start, start != holder)
        text = send(product, "waf-1", "--shard", str(start)).stdout
        assert (f"asked by shard {start}" in text) == (start != holder)


def test_send_shows_everything_that_came_with_the_decision_and_no_escape_sequence(product: Product) -> None:
    response = Decision(
        Block(403, "\x1b[2Jfoo", {"X-Why": "rule"}),
        request_headers=(HeaderOp.set("X-User", "bob\x1b]0;x\x07"), HeaderOp.remove("Cookie")),
        response_headers=(HeaderOp.add("Via", "waf"),),
        audit=Audit(("sqli",), ("942100",), ("SQLI",), 0.5, {"score": 9}),
        routing_metadata={"pool": "b\x9b"},
    )
    with serving(product, "waf-1", always(response)):
        done = send(product, "waf-1", "--json")
        assert done.stdout.isascii()
        answer = json.loads(done.stdout)
        assert answer["request_headers"] == [
            {"operation": "set", "name": "X-User", "value": "bob\x1b]0;x\x07"},
            {"operation": "remove", "name": "Cookie"},
        ]
        assert answer["response_headers"] == [{"operation": "add", "name": "Via", "value": "waf"}]
        assert answer["routing_metadata"] == {"pool": "b\x9b"}
        assert answer["audit"] == {
            "tags": ["sqli"], "rule_ids": ["942100"], "reason_codes": ["SQLI"],
            "confidence": 0.5, "custom": {"score": 9},
        }  # fmt: skip

        lines = send(product, "waf-1").stdout.splitlines()
        assert lines[0].startswith('block with status 403, headers X-Why: "\\x1b[2Jfoo"  (')
        assert lines[1:] == [
            "  set request header X-User: bob\\x1b]0;x\\x07",
            "  remove request header Cookie",
            "  add response header Via: waf",
            "  routing pool: b\\x9b",
            "  audit tags: sqli",
            "  audit rules: 942100",
            "  audit reasons: SQLI",
            "  audit confidence: 0.5",
            '  audit custom: {"score":9}',
        ]


def chunks_of(agent: ServingAgent) -> list[RequestBodyChunk]:
    """The chunks that an agent was shown."""
    return [event for _, _, event in agent.seen if isinstance(event, RequestBodyChunk)]


def test_body_is_shown_in_chunks_of_64_kib_to_its_end(product: Product, tmp_path: Path) -> None:
    body = os.urandom(150_000)
    (tmp_path / "body").write_bytes(body)

    def decide(event: object) -> Decision:
        if isinstance(event, RequestBodyChunk):
            mutation = BodyMutation(b"12345" if event.is_last else None, event.chunk_index)
            return Decision(Allow(), request_body_mutation=mutation)
        return Decision(Allow(), request_headers=(HeaderOp.set("X-Seen", "headers"),))

    with serving(product, "waf-1", decide) as agent:
        answer = decided(product, "waf-1", "--body", str(tmp_path / "body"))
        assert answer["decision"] == "allow"
        assert answer["events"] == 4
        assert answer["request_headers"] == [{"operation": "set", "name": "X-Seen", "value": "headers"}]
        assert answer["body_mutations"][-1] == {"chunk_index": 2, "size": 5}
        headers = agent.seen[0][2]
        assert isinstance(headers, RequestHeaders)
        assert headers.method == "POST"
        chunks = chunks_of(agent)
        assert b"".join(chunk.data for chunk in chunks) == body
        assert [len(chunk.data) for chunk in chunks] == [65536, 65536, 150_000 - 2 * 65536]
        assert [(chunk.chunk_index, chunk.is_last) for chunk in chunks] == [(0, False), (1, False), (2, True)]
        assert {chunk.total_size for chunk in chunks} == {150_000}
        assert "  body chunk 2 becomes 5 B\n" in send(product, "waf-1", "--body", str(tmp_path / "body")).stdout


@pytest.mark.parametrize("at", ["headers", "the second chunk"])
def test_body_ends_with_a_final_decision(product: Product, tmp_path: Path, at: str) -> None:
    (tmp_path / "body").write_bytes(bytes(300_000))

    def decide(event: object) -> Decision:
        now = isinstance(event, RequestHeaders) if at == "headers" else getattr(event, "chunk_index", None) == 1
        return Decision(Block(413)) if now else Decision(None, needs_more=True)

    with serving(product, "waf-1", decide) as agent:
        answer = decided(product, "waf-1", "--body", str(tmp_path / "body"))
        assert answer["decision"] == {"block": {"status": 413}}
        assert len(chunks_of(agent)) == (0 if at == "headers" else 2)


def test_body_may_be_empty_and_come_from_standard_input(product: Product) -> None:
    with serving(product, "waf-1", always(ALLOWED)) as agent:
        for text in ("", "hello"):
            done = send(product, "waf-1", "--body", "-", "--json", stdin=text)
            assert json.loads(done.stdout)["decision"] == "allow"
        assert [(chunk.data, chunk.is_last) for chunk in chunks_of(agent)] == [(b"", True), (b"hello", True)]


def test_word_on_the_headers_stands_when_the_agent_takes_no_bodies(product: Product) -> None:
    only_headers = Capabilities(events=int(Event.REQUEST_HEADERS))
    agent = ServingAgent(product.socket, "waf-1", Dialect.SDK, always(ALLOWED), only_headers)
    try:
        done = send(product, "waf-1", "--body", "-", "--json", stdin="hello")
        answer = json.loads(done.stdout)
        assert (done.returncode, answer["decision"], answer["events"]) == (0, "allow", 1)
    finally:
        agent.close()


def assert_no_decision(product: Product, arguments: tuple[str, ...], code: str, said: str) -> None:
    """*arguments* end with 1 and that error, on standard error alone."""
    done = send(product, *arguments, "--json")
    assert (done.returncode, done.stdout) == (1, "")
    error = json.loads(done.stderr)
    assert error["error_code"] == code
    assert said in error["error"]
    assert error["failure_policy"] == POLICY
    assert "decision" not in error

    done = send(product, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("shardgate: no decision of the agent: ")
    assert first.endswith(f" (error_code {code})")
    assert second == f"fail-closed: {POLICY['fail_closed']}; fail-open: {POLICY['fail_open']}"


def test_no_decision_is_an_error_and_never_an_allow(product: Product) -> None:
    assert_no_decision(product, ("nobody",), "agent_not_found", "not connected")
    with serving(product, "mute", always(None)):
        assert_no_decision(product, ("mute", "--timeout", "200ms"), "request_timeout", "no answer within")
    with serving(product, "undecided", always(Decision(None, needs_more=True))):
        assert_no_decision(product, ("undecided",), "bad_answer", "")
    no_headers = ServingAgent(product.socket, "deaf", Dialect.CORE, always(ALLOWED), Capabilities(events=0))
    assert_no_decision(product, ("deaf",), "cannot_receive", "RequestHeaders")
    no_headers.close()


def test_agent_that_dies_over_the_request_is_an_error(product: Product) -> None:
    agent: Agent

    def die(_event: object) -> None:
        agent.sock.shutdown(socket.SHUT_RDWR)

    with serving(product, "fragile", die) as agent:
        done = send(product, "fragile", "--json")
        assert done.returncode == 1
        assert json.loads(done.stderr)["error_code"] == "connection_lost"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["waf 1"],
        ["waf-1", "--header", "novalue"],
        ["waf-1", "--header", ":x"],
        ["waf-1", "--body", "/does/not/exist"],
        ["waf-1", "--shard", "-1"],
        ["waf-1", "--timeout", "0"],
    ],
)
def test_wrong_usage_exits_2_and_asks_nobody(product: Product, arguments: list[str]) -> None:
    done = send(product, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage: shardgate send" in done.stderr


def test_shard_that_is_not_there_exits_4_at_once(product: Product) -> None:
    done = send(product, "waf-1", "--shard", "7", "--json")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == "shardgate: shard 7 is not running; running shards: 0, 1\n"


def test_send_goes_to_another_shard_when_one_is_stuck_and_says_so_when_that_was_asked_for(start_product: Any) -> None:
    product = start_product()
    agents = [ServingAgent(product.socket, "waf-1") for _ in range(2)]
    try:
        assert {shard for shard in (0, 1) for _ in product.query_connections(shard)} == {0, 1}
        os.kill(product.shard_pid(0), signal.SIGSTOP)
        try:
            answer = decided(product, "waf-1")
            assert (answer["decision"], answer["shard"], answer["asked_shard"]) == ("allow", 1, 1)
            done = send(product, "waf-1", "--shard", "0")
            assert (done.returncode, done.stdout) == (6, "")
            assert done.stderr == "shardgate: shard 0 does not answer; see 'shardgate status'\n"
        finally:
            os.kill(product.shard_pid(0), signal.SIGCONT)
    finally:
        for agent in agents:
            agent.close()


def test_send_works_with_the_supervisor_down_and_exits_4_when_everything_is(start_product: Any) -> None:
    product = start_product()
    with serving(product, "waf-1", always(ALLOWED)):
        product.process.kill()
        product.process.wait()
        assert decided(product, "waf-1")["decision"] == "allow"
    product.start()
    product.wait_until_running()
    product.process.terminate()
    product.process.wait(20)
    done = send(product, "waf-1")
    assert (done.returncode, done.stdout) == (4, "")
    assert "no shardgate is running" in done.stderr


def test_shard_that_refuses_is_not_reachable_and_its_reason_is_said(start_product: Any) -> None:
    product = start_product(shards=1)
    path = product.runtime_dir / "shard-0.proxy"
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(20)

        def refuse() -> None:
            with listener.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(encode_refusal("protocol 9 \x1b[2J is spoken here"))

        thread = threading.Thread(target=refuse)
        thread.start()
        done = send(product, "waf-1")
        thread.join()
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == "shardgate: shard 0 refused: protocol 9 \\x1b[2J is spoken here\n"
