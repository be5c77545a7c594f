"""``shardgate man``: writes manual pages from the texts of ``--help``.

This generator is our own: the pages are short, and click-man would need setuptools. It writes few macros of man(7):
.TH, .SH, .TP, .PP, .B, .BR, and .nf and .fi.
"""

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from ipc.version import __version__
from supervisor.cli.errors import CommandError, ExitCode
from supervisor.cli.options import examples
from supervisor.words import count


@click.command(
    "man",
    short_help="Write the manual pages.",
    epilog=examples("shardgate man ~/.local/share/man/man1", "man -l ~/.local/share/man/man1/shardgate-why.1"),
)
@click.argument("directory", metavar="DIRECTORY")
@click.pass_context
def command(context: click.Context, /, directory: str) -> None:
    """Write the manual pages, one for each command, into DIRECTORY. It is created if it does not exist."""
    root = context.find_root()
    try:
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        written = 0
        for names, found in commands(root.command, root, ("shardgate",)):
            (folder / f"{'-'.join(names)}.1").write_text(page(names, found))
            written += 1
    except OSError as error:
        raise CommandError(ExitCode.FAILED, f"{directory}: {error.strerror}") from None
    click.echo(f"{count('page', written)} in {directory}")


def commands(
    found: click.Command, context: click.Context, names: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Context]]:
    """Yield a command and all commands below it, each with its names and a context for it."""
    inner = context if len(names) == 1 else click.Context(found, context, names[-1])
    yield names, inner
    if isinstance(found, click.Group):
        for name in found.list_commands(inner):
            child = found.get_command(inner, name)
            if child is not None and not child.hidden:
                yield from commands(child, inner, (*names, name))


def page(names: tuple[str, ...], context: click.Context) -> str:
    """Return the page of one command."""
    found = context.command
    title = "-".join(names)
    lines = [f'.TH {_text(title.upper())} 1 "" "shardgate {__version__}" "shardgate"']
    lines += [".SH NAME", f"{_text(title)} \\- {_text(found.get_short_help_str(200).rstrip('.'))}"]
    lines += [".SH SYNOPSIS", f".B {_text(' '.join(names))}", _text(" ".join(found.collect_usage_pieces(context)))]
    lines += [".SH DESCRIPTION", *_paragraphs(found.help or "")]
    lines += _options(found, context)
    if isinstance(found, click.Group):
        lines.append(".SH COMMANDS")
        for name in found.list_commands(context):
            child = found.get_command(context, name)
            if child is not None and not child.hidden:
                lines += [".TP", f".B {_text(name)}", _text(child.get_short_help_str(200))]
    if found.epilog:
        heading, _, rest = found.epilog.partition("Examples:\n")
        lines += [".SH EXAMPLES", *_paragraphs(f"\b\n{rest}")] if rest else [".SH NOTES", *_paragraphs(heading)]
    if len(names) > 1:
        lines += [".SH SEE ALSO", f".BR {_text('-'.join(names[:-1]))} (1)"]
    return "\n".join(lines) + "\n"


def _options(found: click.Command, context: click.Context) -> Iterator[str]:
    records = [parameter.get_help_record(context) for parameter in found.get_params(context)]
    # Arguments have no help text. The description covers them.
    told = [record for record in records if record is not None and record[1]]
    if told:
        yield ".SH OPTIONS"
    for name, text in told:
        yield from (".TP", f".B {_text(name)}", _text(text))


def _paragraphs(text: str) -> Iterator[str]:
    """Convert click's paragraphs to roff. A backspace as the first line keeps the lines of a paragraph unfilled."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        lines = paragraph.splitlines()
        if lines and lines[0].strip() == "\b":
            yield from (".PP", ".nf", *map(_text, lines[1:]), ".fi")
        else:
            yield from (".PP", _text(" ".join(line.strip() for line in lines)))


def _text(text: str) -> str:
    """Escape text for roff, so that no part of it is a request, an escape or a hyphen."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return f"\\&{escaped}" if escaped.startswith((".", "\\(aq")) else escaped
