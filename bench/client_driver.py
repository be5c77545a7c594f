"""A proxy that asks the product through `dialout.PoolClient`: one task for each request in flight.

    python -m bench.client_driver --runtime-dir PATH --loop asyncio|uvloop

See `bench.closed_loop` for the questions that it answers.
"""

import argparse
import asyncio
from pathlib import Path

import uvloop

from bench.closed_loop import AGENT_ID, Run, converse, echo_in, run_tasks
from dialout.proxy.pool_client import PoolClient


async def serve(runtime_dir: Path) -> None:
    """Connect to the shards, and answer questions until stdin ends."""
    async with PoolClient(runtime_dir, client_name="bench") as client:

        async def drive(run: Run, in_flight: int) -> None:
            await run_tasks(run, in_flight, lambda event: client.send_request_headers(AGENT_ID, event), echo_in)

        await converse(drive, lambda: len(client.shards))


def main() -> None:
    """Command line, see the module's docstring."""
    parser = argparse.ArgumentParser(description="A proxy that asks through PoolClient.")
    parser.add_argument("--runtime-dir", type=Path, required=True, help="runtime directory of the product")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="uvloop")
    options = parser.parse_args()
    factory = uvloop.new_event_loop if options.loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(options.runtime_dir))


if __name__ == "__main__":
    main()
