"""Checks paths of a configuration. The kernel gets them unchanged, so texts that only look like paths are refused.

No shell and no service manager expands the paths. ``~``, ``$NAME`` and ``%t`` would become folders of these names. A
path with such a beginning can be written with ``./`` in front.
"""

import os
import re

from supervisor.config.errors import quoted

Objection = tuple[str, str | None]
"""The mistake, and a hint or None."""

VARIABLE = re.compile(r"\$(?:[A-Za-z_]\w*|\{[^}]*\})", re.ASCII)
_SPECIFIER = re.compile(r"%[A-Za-z](?=/|$)")
"""A specifier of systemd.unit(5), at the beginning of a path."""
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.ASCII | re.IGNORECASE)
_FILE_URL = re.compile(r"(?:(?:unix|uds|file|ipc)(?::(?://)?)|(?:unix-\w+:))(.*)", re.ASCII | re.IGNORECASE)
_QUOTES = "'\"`\u2018\u2019\u201c\u201d\u00ab\u00bb"


def path_objection(found: str) -> Objection | None:
    """Say why a text is not the path of a file or a folder; None when it is one."""
    if found[:1] in (" ", *_QUOTES):
        bare = found.strip(" ").strip(_QUOTES)
        hint = _meant(bare) if bare[:1] not in ("", " ") and path_objection(bare) is None else None
        return f"blanks and quotes around a path would be part of it, got {quoted(found)}", hint
    for look in (_home, _variables, _url, _abstract):
        objection = look(found)
        if objection is not None:
            return objection
    return None


def socket_objection(found: str) -> Objection | None:
    """Say why a path cannot be that of a Unix socket: its last part must be a name. None when it can."""
    if found.endswith("/") or found.rpartition("/")[2] in (".", ".."):
        below = os.path.join(found, "agents.sock")  # noqa: PTH118 - the spelling stays
        return f"{quoted(found)} is a folder, expected the path of a socket", _meant(below)
    return None


def _meant(path: str) -> str:
    return f"did you mean {quoted(path, 4096)}?"


def _home(found: str) -> Objection | None:
    if not found.startswith("~"):
        return None
    whole = os.path.expanduser(found)  # noqa: PTH111 - a Path would change the spelling
    hint = "write the whole path" if whole == found else _meant(whole)
    return f'"~" stands for a home only in a shell, got {quoted(found)}', hint


def _variables(found: str) -> Objection | None:
    if VARIABLE.search(found):
        whole = os.path.expandvars(found)
        known = whole.startswith("/") and not VARIABLE.search(whole) and path_objection(whole) is None
        hint = _meant(whole) if known else "write the value itself, or leave it to an option of run"
        return f"variables are not replaced by their values here, got {quoted(found)}", hint
    specifier = _SPECIFIER.match(found)
    if specifier is not None:
        hint = "write the whole path"
        return f"{specifier[0]} is replaced in units of systemd only, got {quoted(found)}", hint
    return None


def _url(found: str) -> Objection | None:
    file = _FILE_URL.fullmatch(found)
    if file is None and not _URL.fullmatch(found):
        return None
    path = "" if file is None else file[1]
    hint = _meant(path) if path and path_objection(path) is None else None
    return f"expected a path, got the URL {quoted(found)}", hint


def _abstract(found: str) -> Objection | None:
    if not found.startswith("@"):
        return None
    hint = 'write the path of a file, such as "/run/shardgate/agents.sock"'
    return f"no mode says who may connect to an abstract socket, got {quoted(found)}", hint
