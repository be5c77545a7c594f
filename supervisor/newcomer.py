"""An agent's connection between accept and commit, or between two shards."""

import fcntl
import os
from collections.abc import Callable

from dialout import Registration, acceptance_frame, answer_type_for
from dialout.claims import Claim
from ipc import peers
from ipc.messages import Offer
from ipc.peers import NOBODY, Owner
from ipc.version import __version__

METADATA_KEPT = 4096
"""Most bytes of metadata that are kept for display. Longer metadata is not shown; the agent is served all the same."""

PROXY_ID = os.uname().nodename
"""The proxy id in answers: the host's name."""

_NON_BLOCKING = os.O_RDWR | os.O_NONBLOCK


class Newcomer:
    """One accepted connection that is not in a pool yet. It alone owns the supervisor's copy of the descriptor.

    *transport* is ``uds`` or ``tcp``. *accepted_at* is monotonic time. *deadline* is in the time of `dialout.awake` and
    bounds all steps until the commit. Before the frame is complete, *received* has the bytes so far, and *wanted* of
    them are needed to go on. After that it gets a *claim*, then a *registration* when that is valid, then a *number*
    (its reserved slot) and an *offer*. *waits_as* is the key by which an unfinished handshake was counted. *rule* is
    the rule that admits the agent. *host* is the address of a TCP peer, if accept(2) has returned it. *waited* counts
    the probes that it has waited for. *declined_by* are the shards that do not take it. *wanted_by* is the preferred
    shard.

    The class has no slots. With them every attribute would have to be set for each connection. Most connections set
    only a few.
    """

    received: bytes | bytearray = b""
    wanted = 0
    claim: Claim | None = None
    registration: Registration | None = None
    residue = b""
    number = 0
    offer: Offer | None = None
    declined_by: set[int] | None = None
    waits_as = ""
    rule = ""
    host: str | None = None
    waited = 0
    on_readable: "Callable[[Newcomer], None] | None" = None
    wanted_by: int | None = None
    accepted_at = 0.0

    def __init__(self, fd: int, transport: str, deadline: float) -> None:
        self.fd = fd
        self.transport = transport
        self.deadline = deadline
        # accept(2) returns a blocking descriptor. This is one system call; os.set_blocking would need two.
        fcntl.fcntl(fd, fcntl.F_SETFL, _NON_BLOCKING)

    @property
    def answer_type(self) -> int:
        """Type byte of the answer that this agent understands, as far as it is known yet."""
        if self.claim is not None:
            return self.claim.answer_type
        return answer_type_for(self.received[4] if len(self.received) > 4 else None)

    @property
    def agent_id(self) -> str | None:
        """The claimed agent id, of a legal form; None before the claim."""
        return None if self.claim is None else self.claim.agent_id

    def on_ready(self, _events: int) -> None:
        """Pass readiness on to *on_readable*, if that is set."""
        if self.on_readable is not None:
            self.on_readable(self)

    def uid(self) -> int | None:
        """The uid of the peer of a Unix socket; None for TCP."""
        return None if self.transport == "tcp" else peers.credentials(self.fd)[1]

    def peer_key(self) -> str:
        """The key that a peer is counted by: the uid of a Unix socket's peer, the network of a TCP peer."""
        try:
            if self.transport == "tcp":
                return peers.key_of(self.host or peers.address(self.fd)[0])
            return peers.key_of_uid(peers.credentials(self.fd)[1])
        except OSError:
            return ""  # The peer has gone. The next read finds that.

    def owner(self) -> Owner:
        """The rule and the peer of the connection, once it has a *rule*."""
        return peers.owner(self.rule, self.waits_as or self.peer_key())

    def peer(self) -> str:
        """The peer's address, or its uid and pid, as text for people."""
        return peers.describe(self.fd, self.transport)

    def make_offer(self, registration: Registration, number: int, config: bytes | None, owner: Owner = NOBODY) -> Offer:
        """Make the offer with all that a pool needs to serve this agent, in the slot *number*.

        *config* goes into the agent's acceptance.
        """
        agent_id, metadata = registration.agent_id, registration.metadata
        self.number, self.registration = number, registration
        offer = self.offer = Offer(
            number,
            agent_id,
            registration.dialect,
            registration.capabilities,
            self.transport,
            metadata if len(metadata) <= METADATA_KEPT else b"",
            self.residue,
            acceptance_frame(
                registration.answer_type,
                f"{agent_id}-conn-{number}",
                proxy_id=PROXY_ID,
                proxy_version=__version__,
                config=config,
            ),
            None,
            owner,
        )
        return offer

    def close(self) -> None:
        """Close the supervisor's copy of the descriptor. It must not be watched any more."""
        os.close(self.fd)


class Mover(Newcomer):
    """An accepted connection on its way from one shard to another. The first shard has let go of it. It keeps its slot.

    It is offered like a new connection, but never refused. When no other shard takes it, it goes back to the shard that
    it *came_from*, None once that shard's process has ended. *began_at* is the number of that shard in any case.
    """

    def __init__(self, fd: int, offer: Offer, came_from: int, wanted_by: int | None, deadline: float) -> None:
        # Newcomer's constructor is not called: it makes the descriptor non-blocking, which this one is already.
        self.fd, self.transport, self.deadline = fd, offer.transport, deadline
        self.offer, self.number = offer, offer.number
        self.began_at = came_from
        self.came_from: int | None = came_from
        self.wanted_by = wanted_by
        self.declined_by = {came_from}
