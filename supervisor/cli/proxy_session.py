"""A blocking connection to one shard, in the role of a proxy: `dialout.proxy.wire` over a Unix socket.

`dialout.PoolClient` is for proxies. A command sends one request to a given shard, and is faster without an event loop.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from dialout import AgentEvent, FrameDecoder, FrameError, LocalProtocolError
from dialout.proxy.errors import BadRequest, ConnectionLost, NoShard, RequestTimeout, pool_error
from dialout.proxy.wire import (
    FINAL,
    MAX_ANSWER_LENGTH,
    MAX_TIMEOUT_MS,
    PROXY_PROTOCOL,
    RETRY_SAFE,
    Answer,
    Failure,
    FromShardFrame,
    ProxyWireError,
    Welcome,
    decode_from_shard,
    encode_finish,
    encode_hello,
    encode_request,
)
from ipc.version import __version__

WELCOME_SECONDS = 1.0
"""Seconds that a shard may take for its welcome. A running shard takes milliseconds."""

MARGIN_SECONDS = 0.5
"""Seconds beyond the time limit, for the shard to report the timeout itself."""

_REQUEST_ID = 1


class ShardSilent(NoShard):
    """The shard accepts connections and does not answer."""


class ProxySession:
    """One HTTP request for one agent, sent to the shard with the socket at *path*.

    Raises `NoShard` when the shard is not reachable. All its errors are subclasses of `PoolError`.
    """

    def __init__(self, path: Path, shard: int, agent_id: str) -> None:
        self.shard = shard
        self.agent_id = agent_id
        self._decoder = FrameDecoder(MAX_ANSWER_LENGTH)
        self._frames: list[tuple[int, bytes]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._greet(path)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> "ProxySession":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, event: AgentEvent, deadline: float, *, final: bool) -> Answer:
        """Send the next event and return the agent's answer. *deadline* is a time of `time.monotonic`."""
        left_ms = min(int((deadline - time.monotonic()) * 1000), MAX_TIMEOUT_MS)
        if left_ms < 1:
            raise RequestTimeout("the time was up before the agent had decided", agent_id=self.agent_id)
        try:
            frame = encode_request(
                event,
                request_id=_REQUEST_ID,
                agent_id=self.agent_id,
                timeout_ms=left_ms,
                flags=FINAL if final else 0,
            )
        except LocalProtocolError as error:
            raise BadRequest(str(error), agent_id=self.agent_id) from None
        try:
            return self._receive(frame, deadline + MARGIN_SECONDS)
        except TimeoutError:
            message = f"no answer in time, and no word from shard {self.shard}"
            raise RequestTimeout(message, agent_id=self.agent_id, shard=self.shard) from None
        except OSError as error:
            raise self._lost(error.strerror or "reset") from None

    def finish(self) -> None:
        """Tell the shard that no further event follows."""
        with contextlib.suppress(OSError):
            self._socket.sendall(encode_finish(_REQUEST_ID, self.agent_id))

    def _greet(self, path: Path) -> None:
        deadline = time.monotonic() + WELCOME_SECONDS
        self._socket.settimeout(WELCOME_SECONDS)
        try:
            self._socket.connect(os.fspath(path))
            self._socket.sendall(encode_hello("shardgate send", __version__))
            welcome = self._next(deadline, lambda frame: isinstance(frame, Welcome))
        except TimeoutError:
            raise ShardSilent(f"shard {self.shard} does not answer", shard=self.shard) from None
        except OSError as error:
            raise NoShard(f"shard {self.shard} is not reachable: {error.strerror}", shard=self.shard) from None
        assert isinstance(welcome, Welcome)
        if welcome.error or welcome.protocol != PROXY_PROTOCOL:
            why = welcome.error or f"it speaks version {welcome.protocol} of the protocol, not {PROXY_PROTOCOL}"
            raise NoShard(f"shard {self.shard} refused: {why}", shard=self.shard)

    def _receive(self, frame: bytes, deadline: float) -> Answer:
        self._socket.settimeout(max(0.001, deadline - time.monotonic()))
        self._socket.sendall(frame)
        answer = self._next(deadline, lambda found: isinstance(found, Answer | Failure))
        if isinstance(answer, Failure):
            raise pool_error(
                answer.error_code,
                answer.error or answer.error_code,
                agent_id=self.agent_id,
                retry_safe=bool(answer.flags & RETRY_SAFE),
                policy=answer.policy,
                shard=self.shard if answer.shard is None else answer.shard,
            )
        assert isinstance(answer, Answer)
        return answer

    def _next(self, deadline: float, is_wanted: Callable[[FromShardFrame], bool]) -> FromShardFrame:
        """Return the next frame that *is_wanted*. Raises TimeoutError at *deadline*."""
        while True:
            while self._frames:
                try:
                    frame = decode_from_shard(*self._frames.pop(0))
                except ProxyWireError as error:
                    raise self._lost(str(error)) from None
                if is_wanted(frame):
                    return frame
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            data = self._socket.recv(65536)
            if not data:
                raise self._lost("the shard closed it")
            try:
                self._frames += self._decoder.feed(data)
            except FrameError as error:
                raise self._lost(str(error)) from None

    def _lost(self, why: str) -> ConnectionLost:
        message = f"the connection to shard {self.shard} was lost: {why}"
        return ConnectionLost(message, agent_id=self.agent_id, shard=self.shard)
