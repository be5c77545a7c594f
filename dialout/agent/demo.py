"""The demonstration agent: ``python -m dialout``, and ``shardgate agent``.

It keeps its connections open, blocks the given URIs and allows all others. It logs to standard error. On a terminal a
status line follows the log. At the end it prints a summary.
"""

import argparse
import asyncio
import contextlib
import logging
import re
import sys
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from dialout import __version__
from dialout.agent.agent import Agent, Reply, Request
from dialout.agent.manager import AgentConnectionManager
from dialout.agent.metadata import agent_metadata
from dialout.decisions import Decision
from dialout.dialects import Dialect
from dialout.errors import DialoutError
from dialout.events import RequestHeaders
from dialout.registration import is_agent_id

__all__ = ["DemoAgent", "main"]

_MOST_TOKEN = 64 * 1024
_REFRESH = 0.5
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s)?")


class DemoAgent(Agent):
    """Blocks the URIs that match one of ``patterns``, and allows all others.

    ``*`` matches any text, ``?`` one character.
    """

    def __init__(self, patterns: Sequence[str] = (), *, max_concurrent_requests: int = 100) -> None:
        super().__init__(max_concurrent_requests=max_concurrent_requests)
        self._patterns = tuple(patterns)

    def on_request_headers(self, event: RequestHeaders, request: Request) -> Reply:  # noqa: ARG002 - the hook's own
        """Decide at once."""
        return self.decide(event)

    def decide(self, event: RequestHeaders) -> Decision:
        """Return the decision for a request."""
        if any(fnmatchcase(event.uri, pattern) for pattern in self._patterns):
            return Decision.block(403, "blocked by the demonstration agent").with_audit(tags=("demo",))
        return Decision.allow()


class ThoughtfulAgent(DemoAgent):
    """Takes ``delay`` seconds for each decision. A request that is cancelled meanwhile is given up."""

    def __init__(self, patterns: Sequence[str], delay: float, *, max_concurrent_requests: int) -> None:
        super().__init__(patterns, max_concurrent_requests=max_concurrent_requests)
        self._delay = delay

    async def on_request_headers(self, event: RequestHeaders, request: Request) -> Decision:  # noqa: ARG002 - as above
        """Decide after the delay."""
        await asyncio.sleep(self._delay)
        return self.decide(event)


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m dialout", address: str | None = None) -> int:
    """Run the agent until SIGTERM or Ctrl-C, and return 0. ``address`` is the default of ``--connect``.

    Raises SystemExit with status 2 for unusable options, after a message on standard error.
    """
    parser = _parser(prog, address)
    options = parser.parse_args(arguments)
    most = options.max_concurrent
    agent = (
        ThoughtfulAgent(options.block_uri, options.delay, max_concurrent_requests=most)
        if options.delay
        else DemoAgent(options.block_uri, max_concurrent_requests=most)
    )
    try:
        manager = AgentConnectionManager(
            options.connect,
            options.id,
            agent,
            target_connections=options.connections,
            auth_token=_token(options.auth_token_file),
            metadata=agent_metadata(__version__, "demo"),
            dialect=Dialect(options.dialect),
        )
    except (DialoutError, OSError, ValueError) as error:
        parser.error(_in_a_line(error))
    begin = time.monotonic()
    screen = _Screen(manager)
    with screen.logging(), contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(manager, screen))
    with contextlib.suppress(OSError):  # The reader may be gone.
        print(summary(manager, time.monotonic() - begin), flush=True)
    return 0


def summary(manager: AgentConnectionManager, seconds: float) -> str:
    """The work of an agent, in one line."""
    counters = manager.agent.counters
    return (
        f"{manager.agent_id}: {counters.requests} requests in {seconds:.1f} s: {counters.allowed} allowed, "
        f"{counters.blocked} blocked, {counters.errored} failed, {counters.cancelled} cancelled; "
        f"{len(manager.states)} connections, {manager.reconnects} lost"
    )


async def _run(manager: AgentConnectionManager, screen: "_Screen") -> None:
    drawing = asyncio.ensure_future(screen.keep_drawing())
    try:
        await manager.run()
    finally:
        drawing.cancel()


# --- the screen --------------------------------------------------------------------------------------


