"""Tickets: of several processes with copies of a connection one serves it."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support.product import environment

from ipc import tickets

TAKER = """
import os, sys
from ipc.tickets import take_ticket
fd, transport, ticket = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
print(take_ticket(fd, transport, ticket), flush=True)
"""


@contextlib.contextmanager
def connected(transport: str) -> Iterator[int]:
    """One end of a connection, non-blocking, as all that are handed over."""
    if transport == "uds":
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
    ours.setblocking(False)
    with ours, theirs:
        yield ours.fileno()


@pytest.mark.parametrize("transport", ["uds", "tcp"])
def test_ticket_is_taken_once_through_whichever_copy(transport: str) -> None:
    with connected(transport) as fd:
        copy = os.dup(fd)
        ticket = tickets.leave_ticket(fd, transport)
        assert not tickets.take_ticket(copy, transport, ticket + 1)
        assert tickets.take_ticket(copy, transport, ticket)
        assert not tickets.take_ticket(fd, transport, ticket)
        newer = tickets.leave_ticket(copy, transport)
        assert not tickets.take_ticket(fd, transport, ticket), "that of an earlier move"
        assert tickets.take_ticket(fd, transport, newer)
        with pytest.raises(BlockingIOError):
            os.read(fd, 1)
        os.close(copy)


@pytest.mark.parametrize("transport", ["uds", "tcp"])
def test_one_of_many_processes_gets_the_ticket_even_when_the_one_that_left_it_is_gone(transport: str) -> None:
    with connected(transport) as fd:
        leaver = "import sys; from ipc.tickets import leave_ticket; print(leave_ticket(int(sys.argv[1]), sys.argv[2]))"
        done = subprocess.run(
            [sys.executable, "-c", leaver, str(fd), transport],
            env=environment(), pass_fds=[fd], capture_output=True, text=True, check=True,
        )  # fmt: skip
        takers = [
            subprocess.Popen(
                [sys.executable, "-c", TAKER, str(fd), transport, done.stdout.strip()],
                env=environment(), pass_fds=[fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for _ in range(4)
        ]  # fmt: skip
        for taker in takers:
            assert taker.stdout is not None
            assert taker.stdout.readline() == "ready\n"
        for taker in takers:
            assert taker.stdin is not None
            taker.stdin.write("\n")
            taker.stdin.flush()
        assert sorted(taker.communicate()[0] for taker in takers) == ["False\n"] * 3 + ["True\n"]
