"""Converts single values of a file or a command line into the types of the model.

Each function takes one value and returns it converted, or raises BadValue. The error names the expected form and, if it
can guess it, the intended value. No function knows the place of the value.
"""

import difflib
import ipaddress
import re
from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

from supervisor.config.errors import quoted
from supervisor.config.model import MAX_CONNECTIONS, Placement, TcpAddress
from supervisor.config.paths import VARIABLE, path_objection, socket_objection
from supervisor.config.patterns import pattern_problem

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(ms|s|m|h)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_TIME_WORDS = {
    word: size
    for size, words in (
        (1, "ms msec msecs millis millisecond milliseconds"),
        (1000, "s sec secs second seconds"),
        (60_000, "m min mins minute minutes"),
        (3_600_000, "h hr hrs hour hours"),
        (86_400_000, "d day days"),
    )
    for word in words.split()
}
"""Milliseconds of the words for units of time. A capital M means minutes: no time here is as long as a month."""
_OCTAL = re.compile(r"(?:0o)?([0-7]{1,5})")
_PORT = re.compile(r"[0-9]{1,5}")
_HOST_NAME = re.compile(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*\.?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}\$?")
# (uid_t)-1 means "leave it alone" to chown(2).
_MAX_ID = 2**32 - 2
_YES, _NO = ("true", "yes", "on", "1", "enabled"), ("false", "no", "off", "0", "disabled", "none")


Choice = TypeVar("Choice", bound=StrEnum)


class BadValue(Exception):
    """A value that cannot be used. `message` names the mistake, `hint` the correction."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        self.message = message
        self.hint = hint
        super().__init__(message)


def describe(value: object) -> str:
    """Name a value in a message: `the string "tru"`, `the number 5`, `true`."""
    if isinstance(value, str):
        return f"the string {quoted(value)}"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    # Python refuses to print an int of thousands of digits.
    return "a huge number" if isinstance(value, int) and abs(value) >= 10**18 else f"the number {value}"


def closest(word: str, known: "tuple[str, ...] | list[str]", cutoff: float = 0.6) -> str | None:
    """Return the known word closest to `word`, or None."""
    found = difflib.get_close_matches(word[:64].lower().replace("_", "-"), known, 1, cutoff)
    return found[0] if found else None


def boolean(value: object) -> bool:
    """Return True or False as it is. Strings are refused with a hint: in KDL 2, `tru` is a string."""
    if isinstance(value, bool):
        return value
    hint = None
    word = str(value) if isinstance(value, str | int) else ""
    found = closest(word, (*_YES, *_NO), 0.5)
    if found is not None:
        hint = "did you mean true?" if found in _YES else "did you mean false?"
    raise BadValue(f"expected true or false, got {describe(value)}", hint)


def integer(value: object) -> int:
    """Return a whole number as it is. `model.validate` checks the ranges."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        return value
    hint = None
    if isinstance(value, str) and re.fullmatch(r"[0-9_,]{1,12}", value) and value.strip("_,"):
        hint = f"did you mean {int(re.sub('[_,]', '', value))}?"
    elif isinstance(value, float) and value.is_integer() and abs(value) < 1e12:
        hint = f"did you mean {int(value)}?"
    raise BadValue(f"expected a whole number, got {describe(value)}", hint)


def most_connections(value: object) -> int:
    """Read the connection limit of a token. No message repeats the value: it stands beside a digest."""
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_CONNECTIONS:
        return value
    raise BadValue(f"max-connections: expected a whole number from 1 to {MAX_CONNECTIONS}")


def text(value: object) -> str:
    """Return a string that may be a path or a name: not empty, without NUL and without surrogates."""
    if not isinstance(value, str):
        raise BadValue(f"expected a string, got {describe(value)}")
    if not value:
        raise BadValue("expected a string, got an empty one")
    if "\0" in value:
        raise BadValue("a NUL character cannot be part of it")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadValue("it holds a character that is not allowed") from None
    return value


def path(value: object) -> str:
    """Return the path of a file or a folder, see `paths`. A relative path stays as it is."""
    found = text(value)
    objection = path_objection(found)
    if objection is not None:
        raise BadValue(*objection)
    return found


def socket_path(value: object) -> str:
    """Return the path of a Unix socket."""
    if isinstance(value, str) and (address := _address_in(value)) is not None:
        raise BadValue(f"expected a path, got the address {quoted(value)}", f'write tcp-address "{address}"')
    found = path(value)
    objection = socket_objection(found)
    if objection is not None:
        raise BadValue(*objection)
    return found


