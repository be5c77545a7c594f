"""Make README's picture of the page: ``PYTHONPATH=.:tests python -m support.picture docs/page.png [light|dark]``.

Starts a shardgate with agents and a proxy in folders of its own, and shows the page in a real browser.
"""

import asyncio
import contextlib
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast

from dialout import ALLOWED, Decision, RequestHeaders
from dialout.proxy.errors import PoolError
from dialout.proxy.pool_client import PoolClient
from support.browser import browser
from support.product import Product, short_folder
from support.serving import ServingAgent

AGENTS = {
    "auth-agent": 3,
    "bot-score": 2,
    "geo-block": 2,
    "rate-limiter": 4,
    "waf-eu-1": 4,
    "waf-eu-2": 4,
    "waf-us-1": 3,
}
SECONDS = 75
"""So long that the lines of the rates are full."""


def _decide(_event: object) -> Decision:
    time.sleep(random.random() / 400)
    return ALLOWED


async def _ask(product: Product, until: float) -> None:
    """Ask agents about requests, a few more and a few less as time goes by."""
    async with PoolClient(product.runtime_dir) as client:

        async def one(phase: float) -> None:
            while time.monotonic() < until:
                with contextlib.suppress(PoolError):
                    await client.send_request_headers(random.choice(list(AGENTS)), RequestHeaders("GET", "/", {}))
                await asyncio.sleep(0.02 + 0.018 * (1 + random.random()) * (phase + time.monotonic() / 9 % 1))

        await asyncio.gather(*(one(i / 12) for i in range(12)))


@contextlib.contextmanager
def _serving(product: Product) -> Iterator[list[ServingAgent]]:
    agents = [
        ServingAgent(product.socket, name, decide=_decide) for name, number in AGENTS.items() for _ in range(number)
    ]
    try:
        yield agents
    finally:
        for agent in agents:
            agent.close()


def main(target: Path, scheme: Literal["light", "dark"]) -> None:
    """Write the picture to *target*."""
    with short_folder() as folder:
        runtime = Path("/run/shardgate") if os.geteuid() == 0 else folder / "run"
        where = ("--runtime-dir", str(runtime), "--uds", str(runtime / "agents.sock"), "--admin", "127.0.0.1:9180")
        product = Product(folder / "p", *where, shards=4, uds=False, wait=False)
        product.runtime_dir, product.socket = runtime, runtime / "agents.sock"
        try:
            product.wait_until_running()
            with _serving(product) as agents, browser(folder) as page:
                page.show_as(scheme, 1280, 1010)
                page.open("http://127.0.0.1:9180/")
                until = time.monotonic() + SECONDS
                asking = threading.Thread(target=lambda: asyncio.run(_ask(product, until)))
                asking.start()
                time.sleep(SECONDS / 3)
                os.kill(product.shard_pid(2), signal.SIGKILL)
                time.sleep(SECONDS / 3)
                for number in (0, 7):
                    name = agents[number].connection_id or ""
                    agents.append(ServingAgent(product.socket, name.rpartition("-conn-")[0], decide=_decide))
                time.sleep(max(0.0, until - time.monotonic() - 4))
                page.screenshot(target)
                asking.join()
        finally:
            print(product.end())


if __name__ == "__main__":
    main(Path(sys.argv[1]), cast("Literal['light', 'dark']", sys.argv[2] if len(sys.argv) > 2 else "light"))
