"""Admission at an agent's limit: which shards are asked, and when it is decided."""

import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from support.engine import run

from dialout import Dialect, ErrorCode, RegistrationRequest, Rejection
from dialout.claims import read_claim
from dialout.frames import FrameDecoder
from ipc.events import Command
from supervisor.admission import Admission
from supervisor.config.model import Config, ReverseConnectionConfig
from supervisor.config.pushed import AgentConfig
from supervisor.ledger import Ledger
from supervisor.newcomer import Newcomer
from supervisor.policy import Policy


class Outcomes:
    """What admission decides: it stands for the handoffs and for the farewell."""

    def __init__(self) -> None:
        self.offered: list[Newcomer] = []
        self.refused: list[Rejection] = []

    def offer(self, newcomer: Newcomer) -> None:
        """Take an offer."""
        self.offered.append(newcomer)

    def reject(self, _newcomer: Newcomer, rejection: Rejection) -> None:
        """Take a refusal."""
        self.refused.append(rejection)


def at_limit(test: Callable[[Admission, Ledger, Outcomes, set[int], Newcomer], Coroutine[Any, Any, None]]) -> None:
    """Run *test* with an agent whose two connections are on shards 0 and 1, and one more that has just come."""

    async def main() -> None:
        ledger, outcomes, reachable = Ledger(2), Outcomes(), {0, 1}
        ledger.adopt("waf", ledger.reserve("other") + 1, 0)
        ledger.adopt("waf", ledger.next_number + 1, 1)

        def send(shard: int, _command: Command) -> bool:
            return shard in reachable

        config = Config(limits=ReverseConnectionConfig(max_connections_per_agent=2, require_auth=False))
        decided: Any = outcomes
        admission = Admission(Policy(config), AgentConfig(()), ledger, decided, decided, send)
        admission.open()
        ours, theirs = socket.socketpair()
        newcomer = Newcomer(ours.detach(), "uds", 1e9)
        try:
            await test(admission, ledger, outcomes, reachable, newcomer)
        finally:
            admission.refuse_all(lambda _: Rejection(ErrorCode.SHUTTING_DOWN, "over", 4))
            newcomer.close()
            theirs.close()

    run(main)


def register(admission: Admission, newcomer: Newcomer) -> None:
    """Have the agent ask for its third connection."""
    ((frame_type, payload),) = FrameDecoder().feed(RegistrationRequest(agent_id="waf").encode(Dialect.SDK))
    newcomer.claim = read_claim(frame_type, payload)
    admission.admit(newcomer, newcomer.claim)


@pytest.mark.parametrize("dead", [0, 1])
def test_agent_whose_shard_has_just_ended_is_not_refused_before_that_is_known(dead: int) -> None:
    async def test(
        admission: Admission, ledger: Ledger, outcomes: Outcomes, reachable: set[int], newcomer: Newcomer
    ) -> None:
        reachable.remove(dead)
        register(admission, newcomer)
        # The other shard holds its connection still.
        admission.probed(1, 1 - dead)
        assert (outcomes.offered, outcomes.refused) == ([], [])
        ledger.drop_shard(dead)
        admission.shard_gone(dead)
        assert (outcomes.offered, outcomes.refused) == ([newcomer], [])

    at_limit(test)


def test_agent_at_its_limit_is_refused_when_all_shards_have_answered() -> None:
    async def test(
        admission: Admission, _ledger: Ledger, outcomes: Outcomes, _reachable: set[int], newcomer: Newcomer
    ) -> None:
        register(admission, newcomer)
        admission.probed(1, 0)
        assert outcomes.refused == []
        admission.probed(1, 1)
        [refused] = outcomes.refused
        assert refused.error_code == "connection_limit"

    at_limit(test)