def duration(value: object) -> float:
    """Read a time with its unit, ms, s, m or h. Returns seconds."""
    if isinstance(value, str):
        found = _DURATION.fullmatch(value.strip())
        if found is not None:
            return float(found[1]) * _SECONDS[found[2]]
        number = value.strip()
    else:
        number = str(value) if describe(value).startswith("the number") else ""
    hint = 'write a number and ms, s, m or h, such as "10s"'
    meant = _duration_in(number) if isinstance(value, str) else None
    if meant is not None:
        hint = f'did you mean "{meant}"? {hint[0].upper()}{hint[1:]}'
    if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,3})?", number):
        hint = f'did you mean "{number}s"?'
    raise BadValue(f"expected a time with its unit, got {describe(value)}", hint)


def _duration_in(text: str) -> str | None:
    """Return a time in other spellings ("10 sec", "1m30s", "10S", "2 days") in ours; None when it is not a time."""
    parts = re.findall(r"([0-9]{1,6})\s*([a-z]+)[\s,]*", text.lower(), re.ASCII)
    if not parts or re.sub(r"([0-9]{1,6})\s*([a-z]+)[\s,]*", "", text.lower(), flags=re.ASCII):
        return None
    if any(word not in _TIME_WORDS for _, word in parts):
        return None
    total = sum(int(number) * _TIME_WORDS[word] for number, word in parts)
    unit = next(unit for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)) if total % size == 0)
    return f"{total // round(_SECONDS[unit] * 1000)}{unit}"


def octal_mode(value: object) -> int:
    """Read the permissions of a socket: octal digits in a string, as for chmod(1)."""
    if not isinstance(value, str):
        digits = str(value) if isinstance(value, int) and not isinstance(value, bool) else ""
        hint = f'write it as a string: "{digits:0>4}"' if re.fullmatch("[0-7]{3}", digits) else 'such as "0660"'
        raise BadValue(f"expected an octal mode in a string, got {describe(value)}", hint)
    found = _OCTAL.fullmatch(value)
    mode = int(found[1], 8) if found else -1
    if not 0 <= mode <= 0o777:
        raise BadValue(f"expected an octal mode from 0000 to 0777, got {describe(value)}", 'such as "0660"')
    return mode


def owner(value: object) -> int | str:
    """Read a user or a group: a number, or a name. The name is looked up only when it is used."""
    if isinstance(value, str) and _NAME.fullmatch(value):
        return value
    if isinstance(value, str) and re.fullmatch("[0-9]{1,10}", value):
        return unix_id(int(value))
    if isinstance(value, str):
        raise BadValue(f"expected a name or a number, got {describe(value)}")
    return unix_id(value)


def unix_id(value: object) -> int:
    """Check a numeric uid or gid."""
    number = integer(value)
    if not 0 <= number <= _MAX_ID:
        raise BadValue(f"expected a number from 0 to {_MAX_ID}, got {describe(value)}")
    return number


def one_of(kind: type[Choice]) -> Callable[[object], Choice]:
    """Return a reader that accepts one of the names in *kind*."""
    known = tuple(kind)

    def read(value: object) -> Choice:
        hint = None
        if isinstance(value, str):
            if value in known:
                return kind(value)
            found = closest(value, known)
            hint = f'did you mean "{found}"?' if found else None
        choice = " or ".join(f'"{name}"' for name in known)
        raise BadValue(f"expected {choice}, got {describe(value)}", hint)

    return read


placement = one_of(Placement)


def pattern(value: object) -> str:
    """Check a pattern of agent ids."""
    if not isinstance(value, str):
        raise BadValue(f"expected a pattern of agent ids in a string, got {describe(value)}")
    problem = pattern_problem(value)
    if problem is not None:
        hint = "give several patterns as separate strings" if "," in value or " " in value else None
        raise BadValue(f"{problem}, got {quoted(value)}", hint)
    return value


def tcp_address(value: object) -> TcpAddress:
    """Read `HOST:PORT`: a numeric IPv4 address, or a numeric IPv6 address in brackets.

    Names are refused, `localhost` too. The addresses of a name can change between a check and a start, and a name may
    have two addresses. With port 0 the kernel chooses the port. IPv6 zones (`%eth0`) are not supported.
    """
    if not isinstance(value, str):
        number = value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65_536 else 9090
        hint = f'such as "0.0.0.0:{number}" or "[::]:{number}"'
        raise BadValue(f"expected HOST:PORT in a string, got {describe(value)}", hint)
    if "/" in value or "$" in value or value.startswith(("~", "@")):
        raise BadValue(*_no_address(value))
    host, colon, port = value.rpartition(":")
    if not colon or not _is_port(port):
        problem = f"expected HOST:PORT with a port from 0 to 65535, got {quoted(value)}"
        raise BadValue(problem, _address_hint(value, value, "9090"))
    bare = host.removeprefix("[").removesuffix("]")
    try:
        address = ipaddress.ip_address(bare)
        bracketed = host == f"[{bare}]"
        if (
            bracketed == (address.version == 6)
            and not getattr(address, "scope_id", None)
            and host in (bare, f"[{bare}]")
        ):
            return TcpAddress(bare, int(port))
    except ValueError:
        pass
    problem = f"expected a numeric address in front of the port, got {quoted(value)}"
    raise BadValue(problem, _address_hint(value, host, port))


