"""Options that several commands share, and the type of a time on the command line."""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Duration(click.ParamType[float]):
    """A time such as ``500ms``, ``30s``, ``2m`` or ``1h``; a bare number means seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds. Zero is refused: no process can answer in that time."""
        if isinstance(value, float):
            return value
        found = _DURATION.fullmatch(str(value))
        if found is None or not (seconds := float(found[1]) * _UNITS[found[2] or "s"]):
            self.fail(f"{value!r} is not a time; write 500ms, 30s, 2m or 1h.", param, ctx)
        return seconds


def examples(*lines: str) -> str:
    """Return the end of a command's help: examples, one command a line."""
    # \b keeps click from filling the paragraph.
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def runtime_dir_option(command: _Command) -> _Command:
    """Add ``--runtime-dir``; the function gets a `RuntimeDir` as *rundir*."""
    return click.option(
        "--runtime-dir",
        "rundir",
        envvar="SHARDGATE_RUNTIME_DIR",
        show_envvar=True,
        metavar="DIR",
        callback=_open_runtime_dir,
        help="Where the running shardgate has its sockets [default: /run/shardgate for root,"
        " $XDG_RUNTIME_DIR/shardgate for others].",
    )(command)


def json_option(command: _Command) -> _Command:
    """Add ``--json``; the function gets it as *as_json*."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


def complete_agents(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the ids of connected agents that begin with *incomplete*, for a shell.

    The list is empty when the supervisor does not answer within 0.5 s.
    """
    from ipc import query
    from ipc.rundir import RuntimeDir, default_runtime_dir

    given = context.params.get("rundir")
    rundir = given if isinstance(given, RuntimeDir) else RuntimeDir(default_runtime_dir())
    try:
        answers = query.ask_many([rundir.supervisor_query], "agent_ids", {"beginning": incomplete}, timeout=0.5)
    except (query.QueryError, OSError):
        return []
    return [str(agent_id) for found in answers.values() for agent_id in found]


def shard_option(what: str) -> Callable[[_Command], _Command]:
    """Add ``--shard``."""
    return click.option("--shard", type=click.IntRange(0), metavar="N", help=what)


def timeout_option(default: str, what: str) -> Callable[[_Command], _Command]:
    """Add ``--timeout``. The function gets seconds."""
    return click.option(
        "--timeout", type=Duration(), default=default, show_default=True, metavar="TIME", help=f"How long {what}."
    )


def _open_runtime_dir(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
    from ipc.rundir import RuntimeDir, default_runtime_dir

    return RuntimeDir(value or default_runtime_dir())