class _Screen(logging.Handler):
    """Log lines on standard error, and below them a status line if that is a terminal."""

    def __init__(self, manager: AgentConnectionManager) -> None:
        super().__init__()
        self._manager = manager
        self._is_terminal = sys.stderr.isatty()
        self._seen = (0, time.monotonic())
        self._rate = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        clear = "\r\x1b[K" if self._is_terminal else ""
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        self._write(f"{clear}{time.strftime('%H:%M:%SZ', time.gmtime())} {level}{record.getMessage()}\n")

    @contextlib.contextmanager
    def logging(self) -> Iterator[None]:
        """Handle the library's log records from INFO up."""
        logger = logging.getLogger("dialout.agent")
        logger.setLevel(logging.INFO)
        logger.addHandler(self)
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(self)
            logger.propagate = True
            if self._is_terminal:
                self._write("\r\x1b[K")

    async def keep_drawing(self) -> None:
        """Draw the status line every ``_REFRESH`` seconds."""
        while self._is_terminal:
            self._measure()
            self._write(f"\r\x1b[K{self.status()}")
            await asyncio.sleep(_REFRESH)

    def status(self) -> str:
        """The status line."""
        counters, states = self._manager.agent.counters, self._manager.states
        return (
            f"{self._manager.connected}/{len(states)} connected, {counters.requests} requests ({self._rate:.0f}/s), "
            f"{counters.blocked} blocked, {counters.active} in flight"
        )

    def _measure(self) -> None:
        requests, now = self._manager.agent.counters.requests, time.monotonic()
        before, then = self._seen
        self._seen = requests, now
        self._rate = (requests - before) / max(now - then, 0.001)

    def _write(self, text: str) -> None:
        # The reader may be gone. The agent goes on.
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
            sys.stderr.flush()


# --- options -----------------------------------------------------------------------------------------


class _Help(argparse.RawDescriptionHelpFormatter):
    """A help text that begins like those of the other shardgate commands."""

    def add_usage(self, usage: str | None, actions: Any, groups: Any, prefix: str | None = None) -> None:
        super().add_usage(usage, actions, groups, prefix or "Usage: ")


def _parser(prog: str, address: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="An agent to try a proxy with: it dials out, registers, blocks what it is told to block,\n"
        "and allows the rest, until SIGTERM or Ctrl-C.",
        epilog="There is no option for a token itself: everybody on the host can read the arguments\n"
        "of a process.\n\n"
        f"Examples:\n  {prog} --connect 127.0.0.1:9090 --id waf-1 --connections 2\n"
        f"  {prog} --connect 127.0.0.1:9090 --block-uri '/admin*' --delay 20ms",
        allow_abbrev=False,
        formatter_class=_Help,
    )
    add = parser.add_argument
    where = "where the proxy listens: a socket's path, or HOST:PORT"
    add(
        "--connect", metavar="ADDRESS", required=address is None, default=address,
        help=where if address is None else f"{where} [default: {address}]".replace("%", "%%"),
    )  # fmt: skip
    add("--id", metavar="ID", type=_agent_id, default="demo-agent", help="the agent's id [default: demo-agent]")
    add("--connections", metavar="N", type=_positive, default=4, help="connections to keep [default: 4]")
    add(
        "--block-uri", metavar="PATTERN", action="append", default=[],
        help="block such URIs, as '/admin*'; may be repeated",
    )  # fmt: skip
    add("--delay", metavar="TIME", type=_duration, default=0.0, help="think so long about each request: 20ms, 1s")
    add(
        "--max-concurrent", metavar="N", type=_positive, default=100,
        help="requests to think about at once on each connection [default: 100]",
    )  # fmt: skip
    add("--auth-token-file", metavar="FILE", type=Path, help="file that holds the agent's token")
    add(
        "--dialect", choices=[dialect.value for dialect in Dialect], default=Dialect.SDK.value,
        help="what to speak [default: sdk]",
    )  # fmt: skip
    add("--version", action="version", version=f"dialout {__version__}")
    return parser


def _agent_id(text: str) -> str:
    if not is_agent_id(text):
        raise argparse.ArgumentTypeError(f"{text!r} is none: an agent id is 1 to 128 of A-Z a-z 0-9 . _ : @ -")
    return text


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= 10_000):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 10000")
    return int(text)


def _duration(text: str) -> float:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 20ms or 1s")
    return float(found[1]) / (1000 if found[2] == "ms" else 1)


def _token(path: Path | None) -> str | None:
    """The token in a file, without surrounding white space."""
    if path is None:
        return None
    with path.open("rb") as file:
        token = file.read(_MOST_TOKEN).decode().strip()
    if not token:
        raise ValueError(f"{path} holds no token")
    return token


def _in_a_line(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "the token file is not UTF-8"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    return str(error)
