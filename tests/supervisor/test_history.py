"""The history: bounded whatever comes, exact about what is gone, and deaf to made-up agents."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.history import VISIT, History, Limits, peer_key
from supervisor.history_rows import Event

SMALL = Limits(
    agents=5, strangers=6, strangers_of_a_peer=2, events_of_an_agent=3, bytes_by_agent=5000, events=64
)  # fmt: skip

CODES = ("auth_failed", "not_allowed", "timeout")


class World:
    """A history, and the connections that the ledger would know of."""

    def __init__(self, limits: Limits | None = None, began: int = 1000) -> None:
        self.connected: dict[str, set[int]] = {}
        self.history = History(began, lambda agent_id: bool(self.connected.get(agent_id)), limits)
        self.now = 1_700_000_000.0
        self.number = 0

    def register(self, agent_id: str, shard: int = 0) -> int:
        """Accept a connection."""
        self.number += 1
        self.connected.setdefault(agent_id, set()).add(self.number)
        self.history.registered(self.now, agent_id, self.number, shard, 0.001)
        return self.number

    def close(self, agent_id: str, seconds: float = 1.0, text: str = "") -> None:
        """End one of its connections, or one that is not known."""
        numbers = self.connected.get(agent_id) or set()
        number = numbers.pop() if numbers else 0
        self.history.closed(self.now, agent_id, number, 0, "closed_by_agent", seconds, text)

    def visit(self, agent_id: str, seconds: float = 1.0) -> None:
        """Accept a connection and end it."""
        self.register(agent_id)
        self.close(agent_id, seconds)

    def refuse(self, agent_id: str | None, peer: str = "192.0.2.1:5", code: str = "auth_failed") -> None:
        """Refuse a registration."""
        self.history.refused(self.now, agent_id, peer, code, "no")


names = st.sampled_from([f"agent-{n}" for n in range(12)])
peers = st.sampled_from([f"192.0.2.{n}:1" for n in range(5)])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("register"), names),
        st.tuples(st.just("close"), names, st.sampled_from([1.0, 2 * VISIT]), st.text(max_size=300)),
        st.tuples(st.just("refuse"), names, peers, st.sampled_from(CODES)),
        st.tuples(st.just("refuse"), st.none()),
        st.tuples(st.just("shard"), st.integers(0, 3)),
    ),
    max_size=120,
)  # fmt: skip


@given(steps)
def test_history_stays_within_its_limits_and_counts_right_whatever_comes(todo: list[tuple[Any, ...]]) -> None:
    world = World(SMALL)
    for what, *arguments in todo:
        if what == "shard":
            world.history.shard(world.now, arguments[0], "died", "")
        else:
            getattr(world, what)(*arguments)
        world.history.check_invariants()


@given(steps, st.lists(st.integers(1, 9), min_size=1, max_size=30))
def test_a_reader_that_polls_gets_every_event_once_or_is_told_how_many_are_gone(
    todo: list[tuple[Any, ...]], reads: list[int]
) -> None:
    world = World(Limits(events=16))
    began = after = 1000
    events: list[Event] = []
    lost = 0
    total = 0
    for index, (what, *arguments) in enumerate(todo):
        if what == "shard":
            world.history.shard(world.now, arguments[0], "died", "")
        else:
            getattr(world, what)(*arguments)
        total += 1
        if index % 3 == 0:
            page = world.history.since(after, reads[index % len(reads)])
            events += page.events
            lost += page.lost
            after = page.next
            assert page.began == began
    while (page := world.history.since(after, 7)).next != after:
        events += page.events
        lost += page.lost
        after = page.next
    assert len(events) + lost == total
    assert [event.n for event in events] == sorted({event.n for event in events})
    assert after == began + total


def test_a_reader_of_an_earlier_history_learns_that_this_is_another_one() -> None:
    world = World(began=5000)
    world.register("waf")

    page = world.history.since(1234, 10)

    assert (page.began, page.lost, [event.n for event in page.events]) == (5000, 0, [5001])


def test_a_reader_without_a_number_gets_the_newest_and_goes_on_from_there() -> None:
    world = World()
    for n in range(9):
        world.register(f"agent-{n}")
        world.history.shard(world.now, 1, "silent", "")

    page = world.history.since(None, 3)

    assert [(event.kind, event.agent_id) for event in page.events] == [
        ("shard", ""), ("registered", "agent-8"), ("shard", ""),
    ]  # fmt: skip
    assert world.history.since(page.next, 10).events == []


def test_events_are_chosen_by_agent_and_by_shard() -> None:
    world = World()
    world.register("waf", shard=1)
    world.register("auth", shard=2)
    world.history.moved(world.now, "waf", 1, 1, 2)
    world.history.shard(world.now, 2, "running", "")

    assert [event.kind for event in world.history.since(None, 9, agent_id="waf").events] == ["registered", "moved"]
    assert [event.kind for event in world.history.since(1000, 9, shard=2).events] == ["registered", "moved", "shard"]


# ---- who makes up ids


def test_refusals_under_made_up_ids_push_out_no_agent_that_was_accepted() -> None:
    world = World(SMALL)
    world.visit("real", seconds=1.0)
    for n in range(500):
        world.refuse(f"made-up-{n}", peer=f"192.0.2.{n % 250}:1")

    assert world.history.story("real") is not None
    assert [e.agent_id for e in world.history.since(None, 99, agent_id="real").events] == ["real", "real"]
    world.history.check_invariants()


def test_one_peer_that_makes_up_ids_pushes_out_only_its_own() -> None:
    world = World(SMALL)
    world.refuse("new-agent", peer="198.51.100.7:5")
    for n in range(500):
        world.refuse(f"made-up-{n}", peer=f"192.0.2.1:{n}")

    story = world.history.story("new-agent")
    assert story is not None
    assert story.refusals[0].code == "auth_failed"


def test_made_up_ids_that_may_register_push_out_nobody_who_stayed_or_is_connected() -> None:
    world = World(SMALL)
    world.register("connected")
    world.visit("was-here", seconds=VISIT)
    for n in range(100):
        world.visit(f"made-up-{n}", seconds=VISIT / 2)

    assert world.history.story("connected") is not None
    assert world.history.story("was-here") is not None
    world.history.check_invariants()


def test_a_flood_under_an_agents_own_name_is_a_number_and_pushes_nothing_out() -> None:
    world = World()
    world.register("waf")
    for n in range(1000):
        world.now += 1
        world.refuse("waf", code=CODES[n % 2])

    story = world.history.story("waf")
    assert story is not None
    assert [event.kind for event in story.events] == ["registered"]
    assert [(r.code, r.times, r.last_at - r.first_at) for r in story.refusals] == [
        ("auth_failed", 500, 998.0), ("not_allowed", 500, 998.0),
    ]  # fmt: skip


def test_a_shard_that_keeps_dying_pushes_out_only_its_own_past() -> None:
    world = World(Limits(events=64 * 4))
    world.history.shard(world.now, 0, "running", "")
    world.register("waf")
    for _ in range(1000):
        world.history.shard(world.now, 1, "died", "")

    page = world.history.since(None, 1000)
    assert [e.shard for e in page.events if e.kind == "shard"] == [0, 1, 1, 1, 1]
    assert [e.agent_id for e in page.events if e.kind == "registered"] == ["waf"]


def test_long_texts_are_cut_and_cost_agents_their_place_in_the_end() -> None:
    world = World(SMALL)
    for n in range(5):
        for _ in range(3):
            world.register(f"agent-{n}")
            world.close(f"agent-{n}", VISIT, "x" * 10_000)

    assert world.history.bytes_by_agent <= SMALL.bytes_by_agent
    assert 1 <= len(world.history) < 5
    story = world.history.story("agent-4")
    assert story is not None
    assert len(story.events[-1].text) == 200


@pytest.mark.parametrize(
    ("peer", "key"),
    [
        ("uid 1000 pid 4711", "uid 1000"),
        ("192.0.2.1:50000", "192.0.2.1"),
        ("[2001:db8:1:2:3:4:5:6]:50000", "2001:db8:1:2"),
        ("[2001:db8:1:2::9]:50000", "2001:db8:1:2"),
        ("[::1]:50000", "::"),
        ("", ""),
    ],
)
def test_a_peer_is_a_uid_an_address_or_a_host_with_ipv6(peer: str, key: str) -> None:
    assert peer_key(peer) == key
