"""Dial a proxy and register; or only register, over a stream of the caller."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from struct import Struct
from typing import Any, Final

from dialout.agent.address import TcpAddress, UnixAddress, parse_address
from dialout.agent.connection import ProxyConnection
from dialout.agent.errors import (
    NotConnected,
    ProxyHungUp,
    ProxyUnreachable,
    RegistrationTimeout,
    UnreadableAnswer,
)
from dialout.answers import RegistrationResponse, parse_registration_response
from dialout.capabilities import Capabilities
from dialout.dialects import Dialect
from dialout.errors import RemoteProtocolError
from dialout.registration import RegistrationRequest

__all__ = ["connect", "connect_to_proxy", "read_registration_response", "write_registration_request"]

_LENGTH: Final = Struct(">I")

MOST_ANSWER: Final = 1024 * 1024
"""Bytes of an answer that ``read_registration_response`` accepts. An answer may contain a configuration."""


async def connect_to_proxy(
    address: str | Path,
    agent_id: str,
    capabilities: Capabilities | None = None,
    *,
    auth_token: str | None = None,
    metadata: dict[str, Any] | None = None,
    dialect: Dialect = Dialect.SDK,
    timeout: float = 10.0,  # noqa: ASYNC109 - one limit over several steps, told apart in the error
    ping_interval: float = 15.0,
    ping_timeout: float = 15.0,
) -> ProxyConnection:
    """Dial a proxy and register: one connection, without a second try.

    ``address`` is the path of a Unix socket (with a slash in it) or HOST:PORT. ``timeout`` is the limit in seconds for
    both steps together. Serve the result with ``ProxyConnection.serve``. Raises a ``NotConnected`` (see
    ``dialout.agent.errors``) if there is no connection, and LocalProtocolError if the arguments make no valid
    registration.
    """
    request = RegistrationRequest(
        agent_id=agent_id,
        capabilities=Capabilities() if capabilities is None else capabilities,
        auth_token=auth_token,
        metadata=metadata,
    )
    return await connect(
        parse_address(address),
        request,
        dialect,
        limit=timeout,
        ping_interval=ping_interval,
        ping_timeout=ping_timeout,
    )


async def connect(
    address: UnixAddress | TcpAddress,
    request: RegistrationRequest,
    dialect: Dialect,
    *,
    limit: float,
    ping_interval: float,
    ping_timeout: float,
    on_dialled: Callable[[], None] | None = None,
) -> ProxyConnection:
    """``connect_to_proxy`` for prepared arguments. ``on_dialled`` is called between dialling and registering."""
    loop = asyncio.get_running_loop()
    connection = ProxyConnection(
        request, dialect, ping_interval=ping_interval, ping_timeout=ping_timeout, on_dialled=on_dialled
    )
    dialled = False
    try:
        async with asyncio.timeout(limit):
            if isinstance(address, UnixAddress):
                await loop.create_unix_connection(lambda: connection, address.path)
            else:
                await loop.create_connection(lambda: connection, address.host, address.port)
            dialled = True
            await connection.registered
    except NotConnected:
        await connection.wait_closed()
        raise
    except TimeoutError as error:
        connection.abort("no answer in time")
        if not dialled:
            raise ProxyUnreachable(f"{address} could not be dialled within {limit:g} s") from error
        await connection.wait_closed()
        raise RegistrationTimeout(f"no answer to the registration within {limit:g} s") from error
    except OSError as error:
        raise ProxyUnreachable(f"{address}: {error.strerror or error}") from error
    except BaseException:
        connection.abort("given up")
        raise
    return connection


async def write_registration_request(
    writer: asyncio.StreamWriter, request: RegistrationRequest, dialect: Dialect = Dialect.SDK
) -> None:
    """Send a registration over a stream. Raises LocalProtocolError if it cannot be encoded, OSError as streams do."""
    writer.write(request.encode(dialect))
    await writer.drain()


async def read_registration_response(reader: asyncio.StreamReader) -> RegistrationResponse:
    """Read the answer to a registration, also a refusal, and no byte after it. Set a time limit around it.

    Raises ProxyHungUp if the stream ends, and UnreadableAnswer for an invalid answer or one above 1 MiB.
    """
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(4))
        if not 0 < length <= MOST_ANSWER:
            raise UnreadableAnswer(f"the proxy announced an answer of {length} bytes, the limit is {MOST_ANSWER}")
        frame = await reader.readexactly(length)
    except asyncio.IncompleteReadError as error:
        raise ProxyHungUp("the proxy closed the connection without an answer") from error
    try:
        return parse_registration_response(frame[0], frame[1:])
    except RemoteProtocolError as error:
        raise UnreadableAnswer(str(error)) from error
