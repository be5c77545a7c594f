"""``shardgate token``: make a token, or find the lines for one that exists. Tokens are never options."""

import re
import sys

import click

from supervisor.cli.errors import CommandError, ExitCode
from supervisor.cli.options import json_option
from supervisor.cli.output import print_json
from supervisor.config.patterns import pattern_problem
from supervisor.config.tokens import hash_token, new_token

_LONGEST_TOKEN = 65_536
"""No registration may be longer by default, so no token is."""


def _checked_patterns(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if (problem := pattern_problem(value)) is not None:
            raise click.BadParameter(f"{value!r}: {problem}")
    return values


_pattern_option = click.option(
    "--pattern",
    "patterns",
    multiple=True,
    default=("*",),
    show_default=True,
    callback=_checked_patterns,
    metavar="PATTERN",
    help="Agents that the token is good for, as waf-*; may be repeated.",
)


@click.group("token", invoke_without_command=True, short_help="Make a token for agents.")
@click.pass_context
def command(context: click.Context) -> None:
    """Make a token for agents (new, the default), or the lines for one that exists (hash)."""
    if context.invoked_subcommand is None:
        context.invoke(new)


@command.command("new")
@_pattern_option
@json_option
def new(patterns: tuple[str, ...], as_json: bool) -> None:
    """Make a token and print it, once, with the lines that make shardgate accept it."""
    token = new_token()
    if as_json:
        print_json({"token": token} | _lines(token, patterns))
        return
    click.echo(f"token, for the agent; it is shown only now:\n  {token}")
    _print_lines(token, patterns)


@command.command("hash", context_settings={"ignore_unknown_options": True})
@_pattern_option
@json_option
@click.argument("extra", nargs=-1, type=click.UNPROCESSED, metavar=" ")
def hash_command(patterns: tuple[str, ...], as_json: bool, extra: tuple[str, ...]) -> None:
    """Read a token from standard input and print the lines that make shardgate accept it."""
    if extra:
        # click's own message would repeat it.
        raise click.UsageError(
            "A token does not belong on the command line, where others can see it, nor do further options;"
            " give it on standard input, and take another if it was a real one."
        )
    token = _read_token()
    if as_json:
        print_json(_lines(token, patterns))
    else:
        _print_lines(token, patterns)


def _read_token() -> str:
    if sys.stdin.isatty():
        return str(click.prompt("Token", hide_input=True, err=True))
    data = sys.stdin.buffer.read(_LONGEST_TOKEN + 1)
    if len(data) > _LONGEST_TOKEN:
        raise CommandError(ExitCode.FAILED, f"more than {_LONGEST_TOKEN:,} bytes on standard input are no token")
    try:
        token = re.sub(r"\r?\n\Z", "", data.decode())
    except UnicodeDecodeError:
        raise CommandError(ExitCode.FAILED, "what came on standard input is not UTF-8") from None
    if not token:
        raise CommandError(ExitCode.FAILED, "no token on standard input, and an empty one counts as missing")
    if "\n" in token:
        raise CommandError(ExitCode.FAILED, "more than one line on standard input; give one token alone")
    return token


def _lines(token: str, patterns: tuple[str, ...]) -> dict[str, str]:
    digest = hash_token(token).hex()
    quoted = " ".join(f'"{pattern}"' for pattern in patterns)
    return {
        "kdl": f'token {quoted} sha256="{digest}"',
        "token_file": f"{','.join(patterns)} sha256:{digest}",
    }


def _print_lines(token: str, patterns: tuple[str, ...]) -> None:
    lines = _lines(token, patterns)
    click.echo(f"for the configuration, in reverse-listener > auth:\n  {lines['kdl']}")
    click.echo(f"or for a token file:\n  {lines['token_file']}")
