"""Admission: from a well-formed registration to an offer, or to a refusal.

Admission checks the policy, reserves a slot, and makes an offer. A registration over the limit first waits for a probe
round (`supervisor.probes`). After the start all registrations wait until the ledger knows the connections of the
running shards. A slot that was reserved earlier could exceed the agent's limit.
"""

import asyncio
from collections.abc import Callable
from functools import partial

from dialout import ErrorCode, Registration, Rejection, awake
from dialout.claims import Claim
from dialout.registration import read_registration
from ipc.events import Command, Probe
from ipc.peers import Owner
from ipc.timers import all_of
from supervisor.config.pushed import AgentConfig
from supervisor.farewell import Farewell
from supervisor.handoffs import Handoffs
from supervisor.ledger import Ledger
from supervisor.newcomer import Newcomer
from supervisor.policy import Policy
from supervisor.probes import ProbeBook, Round, is_agent, scope_key
from supervisor.quotas import LimitReached, Scope

PROBE_TIMEOUT = 1.0
"""Seconds that a shard has to look at an agent's connections. Then admission decides by the ledger as it is.

It takes 1 ms on a quiet host. 250 ms were not enough on a host with four times more to run than processors.
"""

MOST_PROBES = 3
"""Most probes that one registration waits for, each for another limit."""

RESERVED_PAUSE = 0.01
"""Seconds between checks of reserved slots, until none is left and a probe can be sent."""


