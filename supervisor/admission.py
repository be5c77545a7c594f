"""Admission: from a well-formed registration to an offer, or to a refusal.

Policy, then slot, then offer. A registration over the limit waits for a probe round first (`supervisor.probes`). After
the start everybody waits until the ledger knows what living shards hold: a slot that was reserved before that would
come on top of the agent's connections.
"""

import asyncio
from collections.abc import Callable

from dialout import ErrorCode, Registration, Rejection, awake
from dialout.claims import Claim
from dialout.registration import read_registration
from ipc.events import Command, Probe
from supervisor.config.pushed import AgentConfig
from supervisor.farewell import Farewell
from supervisor.handoffs import Handoffs
from supervisor.ledger import Ledger, LimitReached
from supervisor.newcomer import Newcomer
from supervisor.policy import Policy
from supervisor.probes import ProbeBook, Round

PROBE_TIMEOUT = 1.0
"""Seconds that a shard has to look at an agent's connections, before the newcomer is refused on what is known.

It takes 1 ms on a quiet host; on one with four times more to run than processors, 250 ms were not enough.
"""

RESERVED_PAUSE = 0.01
"""Seconds between looks at slots that are only reserved, before a probe is sent."""


class Admission:
    """Admits registrations. *send* tells a shard something; False when it cannot be told."""

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
        # Those who wait for `open`; None once it was called.
        self._early: list[Newcomer] | None = []

    def __len__(self) -> int:
        return len(self._probes) + (0 if self._early is None else len(self._early))

    def open(self) -> None:
        """Begin to admit, those who came early first: the ledger knows all that it can know."""
        early, self._early = self._early or [], None
        for newcomer in early:
            assert newcomer.claim is not None
            # The rules may have been read again since it came.
            self.admit(newcomer, newcomer.claim)

    def admit(self, newcomer: Newcomer, claim: Claim) -> None:
        """Admit *newcomer*, refuse it, or let it wait for a probe.

        The policy decides on the claim. What else the registration holds is read only when that has been found good.
        """
        try:
            self.policy.check(claim, newcomer.uid() if self.policy.wants_uid else None)
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
        try:
            number = self._ledger.reserve(registration.agent_id)
        except LimitReached:
            self._probe_first(newcomer, registration.agent_id)
            return
        self._offer(newcomer, registration, number)

    def probed(self, probe: int, shard: int) -> None:
        """Take a shard's answer to a probe; what it found gone has been freed before."""
        done = self._probes.answered(probe, shard)
        if done is not None:
            self._decide(done)

    def freed(self, agent_id: str) -> None:
        """Give a slot that has become free to whoever has waited longest for one, without waiting for the probe."""
        # A limit that was lowered meanwhile may leave no room although a slot was freed.
        if not len(self._probes) or self._ledger.count(agent_id) >= self._ledger.limit:
            return
        newcomer = self._probes.first(agent_id)
        if newcomer is None:
            return
        registration = newcomer.registration
        assert registration is not None
        self._offer(newcomer, registration, self._ledger.reserve(agent_id))

    def shard_gone(self, shard: int) -> None:
        """Expect no more answers from a shard; its slots have been freed before."""
        for done in self._probes.shard_gone(shard):
            self._decide(done)

    def refuse_all(self, rejection: Callable[[Newcomer], Rejection]) -> None:
        """Turn away everybody who waits; for the end."""
        early, self._early = self._early or [], None
        for newcomer in [*self._probes.take_all(), *early]:
            self._farewell.reject(newcomer, rejection(newcomer))
        if self._timer is not None:
            self._timer.cancel()

    def _offer(self, newcomer: Newcomer, registration: Registration, number: int) -> None:
        newcomer.make_offer(registration, number, self.pushed.for_agent(registration.agent_id))
        self._handoffs.offer(newcomer)

    def _probe_first(self, newcomer: Newcomer, agent_id: str) -> None:
        opened = self._probes.wait(agent_id, newcomer, self._clock.time())
        if opened is not None:
            if self._timer is None:
                self._timer = self._loop.call_later(PROBE_TIMEOUT, self._expire)
            self._ask(opened)

    def _ask(self, opened: Round[Newcomer]) -> None:
        """Ask the shards that hold the agent's connections, as soon as none of its slots is only reserved.

        Reserved slots become live or free within a millisecond or so, and no shard can be asked about them earlier.
        """
        if not self._probes.is_open(opened):
            return
        if self._ledger.reserved(opened.agent_id):
            self._loop.call_later(RESERVED_PAUSE, self._ask, opened)
            return
        shards = self._ledger.live_shards(opened.agent_id)
        reached = {shard for shard in shards if self._send(shard, Probe(opened.probe, opened.agent_id))}
        if self._probes.ask(opened, reached):
            self._decide(opened)

    def _decide(self, done: Round[Newcomer]) -> None:
        for newcomer in done.waiters:
            registration = newcomer.registration
            assert registration is not None
            try:
                number = self._ledger.reserve(done.agent_id)
            except LimitReached:
                self._farewell.reject(
                    newcomer,
                    Rejection(
                        ErrorCode.CONNECTION_LIMIT,
                        f"connection limit: this agent has {self._ledger.count(done.agent_id)} connections,"
                        f" {self._ledger.limit} are allowed",
                        newcomer.answer_type,
                        retry_after_ms=1000,
                    ),
                )
            else:
                self._offer(newcomer, registration, number)
        following = self._probes.next_round(done.agent_id, self._clock.time())
        if following is not None:
            self._ask(following)

    def _expire_early(self, early: list[Newcomer]) -> None:
        """Turn away those whose time is up: a shard keeps us waiting, and what it holds is not known."""
        now = self._clock.time()
        self._early = [newcomer for newcomer in early if newcomer.deadline > now]
        for newcomer in early:
            if newcomer.deadline <= now:
                message = "the listener has just started, and waits for a shard that does not answer"
                rejection = Rejection(ErrorCode.OVERLOADED, message, newcomer.answer_type, retry_after_ms=1000)
                self._farewell.reject(newcomer, rejection)

    def _expire(self) -> None:
        self._timer = None
        if self._early is not None:
            self._expire_early(self._early)
        for done in self._probes.expired(self._clock.time()):
            self._decide(done)
        if len(self):
            self._timer = self._loop.call_later(PROBE_TIMEOUT / 10, self._expire)
