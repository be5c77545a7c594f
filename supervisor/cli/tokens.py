"""``shardgate token``: makes tokens and edits token files. A token is never an option of a command."""

import contextlib
import re
import sys
from collections.abc import Iterator

import click

from ipc.schema import SCHEMA
from supervisor.cli.errors import CommandError, ExitCode
from supervisor.cli.options import examples, json_option
from supervisor.cli.output import Cell, Column, note, print_json, table
from supervisor.config.errors import ConfigError, Problem
from supervisor.config.model import Token
from supervisor.config.patterns import pattern_problem
from supervisor.config.show import DIGEST_SHOWN
from supervisor.config.token_file import edit_token_file, token_in, tokens_with_lines
from supervisor.config.tokens import hash_token, new_token
from supervisor.words import safe

_LONGEST_TOKEN = 65_536
"""Most bytes of a token. A registration, which carries the token, has at most 16,384 bytes by default."""


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


_add_option = click.option(
    "--add", "file", metavar="FILE", help="Add its line to this token file; it is made, mode 0600, if it is not there."
)


@click.group(
    "token",
    invoke_without_command=True,
    short_help="Make tokens for agents, and keep a file of them.",
    epilog=examples(
        "shardgate token new --pattern 'waf-*' --add /etc/shardgate/tokens",
        "shardgate token list /etc/shardgate/tokens",
        "shardgate token revoke /etc/shardgate/tokens 8d969eef6eca",
    ),
)
@click.pass_context
def command(context: click.Context) -> None:
    """Make a token for agents (new, the default), or the lines for a token that exists (hash); list and revoke tokens.

    Several commands may edit a token file at the same time, while others read it. Nothing is in effect before
    'shardgate reload'.
    """
    if context.invoked_subcommand is None:
        context.invoke(new)


@command.command(
    "new",
    short_help="Make a token.",
    epilog=examples("shardgate token new --pattern 'waf-*' --add /etc/shardgate/tokens"),
)
@_pattern_option
@_add_option
@json_option
def new(patterns: tuple[str, ...], file: str | None, as_json: bool) -> None:
    """Make a token and print it, once, with the lines that make shardgate accept it."""
    token = new_token()
    if file is not None:
        _add(file, _lines(token, patterns)["token_file"])
    if as_json:
        print_json({"schema": SCHEMA, "token": token} | _lines(token, patterns))
        return
    click.echo(f"token, for the agent; it is shown only now:\n  {token}")
    if file is None:
        _print_lines(token, patterns)


@command.command(
    "hash",
    short_help="Print the lines for a token that exists.",
    context_settings={"ignore_unknown_options": True},
    epilog=examples("shardgate token hash --pattern waf-1 < token.txt"),
)
@_pattern_option
@_add_option
@json_option
@click.argument("extra", nargs=-1, type=click.UNPROCESSED, metavar=" ")
def hash_command(patterns: tuple[str, ...], file: str | None, as_json: bool, extra: tuple[str, ...]) -> None:
    """Read a token from standard input and print the lines that make shardgate accept it."""
    if extra:
        # click's own message would repeat it.
        raise click.UsageError(
            "A token does not belong on the command line, where others can see it, nor do further options;"
            " give it on standard input, and take another if it was a real one."
        )
    token = _read_token()
    if file is not None:
        _add(file, _lines(token, patterns)["token_file"])
    if as_json:
        print_json({"schema": SCHEMA} | _lines(token, patterns))
    elif file is None:
        _print_lines(token, patterns)


@command.command(
    "list", short_help="List the tokens of a file.", epilog=examples("shardgate token list /etc/shardgate/tokens")
)
@click.argument("file", metavar="FILE")
@json_option
def list_command(file: str, as_json: bool) -> None:
    """List the tokens of a token file: their line, the beginning of their digest, and the agents they are good for."""
    with _usable_file():
        rows = tokens_with_lines(file)
    if as_json:
        print_json([{"line": line} | _shown(token) for line, token in rows])
    elif rows:
        columns = (Column("LINE", numeric=True), Column("DIGEST"), Column("AGENTS"))
        cells = [
            [Cell(str(line)), Cell(token.digest.hex()[:DIGEST_SHOWN]), Cell(_agents(token))] for line, token in rows
        ]
        click.echo(table(columns, cells, None, colour=False))
    else:
        note(f"no token in {safe(file, 4096)}")


