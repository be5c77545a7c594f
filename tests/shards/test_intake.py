"""A real shard process, spoken to over its handoff channel as a supervisor does."""

import array
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.product import environment, short_folder
from support.waiting import wait_for

from dialout import Capabilities, Dialect, FrameDecoder, acceptance_frame, encode_frame, parse_registration_response
from ipc import handoff, messages, query
from ipc.messages import Commit, Declined, Hello, Message, Offer, Prepare, Prepared, Refuse, Revoke
from ipc.process import DescriptorBudget
from ipc.rundir import RuntimeDir

ACCEPTANCE = acceptance_frame(0x04, "waf-conn-1", proxy_id="p", proxy_version="1")


class Shard:
    """A shard's process and the supervisor's end of its channel."""

    def __init__(self, folder: Path) -> None:
        self.rundir = RuntimeDir(folder)
        self.rundir.create()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "shards", "--shard", "0", "--epoch", "e1", "--runtime-dir", str(folder)],
            env=environment(),
        )
        wait_for(lambda: self.rundir.read_shard(0), "the shard's record", timeout=20)
        self.connect()

    def connect(self) -> None:
        """Connect as the next supervisor does."""
        self.channel = handoff.connect(self.rundir.shard_handoff(0))
        self.channel.setblocking(True)
        self.channel.settimeout(10)
        assert self.receive() == Hello(0, "e1", self.process.pid)

    def receive(self) -> Message:
        """The next message from the shard."""
        return messages.decode(self.channel.recv(messages.MAX_MESSAGE))

    def send(self, message: Message, *descriptors: int) -> None:
        """Send a message with descriptors."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self.channel.sendmsg([messages.encode(message)], ancillary)

    def prepare(self, *numbers: int, residue: bytes = b"", dialect: Dialect = Dialect.SDK) -> list[socket.socket]:
        """Prepare one connection for each number; returns the agents' ends. No copy of the others is kept."""
        pairs = [socket.socketpair() for _ in numbers]
        offers = [Offer(n, "waf", dialect, Capabilities(), "uds", b"", residue, ACCEPTANCE) for n in numbers]
        self.send(Prepare(numbers[0], offers), *(theirs.fileno() for _, theirs in pairs))
        for agent, theirs in pairs:
            theirs.close()
            agent.settimeout(10)
        return [agent for agent, _ in pairs]

    def report(self, name: str) -> int:
        """A number of the shard's own status."""
        from ipc.status import ShardReport

        answer = query.ask(self.rundir.shard_query(0), "status", timeout=5)
        return int(answer["report"][ShardReport.__struct_fields__.index(name)])


@pytest.fixture
def shard() -> Iterator[Shard]:
    """A running shard; its end is orderly."""
    with short_folder() as folder:
        shard = Shard(folder)
        try:
            yield shard
        finally:
            shard.channel.close()
            shard.process.send_signal(signal.SIGTERM)
            assert shard.process.wait(15) == 0
            assert [path.name for path in folder.iterdir() if path.is_socket()] == []


def test_shard_neither_reads_nor_writes_a_connection_that_is_only_prepared(shard: Shard) -> None:
    (agent,) = shard.prepare(1)
    agent.sendall(encode_frame(0xF0, b'{"timestamp":1}'))
    assert shard.receive() == Prepared(1)
    assert shard.report("prepared") == 1
    agent.setblocking(False)
    with pytest.raises(BlockingIOError):
        agent.recv(1)
    agent.settimeout(10)
    shard.send(Commit([1]))
    pong = encode_frame(0xF1, b'{"timestamp":1}')
    received = b""
    while len(received) < len(ACCEPTANCE) + len(pong):
        received += agent.recv(4096)
    assert received == ACCEPTANCE + pong, "the acceptance is the first frame"
    assert (shard.report("connections"), shard.report("prepared")) == (1, 0)
    agent.close()
    wait_for(lambda: shard.report("connections") == 0, "the close to be noticed")


def test_shard_serves_the_residue_before_what_comes_later(shard: Shard) -> None:
    (agent,) = shard.prepare(5, residue=encode_frame(0xF0, b'{"timestamp":1}')[:7])
    agent.sendall(encode_frame(0xF0, b'{"timestamp":1}')[7:])
    assert shard.receive() == Prepared(5)
    shard.send(Commit([5]))
    expected = ACCEPTANCE + encode_frame(0xF1, b'{"timestamp":1}')
    received = b""
    while len(received) < len(expected):
        received += agent.recv(4096)
    assert received == expected
    agent.close()


@pytest.mark.parametrize("dialect", Dialect)
def test_shard_closes_a_revoked_connection_untouched_and_tells_a_refused_one(shard: Shard, dialect: Dialect) -> None:
    revoked, refused = shard.prepare(1, 2, dialect=dialect)
    assert shard.receive() == Prepared(1)
    shard.send(Revoke([1]))
    shard.send(Refuse([2]))
    assert revoked.recv(100) == b""
    (frame,) = FrameDecoder().feed(refused.recv(4096))
    assert frame[0] == dialect.answer_type
    assert parse_registration_response(*frame).error_code == "connection_limit"
    assert refused.recv(100) == b""
    shard.send(Commit([1, 2]))
    assert shard.report("connections") == 0
    revoked.close()
    refused.close()


def test_prepared_connections_outlive_their_supervisor_and_the_next_one_commits_them(shard: Shard) -> None:
    (agent,) = shard.prepare(3)
    assert shard.receive() == Prepared(3)
    shard.channel.close()
    wait_for(lambda: shard.report("prepared") == 1, "the shard to go on")
    shard.connect()
    shard.send(Commit([3]))
    assert agent.recv(4096) == ACCEPTANCE
    agent.close()


def test_shard_declines_what_it_has_no_descriptors_for(shard: Shard) -> None:
    import resource

    limit = len(os.listdir(f"/proc/{shard.process.pid}/fd")) + DescriptorBudget.RESERVE - 16  # noqa: PTH208
    resource.prlimit(shard.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
    (agent,) = shard.prepare(9)
    declined = shard.receive()
    assert isinstance(declined, Declined)
    assert declined.batch == 9
    assert agent.recv(1) == b"", "no copy of it is left"
    agent.close()


def test_a_second_supervisor_replaces_the_first(shard: Shard) -> None:
    first = shard.channel
    shard.connect()
    assert first.recv(100) == b""
    first.close()
    (agent,) = shard.prepare(4)
    assert shard.receive() == Prepared(4)
    agent.close()


def test_garbage_on_the_channel_loses_the_channel_and_nothing_else(shard: Shard) -> None:
    (agent,) = shard.prepare(6)
    assert shard.receive() == Prepared(6)
    shard.send(Commit([6]))
    assert agent.recv(4096) == ACCEPTANCE
    shard.channel.send(b"\x07garbage")
    with contextlib.suppress(ConnectionResetError):
        assert shard.channel.recv(100) == b""
    shard.channel.close()
    assert shard.report("connections") == 1
    shard.connect()
    agent.close()
