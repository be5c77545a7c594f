"""An agent between accept and commit."""

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
"""Bytes of metadata that are kept for display; longer metadata is served all the same and not shown."""

PROXY_ID = os.uname().nodename
"""What we call ourselves in answers: the host's name."""

_NON_BLOCKING = os.O_RDWR | os.O_NONBLOCK


class Newcomer:
    """One accepted connection that is not in a pool yet: the only owner of the supervisor's copy of its descriptor.

    *transport* is ``uds`` or ``tcp``. *accepted_at* and *deadline*, which bounds everything until the commit, are
    monotonic time. Before its frame is complete a newcomer collects bytes in *received* and needs *wanted* of them to
    go on; later it has a *claim*, a *registration* once that is found good, then a *number* (its reserved slot) and an
    *offer*. *waits_as* is the key by which an unfinished handshake was counted. *rule* is what lets the agent in.
    *host* is the address of a TCP peer, if accept(2) has told it. *waited* counts the probes that it has waited for.
    *wanted_by* is the shard that it should go to, if that takes it.

    No slots: with them each of these would have to be set for every connection, and most go through with a few.
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
        # accept(2) gives a blocking one; one system call instead of the two of os.set_blocking.
        fcntl.fcntl(fd, fcntl.F_SETFL, _NON_BLOCKING)

    @property
    def answer_type(self) -> int:
        """Type byte of the answer that this agent understands, as far as that can be known yet."""
        if self.claim is not None:
            return self.claim.answer_type
        return answer_type_for(self.received[4] if len(self.received) > 4 else None)

    @property
    def agent_id(self) -> str | None:
        """The agent id that it claims, of a legal form; None while it has claimed none."""
        return None if self.claim is None else self.claim.agent_id

    def on_ready(self, _events: int) -> None:
        """Pass readiness on to whoever waits for it."""
        if self.on_readable is not None:
            self.on_readable(self)

    def uid(self) -> int | None:
        """The user at the other end of a Unix socket; None for TCP."""
        return None if self.transport == "tcp" else peers.credentials(self.fd)[1]

    def peer_key(self) -> str:
        """What handshakes and connections are counted by: the uid of a Unix socket's peer, the network of a TCP one."""
        try:
            if self.transport == "tcp":
                return peers.key_of(self.host or peers.address(self.fd)[0])
            return peers.key_of_uid(peers.credentials(self.fd)[1])
        except OSError:
            return ""  # It has gone; the next read says so.

    def owner(self) -> Owner:
        """The rule and the peer of the connection, once it has a *rule*."""
        return peers.owner(self.rule, self.waits_as or self.peer_key())

    def peer(self) -> str:
        """Who it is, for people."""
        return peers.describe(self.fd, self.transport)

    def make_offer(self, registration: Registration, number: int, config: bytes | None, owner: Owner = NOBODY) -> Offer:
        """What a pool needs to serve this agent, in the slot *number*; *config* goes into its acceptance."""
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
        """Close the supervisor's copy. It must not be watched any more."""
        os.close(self.fd)


class Mover(Newcomer):
    """A member on its way from one shard to another, which the first one has let go of: in its slot, and established.

    It is offered like a newcomer, but never turned away: when no other shard takes it, it goes back to the one that it
    *came_from*, which is None once that shard's process has ended. *began_at* is that shard for good.
    """

    def __init__(self, fd: int, offer: Offer, came_from: int, wanted_by: int | None, deadline: float) -> None:
        # Not Newcomer's, which makes the descriptor non-blocking: that it is.
        self.fd, self.transport, self.deadline = fd, offer.transport, deadline
        self.offer, self.number = offer, offer.number
        self.began_at = came_from
        self.came_from: int | None = came_from
        self.wanted_by = wanted_by
        self.declined_by = {came_from}
