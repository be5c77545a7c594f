"""A real shard process, spoken to over its handoff channel as a supervisor does."""

import array
import resource
import socket
import subprocess
import sys
from pathlib import Path

from dialout import Capabilities, Dialect, FrameDecoder, acceptance_frame, encode_frame
from ipc import handoff, messages, query
from ipc.messages import Hello, Message, Offer, Prepare
from ipc.rundir import RuntimeDir
from ipc.status import ShardReport
from support.agents import without_pings
from support.fences import descriptors
from support.product import environment
from support.waiting import PATIENCE, wait_for

ACCEPTANCE = acceptance_frame(0x04, "waf-conn-1", proxy_id="p", proxy_version="1")


def received(agent: socket.socket, count: int = 1) -> bytes:
    """The bytes of the next *count* frames that a shard has sent, its own pings left out."""
    decoder = FrameDecoder()
    frames: list[tuple[int, bytes]] = []
    while len(frames) < count:
        data = agent.recv(4096)
        assert data, f"the end of the stream behind {frames}"
        frames += without_pings(decoder.feed(data))
    return b"".join(encode_frame(*frame) for frame in frames)


class ShardProcess:
    """A shard's process and the supervisor's end of its channel."""

    def __init__(self, folder: Path) -> None:
        self.rundir = RuntimeDir(folder)
        self.rundir.create()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "shards", "--shard", "0", "--epoch", "e1", "--runtime-dir", str(folder)],
            env=environment(),
        )
        wait_for(lambda: self.rundir.read_shard(0), "the shard's record")
        self.connect()

    def connect(self) -> None:
        """Connect as the next supervisor does."""
        self.channel = handoff.connect(self.rundir.shard_handoff(0))
        self.channel.setblocking(True)
        self.channel.settimeout(PATIENCE)
        assert self.receive() == Hello(0, "e1", self.process.pid)

    def receive(self) -> Message:
        """The next message from the shard."""
        return messages.decode(self.channel.recv(messages.MAX_MESSAGE))

    def send(self, message: Message, *descriptors: int) -> None:
        """Send a message with descriptors."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self.channel.sendmsg([messages.encode(message)], ancillary)

    def limit_descriptors(self, more: int) -> None:
        """Let it have so many descriptors more than it has open."""
        limit = len(descriptors(self.process.pid)) + more
        resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (limit, limit))

    def offer(
        self, number: int, *, transport: str = "uds", residue: bytes = b"", dialect: Dialect = Dialect.SDK
    ) -> Offer:
        """A newcomer."""
        return Offer(number, "waf", dialect, Capabilities(), transport, b"", residue, ACCEPTANCE)

    def prepare(self, *numbers: int, residue: bytes = b"", dialect: Dialect = Dialect.SDK) -> list[socket.socket]:
        """Prepare one connection for each number; returns the agents' ends. No copy of the others is kept."""
        pairs = [socket.socketpair() for _ in numbers]
        offers = [self.offer(number, residue=residue, dialect=dialect) for number in numbers]
        self.send(Prepare(numbers[0], offers), *(theirs.fileno() for _, theirs in pairs))
        for agent, theirs in pairs:
            theirs.close()
            agent.settimeout(PATIENCE)
        return [agent for agent, _ in pairs]

    def report(self, name: str) -> int:
        """A number of the shard's own status."""
        answer = query.ask(self.rundir.shard_query(0), "status", timeout=PATIENCE)
        return int(answer["report"][ShardReport.__struct_fields__.index(name)])