@command.command(
    "revoke",
    short_help="Remove a token from a file.",
    epilog=examples(
        "shardgate token revoke /etc/shardgate/tokens 8d969eef6eca",
        "shardgate token revoke /etc/shardgate/tokens < leaked-token.txt",
    ),
)
@click.argument("file", metavar="FILE")
@click.argument("digest", required=False, metavar="[DIGEST]")
@click.option("--force", is_flag=True, help="Revoke the last token, too.")
@json_option
def revoke(file: str, digest: str | None, force: bool, as_json: bool) -> None:
    """Remove a token from a token file, by the beginning of its digest, as 'list' shows it.

    Without DIGEST the token itself is read from standard input. 'shardgate reload' puts it into effect; connections
    that were accepted with it stay, until 'shardgate kick' closes them.
    """
    wanted = hash_token(_read_token()).hex() if digest is None else _checked_digest(digest)
    revoked: list[Token] = []

    def without(lines: list[str]) -> list[str]:
        tokens = [token_in(line) for line in lines]
        found = {token.digest for token in tokens if token is not None and token.digest.hex().startswith(wanted)}
        if not found:
            raise CommandError(
                ExitCode.FAILED, f"no such token in {safe(file, 4096)}; 'shardgate token list' shows them"
            )
        if len(found) > 1:
            raise CommandError(ExitCode.REFUSED, f"{len(found)} tokens begin like this; give more of the digest")
        revoked.extend(token for token in tokens if token is not None and token.digest in found)
        if not force and all(token is None or token.digest in found for token in tokens):
            raise CommandError(
                ExitCode.REFUSED,
                "it is the last token of this file; where tokens are required, a reload without any is refused and the"
                " old ones stay good. Add another one first, or use --force",
            )
        return [line for line, token in zip(lines, tokens, strict=True) if token is None or token.digest not in found]

    with _usable_file():
        _say_left(edit_token_file(file, without))
    patterns = [pattern for token in revoked for pattern in token.patterns]
    if as_json:
        print_json({"schema": SCHEMA, "digest": revoked[0].digest.hex()[:DIGEST_SHOWN], "patterns": patterns})
    else:
        click.echo(f"revoked, was good for {', '.join(patterns)}; 'shardgate reload' puts it into effect")


def _shown(token: Token) -> dict[str, object]:
    found: dict[str, object] = {"digest": token.digest.hex()[:DIGEST_SHOWN], "patterns": token.patterns}
    return found if token.max_connections is None else found | {"max_connections": token.max_connections}


def _agents(token: Token) -> str:
    most = "" if token.max_connections is None else f" (at most {token.max_connections:,} connections)"
    return ",".join(token.patterns) + most


def _checked_digest(text: str) -> str:
    lowered = text.lower().rstrip(".")
    if not re.fullmatch(r"[0-9a-f]{8,64}", lowered):
        # The text may be the token itself, given by mistake, so it is not repeated.
        raise click.UsageError("DIGEST is at least 8 hex digits, as 'shardgate token list' shows them")
    return lowered


def _add(file: str, line: str) -> None:
    with _usable_file():
        left = edit_token_file(file, lambda lines: [*lines, line], create=True)
    _say_left(left)
    note(f"added to {safe(file, 4096)}; 'shardgate reload' puts it into effect")


def _say_left(problems: list[Problem]) -> None:
    for problem in problems:
        note(f"{problem}; until then no start and no reload takes this file")


@contextlib.contextmanager
def _usable_file() -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise CommandError(ExitCode.FAILED, str(error)) from None


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
