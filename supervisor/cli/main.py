"""The command tree. Turns errors that reach the top into messages and exit codes."""

import contextlib
import difflib
import errno
import importlib
import os
import sys
from pathlib import Path

import click

from ipc.version import __version__
from supervisor.cli.errors import CommandError, ExitCode

_COMMANDS = {
    "run": ("run", "Accept agents and start the shards."),
    "check": ("check", "Check a configuration file."),
    "config": ("config", "Show the configuration."),
    "token": ("tokens", "Make tokens for agents, and keep a file of them."),
    "doctor": ("doctor", "Look for what is wrong with this host."),
    "status": ("status", "Show the supervisor and its shards."),
    "top": ("top", "Watch the shards, and the busiest agents."),
    "agents": ("agents", "List the agents."),
    "connections": ("connections", "List the agents' connections."),
    "why": ("why", "Explain what became of an agent."),
    "events": ("events", "Show what happened to agents and shards."),
    "send": ("send", "Show an agent a request and print its decision."),
    "agent": ("agent", "Be an agent, to try things out."),
    "drain": ("operating", "Move a shard's connections to the others."),
    "restart": ("operating", "Replace shards' processes, without a reconnect."),
    "scale": ("operating", "Change the number of shards."),
    "rebalance": ("operating", "Spread the connections over the shards."),
    "kick": ("kick", "Close an agent's connections."),
    "log-level": ("log_level", "Change what is logged from now on."),
    "reload": ("reload", "Read the configuration again."),
    "stop": ("stop", "Stop the supervisor and its shards."),
    "completion": ("completion", "Print the script that completes commands in a shell."),
    "man": ("man", "Write the manual pages."),
}
"""Commands in the order of the help, each with its module and its line of the help.

The lines are here so that ``shardgate --help`` imports no command. With the imports it took longer than most commands.
"""

_SECTIONS = {"run": "Run it", "status": "See what it does", "drain": "Change it while it runs", "completion": "Use it"}
"""Headings of the help, by the command that each stands in front of."""

_CANNOT_WRITE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})

_INTERRUPTED = 130
"""Exit code of a shell for a program that Ctrl-C ended: 128 and SIGINT."""


class _LazyGroup(click.Group):
    """A group that imports a command when it is named. Each command costs its own imports only."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"supervisor.cli.{_COMMANDS[cmd_name][0]}")
        command = getattr(module, cmd_name, None) or module.command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or propose the closest name. click itself knows the imported commands only."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            meant = difflib.get_close_matches(args[0], _COMMANDS, 1)
            if not meant:
                raise
            raise click.UsageError(f"{error.message} Did you mean '{meant[0]}'?", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """List the commands under their headings."""
        sections: dict[str, list[tuple[str, str]]] = {}
        heading = ""
        for name, (_, text) in _COMMANDS.items():
            heading = _SECTIONS.get(name, heading)
            sections.setdefault(heading, []).append((name, text))
        for heading, rows in sections.items():
            with formatter.section(heading):
                formatter.write_dl(rows)


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
First steps:
  shardgate run --shards 2      listens on a Unix socket, with safe defaults
  shardgate status              in another terminal: what runs, and how
  shardgate why waf-1           what became of an agent, and what to do next

Every command explains itself with --help, and in its manual page, which 'shardgate man' writes. Commands find a running
shardgate by its runtime directory; --runtime-dir or $SHARDGATE_RUNTIME_DIR names another one than the default. With
--json they print what programs can read; the object of 'status' has a number "schema" for all of it, which is raised
when a field changes its meaning. Fields are only ever added under a number. Colours go to terminals only, and nowhere
with $NO_COLOR.

\b
Exit codes:
  0   ok
  1   failed
  2   wrong usage
  3   not all healthy (status)
  4   nothing runs, or it cannot be reached
  5   refused
  6   timed out, or incomplete
  78  bad configuration

SHARDGATE_DEBUG=1 shows where an unexpected error came from.""",
)
@click.version_option(__version__, prog_name="shardgate", message="%(prog)s %(version)s")
def shardgate() -> None:
    """Accept reverse connections of agents and spread them over shards.

    Agents dial out to this host, over a Unix socket or TCP, register once, and serve a proxy's requests over that same
    connection. One supervisor accepts and checks them; each of N shards, processes of their own, serves its part.
    """


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code. No exception leaves it."""
    _prepare_streams()
    try:
        return _run(arguments)
    except Exception as error:  # noqa: BLE001 - the last resort: an operator gets a line, never a traceback
        return _failed_unexpectedly(error)


def _prepare_streams() -> None:
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # The stream was closed at the start. The next opened file would get its number.
            setattr(sys, name, Path(os.devnull).open("r" if name == "stdin" else "w"))  # noqa: SIM115 - for good
        elif name != "stdin" and hasattr(stream, "reconfigure"):
            # An answer may hold characters outside the terminal's encoding.
            stream.reconfigure(errors="backslashreplace")


def _run(arguments: list[str] | None) -> int:
    try:
        result = shardgate.main(arguments, prog_name="shardgate", standalone_mode=False)
    except CommandError as error:
        click.echo(f"shardgate: {error}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return _INTERRUPTED
    except SystemExit as end:
        # click ends the process itself, without a message, when the reader of its output goes away (EPIPE).
        return end.code if isinstance(end.code, int) else ExitCode.FAILED
    return result if isinstance(result, int) else ExitCode.OK


def _failed_unexpectedly(error: Exception) -> int:
    with contextlib.suppress(OSError):
        if os.environ.get("SHARDGATE_DEBUG") == "1":
            import traceback

            traceback.print_exception(error)
        elif isinstance(error, OSError) and error.errno in _CANNOT_WRITE and error.filename is None:
            click.echo(f"shardgate: the output cannot be written: {error.strerror}", err=True)
        else:
            text = " ".join(str(error).split())
            click.echo(f"shardgate: unexpected {type(error).__name__}: {text}; SHARDGATE_DEBUG=1 shows where", err=True)
    return ExitCode.FAILED
