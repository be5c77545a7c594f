"""README keeps its word: the programs for authors of agents run as they stand there."""

import re
from pathlib import Path
from typing import Any

from support.deciding import allows
from support.scripted_proxy import Peer, run, scripted_proxy

from dialout import (
    Agent,
    Answer,
    Block,
    ErrorCode,
    RequestBodyChunk,
    RequestHeaders,
    connect_to_proxy,
)

ROOT = Path(__file__).parents[3]
README = (ROOT / "dialout" / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README[README.index("## Agents") : README.index("## The core")], re.DOTALL)


def names_of(program: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "readme"}
    exec(program, names)
    return names


def test_whole_agent_is_the_example() -> None:
    assert (ROOT / "examples" / "agent.py").read_text().endswith(f'"""\n\n{BLOCKS[0]}')


def test_scanner_reads_bodies_with_the_rules_that_it_was_given() -> None:
    scanner: Agent = names_of(BLOCKS[1])["Scanner"]()
    seen: list[Answer] = []

    async def script(peer: Peer) -> None:
        await peer.accept({"rules": ["virus", "worm"]})
        peer.event(RequestHeaders("POST", "/", {}, has_body=True), 1)
        peer.event(RequestBodyChunk(0, b"a vi", False), 1)
        peer.event(RequestBodyChunk(1, b"rus", False), 1)
        for _ in range(3):
            answer = await peer.inbound()
            assert isinstance(answer, Answer)
            seen.append(answer)

    async def main() -> None:
        async with scripted_proxy(script) as proxy:
            connection = await connect_to_proxy(proxy.address, "waf-1", scanner.capabilities, ping_interval=0)
            await connection.serve(scanner)

    run(main())
    assert [one.response.needs_more for one in seen] == [True, True, False]
    assert seen[2].response.verdict == Block(403)
    assert seen[2].response.audit.rule_ids == ("scan-1",)


def test_single_connection_says_what_became_of_it() -> None:
    once = names_of(BLOCKS[2])["once"]

    async def script(peer: Peer) -> None:
        if peer.number == 1:
            await peer.refuse(ErrorCode.CONNECTION_LIMIT, retry_after_ms=2000)
        elif peer.number == 2:
            await peer.accept()
            peer.event(RequestHeaders("GET", "/", {}), 1)
            await peer.inbound()

    async def main() -> None:
        async with scripted_proxy(script) as proxy:
            said = [await once(proxy.address, allows()) for _ in range(3)]
        assert said[0] == "try again in 2.0 s"
        assert said[1] == "waf-1-conn-2 answered 1 events: closed by the proxy"
        assert said[2].startswith("no connection: the proxy closed the connection")

    run(main())
