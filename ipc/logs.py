"""Log lines of all our processes, in one form.

To a terminal as text, otherwise as one JSON object a line, on standard error. Text that came from an agent goes through
`printable` first: it may hold escape sequences.
"""

import asyncio
import json
import sys
from typing import Any

import msgspec
import structlog

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}

LEVEL_NAMES = tuple(_LEVELS)


def configure(process: str, level: str = "info", form: str = "auto") -> None:
    """Set up logging for this process; *form* is ``auto``, ``text`` or ``json``."""
    as_text = form == "text" or (form == "auto" and sys.stderr.isatty())
    ending: list[Any]
    if as_text:
        # The first parameter is the padding of the event; it has another name in structlog 26.
        ending = [structlog.dev.ConsoleRenderer(0, colors=sys.stderr.isatty())]
    else:
        ending = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_to_json),
        ]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _name_process(process),
            *ending,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def get_logger() -> Any:
    """The logger; structlog gives it its methods at run time, hence the type."""
    return structlog.get_logger()


def log_loop_errors(loop: asyncio.AbstractEventLoop) -> None:
    """Have exceptions that reach the event loop logged like everything else."""

    def handle(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        get_logger().error(context["message"], exc_info=context.get("exception"))

    loop.set_exception_handler(handle)


def printable(text: str, limit: int = 128) -> str:
    """*text* with everything but printable ASCII escaped, at most *limit* characters of it."""
    shortened = text[:limit]
    escaped = shortened.encode("ascii", "backslashreplace").decode("ascii")
    clean = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in escaped)
    return clean if len(text) <= limit else f"{clean}…"


def _to_json(event: dict[str, Any], **_: Any) -> str:
    try:
        return msgspec.json.encode(event, enc_hook=str).decode()
    except UnicodeEncodeError:
        # The name of a file that is not UTF-8 holds surrogates (PEP 383), which json escapes.
        return json.dumps(event, default=str)


def _name_process(process: str) -> Any:
    def add(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
        event["process"] = process
        return event

    return add
