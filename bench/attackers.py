"""Registered agents that mean harm, in one process: each attack is a connection that floods its shard with one thing.

    python -m bench.attackers --uds PATH                              one connection for each attack
    python -m bench.attackers --uds PATH --only NAME --connections 4  of one attack

They rest until they are asked to ``attack``, and close all their connections when they are asked to ``rest``. A
connection that the listener closes is opened again after a moment. What they sent is counted, so that a benchmark can
tell that its path ran.
"""

import argparse
import asyncio
import contextlib
import os
from collections.abc import Iterator, Sequence
from itertools import repeat

import msgspec
import uvloop

from bench.conversation import converse
from dialout import Capabilities, Dialect, Event, RegistrationRequest, encode_frame

__all__ = ["ATTACKS", "AttackReport"]

AGAIN_S = 0.05
"""Seconds until an attacker dials again."""

BIG = 900_000
"""Bytes of a frame that is dear to read: below what an answer may have."""

_DEAR_NUMBERS = b"[" + b",".join(repeat(b"1e308", BIG // 6)) + b"]"
_NESTED = b"[" * (BIG // 2) + b"]" * (BIG // 2)
_MANY_KEYS = b"{" + b",".join(b'"%x":1' % number for number in range(BIG // 10)) + b"}"
_HALF = b"\x00\x0f\xff\xff\x20" + b" " * BIG

ATTACKS: dict[str, bytes] = {
    "dear numbers in an answer": encode_frame(
        0x20, b'{"request_id":1,"decision":"allow","audit":{"custom":{"a":%b}}}' % _DEAR_NUMBERS
    ),
    "dear numbers in a health report": encode_frame(0xE1, b'{"healthy":%b}' % _DEAR_NUMBERS),
    "nested arrays": encode_frame(0x20, b'{"request_id":1,"decision":"allow","x":%b}' % _NESTED),
    "many keys": encode_frame(0x20, b'{"request_id":1,"decision":"allow","audit":{"custom":%b}}' % _MANY_KEYS),
    "pings whose pongs are not read": encode_frame(0xF0, b'{"timestamp":1}') * 1000,
    "small frames of no known type": encode_frame(0x77, b"x") * 1000,
    "small answers that nothing waits for": encode_frame(0x20, b'{"request_id":1,"decision":"allow"}') * 1000,
    "half a frame": _HALF,
}
"""What each attacker sends, over and over; half a frame only once."""


class AttackReport(msgspec.Struct, frozen=True):
    """What the attackers have done since the last report: bytes sent, and connections accepted and closed on them."""

    sent: dict[str, int]
    accepted: int
    closed: int


class Attackers:
    """All of them, and what they have done."""

    def __init__(self, uds: str, attacks: Sequence[str]) -> None:
        self._uds, self._attacks = uds, attacks
        self._tasks: list[asyncio.Task[None]] = []
        self._sent = dict.fromkeys(ATTACKS, 0)
        self._accepted = self._closed = 0

    def attack(self) -> bool:
        """Begin."""
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._go_on(number, name)) for number, name in enumerate(self._attacks)]
        return True

    def rest(self) -> bool:
        """Close everything."""
        for task in self._tasks:
            task.cancel()
        self._tasks = []
        return True

    def report(self) -> AttackReport:
        """What was done since the last report."""
        report = AttackReport(self._sent, self._accepted, self._closed)
        self._sent = dict.fromkeys(ATTACKS, 0)
        self._accepted = self._closed = 0
        return report

    async def _go_on(self, number: int, name: str) -> None:
        capabilities = Capabilities(events=int(~Event(0)), max_concurrent=None, cancellation=True, streaming_body=True)
        agent_id = f"attacker-{os.getpid()}-{number}"
        request = RegistrationRequest(agent_id=agent_id, capabilities=capabilities).encode(Dialect.SDK)
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_unix_connection(self._uds)
                try:
                    writer.write(request)
                    length = int.from_bytes(await reader.readexactly(4))
                    await reader.readexactly(length)
                    self._accepted += 1
                    # It does not read any more: what comes fills the socket, and then the listener's memory.
                    for frame in self._frames(name):
                        writer.write(frame)
                        await writer.drain()
                        self._sent[name] += len(frame)
                    await reader.read()
                finally:
                    writer.transport.abort()
            self._closed += 1
            await asyncio.sleep(AGAIN_S)

    @staticmethod
    def _frames(name: str) -> Iterator[bytes]:
        return repeat(ATTACKS[name], 1) if name == "half a frame" else repeat(ATTACKS[name])


async def serve(uds: str, attacks: Sequence[str]) -> None:
    """Attack and rest as asked until stdin ends; a connection for each of *attacks*."""
    attackers = Attackers(uds, attacks)
    await converse({"attack": attackers.attack, "rest": attackers.rest, "report": attackers.report})
    attackers.rest()
    await asyncio.sleep(0)


def main() -> None:
    """Command line, see the module's docstring."""
    parser = argparse.ArgumentParser(description="Registered agents that mean harm.")
    parser.add_argument("--uds", required=True, help="Unix socket of the listener")
    parser.add_argument("--only", choices=sorted(ATTACKS), help="this attack only")
    parser.add_argument("--connections", type=int, default=1, help="for each attack")
    options = parser.parse_args()
    attacks = [options.only] if options.only else list(ATTACKS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options.uds, attacks * options.connections))


if __name__ == "__main__":
    main()
