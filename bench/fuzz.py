"""Fuzz the readers of what strangers send, with cost as the judge: processor time and memory for each byte.

    python -m bench.fuzz --seconds 30

Every reader of agents', proxies' and listeners' frames gets texts that may be dear (`bench.fuzz_texts`): numbers with
large exponents, long numbers, nesting, keys, escapes, base64, keys that are repeated. It may refuse them with the
errors that it names. It fails when it raises anything else, when it takes more than `BASE_S` and `BYTE_S` for each
byte, or holds more than `BASE_BYTES` and `BYTES` for each byte. What fails is shown with the recipe of its text.

Time is the processor time of this thread and the least of several runs, so that a busy machine fails nothing.

Exit codes: 0 nothing was found · 1 something was found, or a reader was never tried.
"""

import argparse
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from hypothesis import HealthCheck, Phase, given, settings

from bench.fuzz_texts import Recipe, recipes
from dialout import (
    Dialect,
    FrameDecoder,
    FrameError,
    Rejection,
    RemoteProtocolError,
    UnreadableEvent,
    codec_for,
    parse_registration,
    parse_registration_response,
    pong_for,
)
from dialout.proxy.wire import ProxyWireError, decode_from_proxy, decode_from_shard

__all__ = ["READERS", "Finding", "Reader", "judge", "main"]

BASE_S: Final = 0.004
"""Seconds for any text: what is short is read without a look at it, and may cost 0.6 µs a byte."""

BYTE_S: Final = 150e-9
"""Seconds for each byte. Honest texts cost 1 to 30 ns, the dear ones for which this was written 1,800."""

BASE_BYTES: Final = 64 * 1024
BYTES: Final = 64
"""Bytes of memory for each byte: an empty array of three bytes takes 72, an object of eight 240."""

RUNS: Final = 7
EXAMPLES: Final = 20
"""Texts between two looks at the clock."""

STRIDE: Final = 8
"""Each text is for one reader in so many: more texts in the time."""


@dataclass(frozen=True)
class Reader:
    """A function that reads a payload, and the errors by which it may refuse it."""

    name: str
    read: Callable[[bytes], Any]
    refusals: tuple[type[Exception], ...] = ()


class Finding(AssertionError):
    """A reader that costs too much, or raises what it must not."""


def _frames(payload: bytes) -> None:
    FrameDecoder().feed(payload)


def _behind(header: bytes, decode: Callable[[int, bytes], Any], kind: int) -> Callable[[bytes], Any]:
    return lambda text: decode(kind, header + text)


def _readers() -> list[Reader]:
    readers = [
        Reader(f"registration 0x{kind:02x}", partial(parse_registration, kind), (Rejection,)) for kind in (0x01, 0x03)
    ]
    answer = partial(parse_registration_response, 0x02)
    readers += [Reader("answer to a registration", answer, (RemoteProtocolError,))]
    readers += [Reader("frames", _frames, (FrameError,))]
    for dialect in Dialect:
        codec = codec_for(dialect)
        for kind in (0x20, 0x21, 0x30, 0x31, 0x32, 0x33, 0x42, 0xE1, 0xE3, 0xF1):
            readers.append(Reader(f"frame 0x{kind:02x} of an agent ({dialect})", partial(codec.decode, kind)))
        for kind in (*range(0x10, 0x18), 0x30, 0x31, 0x40, 0xF1):
            name = f"frame 0x{kind:02x} of a listener ({dialect})"
            readers.append(Reader(name, partial(codec.decode_event, kind), (UnreadableEvent,)))
        readers.append(Reader(f"ping ({dialect})", partial(pong_for, dialect, dialect.ping_type)))
    to_shard, to_proxy = bytes(7) + b"\x01" + bytes(5) + b"\x01a", bytes(7) + b"\x01" + bytes(5)
    for kind in (*range(0x10, 0x18), 0x01, 0x40, 0x41, 0xF0):
        read = _behind(b"" if kind in {0x01, 0xF0} else to_shard, decode_from_proxy, kind)
        readers.append(Reader(f"frame 0x{kind:02x} of a proxy", read, (ProxyWireError,)))
    for kind in (0x20, 0x21, 0x02):
        read = _behind(to_proxy if kind >= 0x20 else b"", decode_from_shard, kind)
        readers.append(Reader(f"frame 0x{kind:02x} of a shard", read, (ProxyWireError,)))
    return readers


READERS: Final = _readers()


def judge(reader: Reader, text: bytes, *, memory: bool = True) -> None:
    """Have *text* read; raises `Finding` for what it costs, or for an error that is no refusal."""
    limit = BASE_S + BYTE_S * len(text)
    seconds = limit + 1
    for _ in range(RUNS):
        seconds = min(seconds, _seconds(reader, text))
        if seconds <= limit:
            break
    else:
        each = seconds / len(text) * 1e9
        raise Finding(f"{reader.name}: {seconds * 1e3:.1f} ms for {len(text)} bytes, {each:.0f} ns for each")
    if memory:
        peak = _memory(reader, text)
        if peak > BASE_BYTES + BYTES * len(text):
            raise Finding(f"{reader.name}: {peak} bytes of memory for {len(text)}, {peak / len(text):.0f} for each")


def _seconds(reader: Reader, text: bytes) -> float:
    began = time.thread_time()
    try:
        reader.read(text)
    except reader.refusals:
        pass
    except Exception as error:
        raise Finding(f"{reader.name}: raised {error!r}") from error
    return time.thread_time() - began


def _memory(reader: Reader, text: bytes) -> int:
    tracemalloc.start()
    try:
        reader.read(text)
    except reader.refusals:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak


def fuzz(seconds: float, readers: Sequence[Reader] = READERS) -> Counter[str]:
    """Try texts on all readers, for so long at least; returns how many each has read. Raises what `judge` raises."""
    tried: Counter[str] = Counter()
    turn = 0

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=False,
        # Without making it smaller: a recipe is short as it is, and the dear ones take their time.
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(recipes())
    def texts(recipe: Recipe) -> None:
        text = recipe.text()
        # Memory takes ten times as long to look at.
        for number, reader in enumerate(readers[turn % STRIDE :: STRIDE]):
            judge(reader, text, memory=number == turn % 8)
            tried[reader.name] += 1

    end = time.monotonic() + seconds
    while time.monotonic() < end or turn < STRIDE:
        texts()
        turn += 1
    return tried


def main() -> None:
    """Command line, see the module's docstring."""
    parser = argparse.ArgumentParser(description="Fuzz the readers of what strangers send, with cost as the judge.")
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    try:
        tried = fuzz(options.seconds)
    except Finding as finding:
        sys.exit("\n".join([str(finding), *getattr(finding, "__notes__", [])]))
    missed = [reader.name for reader in READERS if not tried[reader.name]]
    print(f"{tried.total():,} texts on {len(tried)} readers in {options.seconds:g} s")
    if missed:
        sys.exit(f"never tried: {', '.join(missed)}")


if __name__ == "__main__":
    main()
