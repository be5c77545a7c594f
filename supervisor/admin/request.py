"""Converts a parsed request of h11 to a `Request`. Only this module interprets input of the admin endpoint. Pure."""

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl

import h11

_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
"""Scheme and authority of an absolute-form target (RFC 9112, 3.2.2)."""

MAX_PARAMETERS = 10


class Request(NamedTuple):
    """A request without a body. HEAD is like GET. Names in *headers* are lower case; the last of equal ones is kept."""

    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]


def plain(request: h11.Request) -> Request | None:
    """The request in plain values. None when the form of its target is not allowed for GET (RFC 9112, 3.2)."""
    # urlsplit would be wrong: it parses "//" at the beginning of a path as an authority, and raises for "//[/".
    target = request.target.decode("latin-1")
    found = _ABSOLUTE.match(target)
    if found is not None:
        target = target[found.end() :]
        if not target.startswith("/"):
            target = f"/{target}"
    if not target.startswith("/"):
        return None
    path, _, text = target.partition("?")
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers}
    return Request(path, _parameters(text), headers)


def _parameters(text: str) -> Mapping[str, str]:
    """The parameters of a query, without malformed ones. Empty for more than `MAX_PARAMETERS`."""
    try:
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_PARAMETERS))
    except ValueError:
        return {}