class Admission:
    """Admits registrations. *send* sends a command to a shard, and returns False when the shard cannot be reached."""

    def __init__(
        self,
        policy: Policy,
        pushed: AgentConfig,
        ledger: Ledger,
        handoffs: Handoffs,
        farewell: Farewell,
        send: Callable[[int, Command], bool],
    ) -> None:
        self.policy = policy
        self.pushed = pushed
        self._ledger = ledger
        self._handoffs = handoffs
        self._farewell = farewell
        self._send = send
        self._probes: ProbeBook[Newcomer] = ProbeBook(PROBE_TIMEOUT)
        self._loop = asyncio.get_running_loop()
        self._clock = awake.clock()
        self._timer: asyncio.TimerHandle | None = None
        # Registrations that wait for `open`; None once it was called.
        self._early: list[Newcomer] | None = []

    def __len__(self) -> int:
        return len(self._probes) + (0 if self._early is None else len(self._early))

    def open(self) -> None:
        """Begin to admit, the waiting registrations first. Call it when the ledger knows the shards' connections."""
        early, self._early = self._early or [], None
        # The policy may have been reloaded since they came. An error with one must not stop the others.
        all_of(*(partial(self.admit, one, one.claim) for one in early if one.claim is not None))

    def admit(self, newcomer: Newcomer, claim: Claim) -> None:
        """Admit *newcomer*, refuse it, or let it wait for a probe.

        The policy checks the claim. The rest of the registration is read only after that.
        """
        try:
            newcomer.rule = self.policy.check(claim, newcomer.uid() if self.policy.wants_uid else None)
            registration = newcomer.registration = read_registration(claim)
        except Rejection as rejection:
            self._farewell.reject(newcomer, rejection)
            return
        if self._early is None:
            self._reserve(newcomer, registration)
            return
        self._early.append(newcomer)
        if self._timer is None:
            self._timer = self._loop.call_later(PROBE_TIMEOUT, self._expire)

    def _reserve(self, newcomer: Newcomer, registration: Registration) -> None:
        owner = newcomer.owner()
        try:
            number = self._ledger.reserve(registration.agent_id, owner)
        except LimitReached as reached:
            self._probe_first(newcomer, scope_key(reached.scope, registration.agent_id, owner))
            return
        self._offer(newcomer, registration, number, owner)

    def probed(self, probe: int, shard: int) -> None:
        """Take a shard's answer to a probe. The slots of connections that it found gone are free by then."""
        done = self._probes.answered(probe, shard)
        if done is not None:
            self._decide(done)

    def freed(self, agent_id: str) -> None:
        """Give a freed slot to the registration that has waited longest, before the probe is answered."""
        # There may be no room although a slot was freed: the limit may have been lowered.
        if not len(self._probes) or self._ledger.count(agent_id) >= self._ledger.limit:
            return
        newcomer = self._probes.first(agent_id)
        if newcomer is None:
            return
        assert newcomer.registration is not None
        # Its rule or its peer may be at its own limit.
        self._reserve(newcomer, newcomer.registration)

    def shard_gone(self, shard: int) -> None:
        """Expect no more answers from a shard. Its slots are free by then."""
        for done in self._probes.shard_gone(shard):
            self._decide(done)

    def refuse_all(self, rejection: Callable[[Newcomer], Rejection]) -> None:
        """Refuse all waiting registrations. Called at shutdown."""
        early, self._early = self._early or [], None
        for newcomer in [*self._probes.take_all(), *early]:
            self._farewell.reject(newcomer, rejection(newcomer))
        if self._timer is not None:
            self._timer.cancel()

    def _offer(self, newcomer: Newcomer, registration: Registration, number: int, owner: Owner) -> None:
        newcomer.make_offer(registration, number, self.pushed.for_agent(registration.agent_id), owner)
        self._handoffs.offer(newcomer)

    def _probe_first(self, newcomer: Newcomer, key: str) -> None:
        newcomer.waited += 1
        opened = self._probes.wait(key, newcomer, self._clock.time())
        if opened is not None:
            if self._timer is None:
                self._timer = self._loop.call_later(PROBE_TIMEOUT, self._expire)
            self._ask(opened)

    def _ask(self, opened: Round[Newcomer]) -> None:
        """Ask the shards that hold the connections in question. For an agent, wait until none of its slots is reserved.

        Reserved slots become live or free within a millisecond or so. No shard can be asked about them earlier. For the
        limit of a rule, of a peer or of all, every shard with slots closes the connections that the kernel says are
        gone.
        """
        key = opened.agent_id
        if not self._probes.is_open(opened):
            return
        if not is_agent(key):
            shards = {shard for shard, load in self._ledger.loads.items() if load}
        elif self._ledger.reserved(key):
            self._loop.call_later(RESERVED_PAUSE, self._ask, opened)
            return
        else:
            shards = self._ledger.live_shards(key)
        probe = Probe(opened.probe, key if is_agent(key) else "")
        for shard in shards:
            # A shard that cannot be told has ended as a rule, and `shard_gone` is about to say so. Its slots are free
            # then. To decide without its answer refused agents whose connections had ended with it.
            self._send(shard, probe)
        if self._probes.ask(opened, set(shards)):
            self._decide(opened)

    def _decide(self, done: Round[Newcomer]) -> None:
        for newcomer in done.waiters:
            registration, owner = newcomer.registration, newcomer.owner()
            assert registration is not None
            try:
                number = self._ledger.reserve(registration.agent_id, owner)
            except LimitReached as reached:
                key = scope_key(reached.scope, registration.agent_id, owner)
                if key != done.agent_id and newcomer.waited < MOST_PROBES:
                    # It waited for one limit. Meanwhile another limit was reached.
                    self._probe_first(newcomer, key)
                else:
                    self._farewell.reject(newcomer, _over_limit(newcomer, reached))
            else:
                self._offer(newcomer, registration, number, owner)
        following = self._probes.next_round(done.agent_id, self._clock.time())
        if following is not None:
            self._ask(following)

    def _expire_early(self, early: list[Newcomer]) -> None:
        """Refuse the early registrations whose deadline has passed: a shard has not sent its snapshot yet."""
        now = self._clock.time()
        self._early = [newcomer for newcomer in early if newcomer.deadline > now]
        for newcomer in early:
            if newcomer.deadline <= now:
                message = "the listener has just started, and waits for a shard that does not answer"
                rejection = Rejection(ErrorCode.OVERLOADED, message, newcomer.answer_type, retry_after_ms=1000)
                self._farewell.reject(newcomer, rejection)

    def _expire(self) -> None:
        self._timer = None
        try:
            if self._early is not None:
                self._expire_early(self._early)
            for done in self._probes.expired(self._clock.time()):
                self._decide(done)
        finally:
            if len(self) and self._timer is None:
                self._timer = self._loop.call_later(PROBE_TIMEOUT / 10, self._expire)


def _over_limit(newcomer: Newcomer, reached: LimitReached) -> Rejection:
    """The rejection of a registration over a limit."""
    held, most, answer_type = reached.held, reached.most, newcomer.answer_type
    if reached.is_full:
        message = (
            f"the listener has {held} connections, which are all that there may be"
            if reached.scope is Scope.TOTAL
            else f"the listener has no room for more of these agents, or of this peer: {held} connections, and what is"
            " left is for others"
        )
        return Rejection(ErrorCode.OVERLOADED, message, answer_type, retry_after_ms=1000)
    whose = {Scope.AGENT: "this agent has", Scope.RULE: "agents with such a token have", Scope.PEER: "this peer has"}
    message = f"connection limit: {whose.get(reached.scope, '')} {held} connections, {most} are allowed"
    return Rejection(ErrorCode.CONNECTION_LIMIT, message, answer_type, retry_after_ms=1000)
