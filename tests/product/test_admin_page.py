"""The page of the admin endpoint, in a real browser."""

import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.admin import address
from support.browser import CHROMIUM, Browser, browser
from support.product import Product, StartProduct, shared_product
from support.serving import ServingAgent
from support.waiting import wait_for

ADMIN = ("--admin", "127.0.0.1:0")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="there is no browser here (Debian: chromium)"
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser for all tests of this module."""
    assert CHROMIUM is not None, "CI installs a browser (Debian: chromium)"
    with tempfile.TemporaryDirectory(prefix="sg-", ignore_cleanup_errors=True) as folder, browser(Path(folder)) as one:
        yield one


@pytest.fixture(scope="module")
def product() -> Iterator[Product]:
    """A shardgate for the tests that leave it as they found it."""
    with shared_product(*ADMIN) as one:
        yield one


def show(chromium: Browser, product: Product, width: int = 1280) -> None:
    """Open the page of *product* and wait until it shows something."""
    chromium.show_as("light", width, 900)
    chromium.open(f"http://{address(product)}/")
    wait_for(lambda: "shards" in chromium.text("#grade"), "the first numbers")


def record(chromium: Browser, selector: str) -> None:
    """Have the page note each text that an element shows, with the time, in ``window.seen``."""
    chromium.evaluate(f"""{{
        const element = document.querySelector({json.dumps(selector)});
        window.seen = [];
        new MutationObserver(() => window.seen.push([Date.now() / 1000, element.textContent]))
            .observe(element, {{childList: true, characterData: true, subtree: true}});
    }} 0""")


def test_page_shows_a_shard_going_down_and_coming_back(chromium: Browser, start_product: StartProduct) -> None:
    product = start_product(*ADMIN)
    show(chromium, product)
    assert chromium.text("#grade") == "Ready, 2 of 2 shards"
    record(chromium, "#shard-1 .chip")
    pid = product.shard_pid(1)

    os.kill(pid, signal.SIGKILL)
    killed_at = time.time()
    wait_for(lambda: chromium.evaluate("seen.length && seen.at(-1)[1]") == "running", "the shard to be back", 20)

    seen = {state: round(at - killed_at, 3) for at, state in chromium.evaluate("seen")}
    states = list(seen)
    assert (states[0], states[-1]) == ("down", "running")
    print(f"the page showed, in seconds after the kill: {seen}")
    wait_for(lambda: chromium.text("#grade") == "Ready, 2 of 2 shards", "the host to be ready")
    assert str(product.shard_pid(1)) in chromium.text("#shard-1")
    wait_for(lambda: f"pid {pid} killed by SIGKILL" in chromium.text("#events"), "the event")
    assert chromium.evaluate("document.querySelector('#shard-1 td:nth-child(10)').textContent") == "1"
    assert chromium.complaints() == []


def test_page_says_that_a_host_is_degraded_and_why(chromium: Browser, start_product: StartProduct) -> None:
    product = start_product(*ADMIN)
    show(chromium, product)
    pid = product.shard_pid(0)
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_for(lambda: chromium.text("#grade") == "Degraded, 1 of 2 shards", "the page to say that one is missing")
        assert "shard 0 takes no connections: it is unhealthy" in chromium.text("#reasons")
        wait_for(lambda: chromium.text("#shard-0 .chip") == "unhealthy", "the shard's state")
        assert chromium.evaluate("document.title").startswith("Degraded ")
        wait_for(lambda: " old" in chromium.text("#shard-0"), "the age of its numbers")
        beside = "(({scrollWidth, clientWidth}) => scrollWidth - clientWidth)($('shards').closest('section'))"
        assert chromium.evaluate(beside) == 0, "nothing is cut off"
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: chromium.text("#grade") == "Ready, 2 of 2 shards", "the host to be ready")
    wait_for(lambda: not chromium.text("#reasons"), "the reason to go")


def test_page_shows_agents_as_they_come_and_go(chromium: Browser, product: Product) -> None:
    show(chromium, product)
    wait_for(lambda: chromium.text("#no-agents"), "the page to say that there is nobody")
    agents = [ServingAgent(product.socket, "waf-1") for _ in range(3)]
    try:
        wait_for(lambda: "waf-1" in chromium.text("#agents"), "the agent")
        assert chromium.text("#agents td:nth-child(3)") == "3 of 4"
        wait_for(lambda: chromium.text("#tile-connections dd span") == "3", "its connections")
    finally:
        for agent in agents:
            agent.close()
    wait_for(lambda: "waf-1" not in chromium.text("#agents"), "the agent to be gone")
    assert chromium.complaints() == []


def test_page_shows_what_it_is_told_as_text(chromium: Browser, start_product: StartProduct, tmp_path: Path) -> None:
    file = tmp_path / "s.kdl"
    file.write_text("reverse-listener { shards 1\n }")
    product = start_product("--config", str(file), *ADMIN)
    show(chromium, product)
    chromium.evaluate("window.marked = false")
    evil = "<img src=x onerror=marked=true><b>bold</b>"
    file.write_text(f'reverse-listener {{ placement "{evil}"\n }}')
    assert product.command("reload").returncode == 5

    wait_for(lambda: evil in chromium.text("#reasons"), "the reason")
    wait_for(lambda: evil in chromium.text("#events"), "the event")
    assert chromium.evaluate("[marked, document.querySelectorAll('img, #reasons b').length]") == [False, 0]
    assert chromium.complaints() == []


def test_page_pages_through_many_agents(chromium: Browser, product: Product) -> None:
    agents = [ServingAgent(product.socket, f"agent-{i:03}") for i in range(60)]
    try:
        wait_for(lambda: sum(product.counts()) == 60, "all agents to be in a pool")
        show(chromium, product)
        wait_for(lambda: "agent-049" in chromium.text("#agents"), "the first page")
        assert "agent-050" not in chromium.text("#agents")
        chromium.evaluate("document.querySelector('#next').click()")
        wait_for(lambda: "agent-059" in chromium.text("#agents"), "the second page")
        assert chromium.evaluate("document.querySelector('#next').disabled")
        chromium.evaluate("document.querySelector('#first').click()")
        wait_for(lambda: "agent-000" in chromium.text("#agents"), "the first page again")
    finally:
        for agent in agents:
            agent.close()


@pytest.mark.parametrize("width", [320, 390, 768, 1100, 1280])
def test_page_fits_every_window(chromium: Browser, product: Product, width: int) -> None:
    agents = [ServingAgent(product.socket, "a" * 128), ServingAgent(product.socket, "waf")]
    try:
        wait_for(lambda: sum(product.counts()) == 2, "all agents to be in a pool")
        show(chromium, product, width)
        wait_for(lambda: "waf" in chromium.text("#agents"), "the agents")
        assert chromium.evaluate("innerWidth") == width
        assert chromium.evaluate("document.documentElement.scrollWidth") <= width
        beyond = chromium.evaluate(
            "[...document.querySelectorAll('main *')].filter((e) => e.offsetParent"
            " && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80))"
        )
        assert beyond == []
    finally:
        for agent in agents:
            agent.close()


CONTRAST = """(() => {
    const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
    const linear = (v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => .2126 * linear(r / 255) + .7152 * linear(g / 255) + .0722 * linear(b / 255);
    const ground = (e) => {
        const colour = numbers(getComputedStyle(e).backgroundColor);
        return colour.length < 4 || colour[3] ? colour : ground(e.parentElement);
    };
    const hasText = (e) => e.offsetParent && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    return [...document.querySelectorAll("body *")].filter(hasText).map((e) => {
        const [a, b] = [light(numbers(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
        return [(a + .05) / (b + .05), e.textContent];
    }).filter(([ratio]) => ratio < 4.5);
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_can_be_read_in_light_and_dark(chromium: Browser, product: Product, scheme: str) -> None:
    show(chromium, product)
    chromium.show_as("dark" if scheme == "dark" else "light", 1280, 900)
    ground = chromium.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")

    assert (sum(ground) < 150) == (scheme == "dark")
    # 4.5:1 is what WCAG 2 asks for (success criterion 1.4.3).
    assert chromium.evaluate(CONTRAST) == []


def test_page_can_be_used_without_a_pointer_and_without_sight(chromium: Browser, product: Product) -> None:
    show(chromium, product)

    nodes = chromium.call("Accessibility.getFullAXTree")["nodes"]
    named = {(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n.get("ignored")}
    assert {("heading", "shardgate"), ("heading", "Shards"), ("heading", "Agents"), ("table", "Shards")} <= named
    assert "status" in {role for role, _ in named}
    assert {"Shard", "State", "Connections"} <= {name for role, name in named if role == "columnheader"}
    assert not [name for role, name in named if role in ("button", "link", "meter") and not name]


def test_page_says_when_the_supervisor_does_not_answer_and_goes_on_with_the_next_one(
    chromium: Browser, start_product: StartProduct
) -> None:
    product = start_product(*ADMIN, shards=1)
    show(chromium, product)
    os.kill(product.process.pid, signal.SIGSTOP)
    try:
        wait_for(lambda: "No answer from the supervisor" in chromium.text("#notice"), "the page to notice")
        assert chromium.text("#grade") == "no answer"
    finally:
        os.kill(product.process.pid, signal.SIGCONT)
    wait_for(lambda: chromium.text("#grade") == "Ready, 1 of 1 shards", "the page to go on")
    wait_for(lambda: chromium.text("#notice") == "", "the notice to go")

    product.process.kill()
    product.process.wait()
    wait_for(lambda: "No answer from the supervisor" in chromium.text("#notice"), "the page to notice")
    # At the same address, as a configuration would say.
    product._arguments[product._arguments.index("127.0.0.1:0")] = address(product)
    product.start()
    wait_for(lambda: chromium.text("#grade") == "Ready, 1 of 1 shards", "the page to find the next supervisor", 20)