def admin_address(value: object) -> TcpAddress | str:
    """Read the address of the admin endpoint: `HOST:PORT` as in `tcp_address`, or a path, which has a slash."""
    if isinstance(value, str) and ("/" in value or value.startswith(("~", "@", "$"))):
        address = _address_in(value)
        if address is not None:
            raise BadValue(f"expected HOST:PORT, got {quoted(value)}", f'did you mean "{address}"?')
        found = path(value)
        if (objection := socket_objection(found)) is not None:
            raise BadValue(*objection)
        return found
    try:
        return tcp_address(value)
    except BadValue as error:
        port = str(value).rpartition(":")[2]
        right = port if _is_port(port) else "9180"
        hint = error.hint if (error.hint or "").startswith('did you mean "127.') or "[" in str(value) else None
        if isinstance(value, str) and value.endswith(".sock"):
            hint = f"did you mean {quoted('./' + value, 4096)}?"
        raise BadValue(
            error.message.replace("HOST:PORT", "HOST:PORT, or a path with a slash,"),
            hint or f'such as "127.0.0.1:{right}"',
        ) from None


def _address_in(value: str) -> str | None:
    """Find the `HOST:PORT` in a URL or a plain text; None when it has no address to listen on."""
    bare = re.sub(r"\A[a-z][a-z0-9+.-]*://", "", value.strip(), flags=re.IGNORECASE | re.ASCII).rstrip("/")
    host, _, port = bare.rpartition(":")
    if host.lower() == "localhost":
        bare = f"127.0.0.1:{port}"
    try:
        return str(tcp_address(bare))
    except BadValue:
        return None


def _no_address(value: str) -> tuple[str, str | None]:
    """Return the message and the hint for a text with characters that no address has."""
    expected = f"expected HOST:PORT, got {quoted(value)}"
    if VARIABLE.search(value):
        return f"{expected}: variables are not replaced by their values here", "write the address itself"
    if "://" in value or value.rstrip("/") != value:
        address = _address_in(value) if value.strip() not in ("/", "") else None
        return expected, f'did you mean "{address}"?' if address else None
    if "/" in value and path_objection(value) is None and socket_objection(value) is None:
        return f"{expected}, which is a path", f"write path {quoted(value, 4096)}"
    return expected, 'such as "0.0.0.0:9090" or "[::]:9090"'


def _address_hint(value: str, host: str, port: str) -> str | None:
    """Return a hint for a text that is not an address with a port."""
    if value.isascii() and value.isdecimal() and int(value[:6]) <= 65_535:
        return f'did you mean "0.0.0.0:{int(value)}"?'
    if "," in value:
        return "write each address as a string of its own, without commas"
    if value.strip() != value and (bare := _address_in(value)) is not None:
        return f'did you mean "{bare}"?'
    if host in ("", "*"):
        port = port if _is_port(port) else "9090"
        return f'for every address of this host write "0.0.0.0:{port}" or "[::]:{port}"'
    if value.lower().partition(":")[0] == "localhost":
        port = port if _is_port(port) and ":" in value else "9090"
        return f'did you mean "127.0.0.1:{port}" or "[::1]:{port}"?'
    # Unbracketed IPv6, with or without a port at its end.
    for candidate, number in ((host.strip("[]"), port), (value.strip("[]"), "9090")):
        try:
            address = ipaddress.ip_address(candidate)
        except ValueError:
            continue
        if getattr(address, "scope_id", None):
            return "addresses with a zone are not supported"
        return (
            f'did you mean "[{candidate}]:{number}"?'
            if address.version == 6
            else f'did you mean "{candidate}:{number}"?'
        )
    if host.replace(".", "").isdecimal():
        return "names are not looked up, and an address has four numbers from 0 to 255 without leading zeros"
    if _HOST_NAME.fullmatch(host) and _is_port(port):
        return "names are not looked up: write the address that the name stands for"
    return 'such as "0.0.0.0:9090" or "[::]:9090"'


def _is_port(text: str) -> bool:
    return _PORT.fullmatch(text) is not None and int(text) <= 65_535
