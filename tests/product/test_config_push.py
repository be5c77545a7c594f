"""A reload brings agents their changed configuration, those that can take it, over every connection."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.agents import Agent
from support.product import Product
from support.sending import decided
from support.serving import EVERYTHING, ServingAgent, allow
from support.waiting import wait_for

from dialout import ALLOWED, Block, Configure, Decision, Dialect, RequestHeaders

StartProduct = Callable[..., Product]


@pytest.fixture
def agents() -> Iterator[ExitStack]:
    """Closes agents before the product ends."""
    with ExitStack() as stack:
        yield stack


def write(file: Path, *lines: str) -> None:
    """Write a configuration file."""
    file.write_text("reverse-listener {\nmax-connections-per-agent 50\n" + "\n".join(lines) + "\n}\n")


def configures(agent: ServingAgent) -> list[Any]:
    """The configurations that an agent was brought."""
    return [event.config for _, _, event in agent.seen if isinstance(event, Configure)]


def reload(product: Product) -> None:
    """Reload, which must succeed."""
    done = product.command("reload")
    assert done.returncode == 0, done.stderr


def fenced(product: Product, agent: ServingAgent) -> bool:
    """Send a request that any of the agent's connections may get; whether this one has got one by now."""
    assert agent.connection_id is not None
    for shard in ("0", "1"):
        decided(product, agent.connection_id.rpartition("-conn-")[0], "--shard", shard)
    return any(isinstance(event, RequestHeaders) for _, _, event in agent.seen)


def wait_for_configures(agent: ServingAgent, *expected: Any) -> None:
    """Wait until these are the last configurations that the agent was brought."""
    wait_for(lambda: configures(agent)[-len(expected) :] == list(expected), f"{expected} at {agent.connection_id}")


def logged(product: Product, event: str) -> list[dict[str, Any]]:
    """What it logged under this name."""
    complete = product.log.read_text().rpartition("\n")[0].splitlines()
    return [line for line in map(json.loads, complete) if line["event"] == event]


def reloads(product: Product, n: int) -> bool:
    """Whether agents' configuration has changed *n* times."""
    return len(logged(product, "configuration of agents changed")) == n


def test_reload_brings_the_new_configuration_to_every_connection_that_can_take_it_and_to_no_other(
    start_product: StartProduct, agents: ExitStack, tmp_path: Path
) -> None:
    file = tmp_path / "a.kdl"
    write(file, 'agent-config "waf-*" { rules_version "1" }', 'agent-config "auth-*" { ttl 1 }')
    product = start_product("--config", str(file))

    def serve(agent_id: str, dialect: Dialect = Dialect.CORE, **changes: Any) -> ServingAgent:
        capabilities = msgspec.structs.replace(EVERYTHING, **changes)
        agent = ServingAgent(product.socket, agent_id, dialect, allow, capabilities)
        agents.callback(agent.close)
        return agent

    crowd = [serve("waf-1") for _ in range(8)] + [serve("waf-2")]
    assert {shard for shard in (0, 1) if product.query_connections(shard)} == {0, 1}
    unable = [
        serve("waf-3", Dialect.SDK),
        serve("waf-4", Dialect.DOCS),
        serve("waf-5", config_push=False),
        serve("waf-6", events=1),
    ]
    unchanged = serve("auth-1")
    nobody = serve("other")

    write(
        file,
        'agent-config "waf-*" { rules_version "2" }', 'agent-config "waf-2" { extra true }',
        'agent-config "auth-*" { ttl 1 }',
    )  # fmt: skip
    reload(product)
    for agent in crowd[:-1]:
        wait_for_configures(agent, {"rules_version": "2"})
    wait_for_configures(crowd[-1], {"rules_version": "2", "extra": True})
    versions = {event.config_version for agent in crowd for _, _, event in agent.seen if isinstance(event, Configure)}
    assert len(versions) == 2

    # Who registers now has it already.
    late = serve("waf-1")
    with Agent(product.socket) as one:
        assert one.register("waf-1").config == {"rules_version": "2"}

    # A request behind it is a fence: what was not there before it does not come.
    for agent in [*unable, unchanged, nobody, late]:
        wait_for(partial(fenced, product, agent), "a request at each connection")
    assert [configures(agent) for agent in [*unable, unchanged, nobody, late]] == [[]] * 7
    assert [len(configures(agent)) for agent in crowd] == [1] * 9

    # The rule is gone: so is what it said.
    write(file, 'agent-config "waf-2" { extra true }', 'agent-config "auth-*" { ttl 1 }')
    reload(product)
    for agent in [*crowd[:-1], late]:
        wait_for_configures(agent, {})
    wait_for_configures(crowd[-1], {"extra": True})
    assert configures(unchanged) == []
    assert logged(product, "agent did not take its configuration") == []


def test_refusal_is_logged_with_the_connection_and_changes_nothing_else(
    start_product: StartProduct, agents: ExitStack, tmp_path: Path
) -> None:
    file = tmp_path / "a.kdl"
    write(file, 'agent-config "waf-*" { v 1 }')
    product = start_product("--config", str(file))

    def decide(event: object) -> Decision:
        return Decision(Block(500, "bad\x1b[2J rules")) if isinstance(event, Configure) else ALLOWED

    agent = ServingAgent(product.socket, "waf-1", Dialect.CORE, decide)
    agents.callback(agent.close)
    write(file, 'agent-config "waf-*" { v 2 }')
    reload(product)
    (line,) = wait_for(lambda: logged(product, "agent refuses its configuration"), "the refusal in the log")
    assert line["connection_id"] == agent.connection_id
    assert (line["status"], line["reason"], line["level"]) == (500, "bad\\x1b[2J rules", "warning")
    assert decided(product, "waf-1")["decision"] == "allow"


def test_busy_agent_gets_the_newest_configuration_when_it_has_room(
    start_product: StartProduct, agents: ExitStack, tmp_path: Path
) -> None:
    file = tmp_path / "a.kdl"
    write(file, 'agent-config "waf-*" { v 1 }')
    product = start_product("--config", str(file))
    go_on = threading.Event()
    agents.callback(go_on.set)

    def decide(event: object) -> Decision:
        if isinstance(event, RequestHeaders):
            assert go_on.wait(30)
        return ALLOWED

    one_at_a_time = msgspec.structs.replace(EVERYTHING, max_concurrent=1)
    agent = ServingAgent(product.socket, "waf-1", Dialect.CORE, decide, one_at_a_time)
    agents.callback(agent.close)
    asking = threading.Thread(target=product.command, args=("send", "waf-1", "--timeout", "30s"))
    asking.start()
    agents.callback(asking.join)
    wait_for(lambda: agent.seen, "the request to be with the agent")
    for version in (2, 3):
        write(file, f'agent-config "waf-*" {{ v {version} }}')
        reload(product)
        wait_for(partial(reloads, product, version - 1), "the reload")
    go_on.set()
    wait_for(lambda: configures(agent), "the configuration")
    assert configures(agent) == [{"v": 3}]
    assert type(agent.seen[0][2]) is RequestHeaders
