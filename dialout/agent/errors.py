"""The reasons for a missing registered connection: one exception for each ``error_code``.

::

    DialoutError
    └── NotConnected               there is no registered connection
        ├── ProxyUnreachable       the address could not be dialled
        ├── ProxyHungUp            the proxy closed the connection before it answered
        ├── UnreadableAnswer       the proxy's first bytes are not a valid answer
        └── RegistrationError      the proxy refused the registration
            ├── VersionMismatch        the proxy speaks another version: update the agent, or the proxy
            ├── AuthFailed             the token is missing or wrong
            ├── NotAllowed             the agent id is not in the proxy's allowlist
            ├── ConnectionLimit        the agent has all the connections that it may have: wait, or open fewer
            ├── RegistrationTimeout    the handshake took too long, by the proxy's clock or by the agent's
            ├── BadRegistration        the registration itself is wrong
            ├── ProxyOverloaded        the proxy has no room now
            └── ProxyShuttingDown      the proxy is going away

The proxy's own words in a message are shortened and escaped, so that they can be logged. No message contains a token.
"""

from typing import ClassVar, Final

from dialout.answers import RegistrationResponse
from dialout.errors import DialoutError, ErrorCode

__all__ = [
    "AuthFailed",
    "BadRegistration",
    "ConnectionLimit",
    "NotAllowed",
    "NotConnected",
    "ProxyHungUp",
    "ProxyOverloaded",
    "ProxyShuttingDown",
    "ProxyUnreachable",
    "RegistrationError",
    "RegistrationTimeout",
    "UnreadableAnswer",
    "VersionMismatch",
    "printable",
    "registration_error",
]


class NotConnected(DialoutError):
    """There is no registered connection.

    ``error_code`` is the proxy's code, None if it gave none. ``retry_after`` is the proxy's wish for a wait in seconds,
    None if it gave none.
    """

    error_code: ErrorCode | None = None

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ProxyUnreachable(NotConnected):
    """The address could not be dialled: it is wrong, the proxy is down, or this user may not open its socket."""


class ProxyHungUp(NotConnected):
    """The proxy closed the connection before it answered the registration. Some proxies do so instead of a refusal."""


class UnreadableAnswer(NotConnected):
    """The first frame is no answer to a registration. The peer may not be a proxy for agents."""


class RegistrationError(NotConnected):
    """The proxy refused the registration.

    The class itself, with an ``error_code`` of None, is for proxies that give the reason only in words, or as a code
    that is newer than this library.
    """

    advice: ClassVar[str] = ""


class VersionMismatch(RegistrationError):
    """The proxy speaks another version of the protocol. Waiting does not help."""

    error_code = ErrorCode.VERSION_MISMATCH
    advice = "update the agent or the proxy"


class AuthFailed(RegistrationError):
    """The token is missing, or the proxy does not accept it for this agent id. Waiting does not help."""

    error_code = ErrorCode.AUTH_FAILED
    advice = "check the agent's token and the proxy's auth configuration"


class NotAllowed(RegistrationError):
    """The agent id is not in the proxy's allowlist. Waiting does not help."""

    error_code = ErrorCode.NOT_ALLOWED
    advice = "add the agent id to the proxy's allowed-agents"


class ConnectionLimit(RegistrationError):
    """The agent has all the connections that it may have. Wait until one is closed, or open fewer."""

    error_code = ErrorCode.CONNECTION_LIMIT
    advice = "wait, or open fewer connections"


class RegistrationTimeout(RegistrationError):
    """The handshake took too long: the proxy says so, or it did not answer within the time limit."""

    error_code = ErrorCode.TIMEOUT
    advice = "check the network, and whether the proxy is busy"


class BadRegistration(RegistrationError):
    """The proxy finds the registration itself wrong. Waiting does not help."""

    error_code = ErrorCode.BAD_REGISTRATION
    advice = "the proxy wants another dialect, or other fields"


class ProxyOverloaded(RegistrationError):
    """The proxy has no room for a connection now."""

    error_code = ErrorCode.OVERLOADED


class ProxyShuttingDown(RegistrationError):
    """The proxy is going away. Another one may take its place."""

    error_code = ErrorCode.SHUTTING_DOWN


_CLASSES: Final[dict[ErrorCode | None, type[RegistrationError]]] = {
    kind.error_code: kind for kind in RegistrationError.__subclasses__()
}


def registration_error(response: RegistrationResponse) -> RegistrationError:
    """The exception for a refusal."""
    kind = _CLASSES.get(response.error_code, RegistrationError)
    words = printable(response.error) if response.error else "no reason given"
    named = response.error_code or "refused"
    wait = None if response.retry_after_ms is None else response.retry_after_ms / 1000
    message = f"{named}: {words}" + (f" ({kind.advice})" if kind.advice else "")
    return kind(message, retry_after=wait)


def printable(text: str, limit: int = 200) -> str:
    """At most ``limit`` characters of ``text`` as ASCII for a log. All other characters are escaped."""
    # ascii() leaves only printable ASCII unescaped. Its quotes are removed.
    shown = ascii(text[:limit])[1:-1]
    return shown if len(text) <= limit else f"{shown}..."
