"""ZeroMQ on the event loop, only between shardgate processes of one user. No other module imports zmq.

`Bus` is one socket with a callback for its messages. No peer of another trust level may connect to a bus: libzmq 4.3.5
aborts its process when it accepts at the descriptor limit (ipc_listener.cpp), and its high water mark bounds messages,
not bytes. Status queries use another kind of socket (`ipc.query_server`).

The code avoids three traps:

- The descriptor of a ZeroMQ socket is edge-triggered. A send on the socket consumes the edge of a message that
  came in between. A measurement lost 400 of 400 wake-ups that way. So the socket is drained until it is empty,
  and its EVENTS are checked again after every send.
- ``await zmq.asyncio.Socket.recv()`` never yields while messages are queued: 100,000 queued messages kept
  another task waiting for 1.6 s. Here draining stops at a budget, and continues in the loop's next turn.
- ``bind("ipc://…")`` removes any file at the path, so the caller must hold the runtime directory's lock.
"""

import asyncio
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import zmq

DRAIN_BUDGET = 128
"""Messages read in one turn of the loop."""

HIGH_WATER_MARK = 10_000
"""Messages that ZeroMQ queues for one peer. Beyond it a send returns False, and the sequence numbers show the gap."""

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""A peer that sends a larger message is disconnected by ZeroMQ."""

_context: zmq.Context[zmq.Socket[bytes]] | None = None


def _shared_context() -> zmq.Context[zmq.Socket[bytes]]:
    global _context
    if _context is None:
        _context = zmq.Context(io_threads=1)
    return _context


def close_context() -> None:
    """End ZeroMQ in this process without waiting for unsent messages."""
    global _context
    if _context is not None:
        _context.destroy(linger=0)
        _context = None


def _endpoint(path: Path) -> str:
    return f"ipc://{path}"


_numbers = itertools.count()

UNBIND_TIMEOUT_MS = 2000
"""For which a bus that listens again waits for its old socket to go; that takes less than one on a quiet host."""


class Bus:
    """One ZeroMQ socket, read by callback.

    *on_message* gets the parts of each message. It runs on the loop and must not block. Its exceptions go to the
    loop's exception handler, and the next message is read. Not thread-safe, like the socket inside.
    """

    def __init__(self, kind: int, on_message: Callable[[list[bytes]], None] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._drain_scheduled = False
        self._socket = _shared_context().socket(kind)
        self._socket.linger = 0
        self._socket.sndhwm = self._socket.rcvhwm = HIGH_WATER_MARK
        self._socket.maxmsgsize = MAX_MESSAGE_BYTES
        self._fd = int(self._socket.fd)

    @classmethod
    def router(cls, on_message: Callable[[list[bytes]], None]) -> "Bus":
        """A socket for many peers. The first part of each message is the peer's identity."""
        bus = cls(zmq.ROUTER, on_message)
        bus._socket.router_mandatory = True
        return bus

    @classmethod
    def dealer(cls, identity: str, on_message: Callable[[list[bytes]], None]) -> "Bus":
        """A socket to one router. *identity* must be new for each life of a process.

        A router ignores a second peer of the same identity. A restarted process with its old identity would get no
        answer while the connection of its predecessor lingers.
        """
        bus = cls(zmq.DEALER, on_message)
        bus._socket.setsockopt_string(zmq.IDENTITY, identity)
        # Without a peer a send fails at once. A message kept for the next supervisor would be stale.
        bus._socket.immediate = True
        bus._socket.reconnect_ivl = 50
        bus._socket.reconnect_ivl_max = 500
        return bus

    @classmethod
    def publisher(cls) -> "Bus":
        """A socket that sends its messages to every subscriber. Without subscribers it drops them."""
        return cls(zmq.PUB)

    @classmethod
    def subscriber(cls, on_message: Callable[[list[bytes]], None]) -> "Bus":
        """A socket that receives the messages of a publisher. Messages sent before it has subscribed are lost."""
        bus = cls(zmq.SUB, on_message)
        bus._socket.subscribe(b"")
        bus._socket.reconnect_ivl = 50
        bus._socket.reconnect_ivl_max = 500
        return bus

    def bind(self, path: Path, mode: int = 0o600) -> None:
        """Listen at *path*, and stop listening at an earlier one. Raises OSError when that is not possible.

        The caller must hold the runtime directory's lock. Peers connect again by themselves.
        """
        self._unbind()
        # ZeroMQ takes the mode of the socket only from the umask. No other Python thread runs in the process.
        previous = os.umask(0o777 & ~mode)
        try:
            self._socket.bind(_endpoint(path))
        except zmq.ZMQError as error:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        finally:
            os.umask(previous)
        self._watch()

    def _unbind(self) -> None:
        """Stop listening, if the socket listens. ZeroMQ removes the file, in another thread."""
        endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        if not endpoint:
            return
        # That thread would also remove a new file, so wait until it is done.
        address = f"inproc://unbind-{next(_numbers)}"
        self._socket.monitor(address, zmq.EVENT_CLOSED | zmq.EVENT_CLOSE_FAILED)
        monitor = _shared_context().socket(zmq.PAIR)
        try:
            monitor.connect(address)
            self._socket.unbind(endpoint)
            monitor.poll(UNBIND_TIMEOUT_MS)
        except zmq.ZMQError:
            # The endpoint was bound once, and is not bound any more.
            pass
        finally:
            self._socket.monitor(None, 0)
            monitor.close(linger=0)

    def connect(self, path: Path) -> None:
        """Connect to *path*, now or as soon as a process listens there."""
        self._socket.connect(_endpoint(path))
        self._watch()

    def send(self, *parts: bytes) -> bool:
        """Send one message of *parts* without blocking. False when no peer can take it, or the socket is closed."""
        if self._socket.closed:
            return False
        try:
            self._socket.send_multipart(parts, zmq.DONTWAIT, copy=True)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        finally:
            if self._on_message is not None and int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
                self._schedule_drain()
        return True

    def close(self) -> None:
        """Close the socket, and drop unsent messages."""
        if not self._socket.closed:
            self._loop.remove_reader(self._fd)
            self._on_message = None
            self._socket.close(linger=0)

    def _watch(self) -> None:
        if self._on_message is None:
            return
        self._loop.add_reader(self._fd, self._drain)
        self._schedule_drain()

    def _schedule_drain(self) -> None:
        if not self._drain_scheduled:
            self._drain_scheduled = True
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        self._drain_scheduled = False
        for _ in range(DRAIN_BUDGET):
            if self._on_message is None:
                return
            try:
                parts = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                self._on_message(parts)
            except Exception as error:  # noqa: BLE001 - one bad message must not silence the bus
                self._loop.call_exception_handler({"message": "a bus message could not be handled", "exception": error})
        self._schedule_drain()
