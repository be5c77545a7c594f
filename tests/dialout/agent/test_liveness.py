"""When a proxy is pinged, and when it counts as dead, with a fake clock."""

from hypothesis import given
from hypothesis import strategies as st

from dialout.agent.liveness import Liveness, Look


def test_first_ping_is_due_at_once_and_the_next_after_the_interval_of_silence() -> None:
    liveness = Liveness(100, 15, 20)

    assert liveness.look(100, heard=False) is Look.PING
    assert liveness.next_look == 115
    liveness.ponged()
    assert liveness.look(115, heard=True) is Look.FINE
    assert liveness.next_look == 130
    assert liveness.look(130, heard=False) is Look.PING


def test_proxy_that_answered_pings_once_is_dead_when_nothing_comes_within_the_timeout() -> None:
    liveness = Liveness(0, 15, 20)
    liveness.look(0, heard=False)
    liveness.ponged()
    liveness.look(15, heard=True)
    assert liveness.look(30, heard=False) is Look.PING

    assert liveness.next_look == 50
    assert liveness.look(49.9, heard=False) is Look.FINE
    assert liveness.look(50, heard=False) is Look.DEAD


def test_anything_that_comes_is_a_sign_of_life() -> None:
    liveness = Liveness(0, 15, 20)
    liveness.look(0, heard=False)
    liveness.ponged()
    liveness.look(15, heard=True)
    liveness.look(30, heard=False)

    assert liveness.look(50, heard=True) is Look.FINE
    assert liveness.next_look == 65


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=50))
def test_proxy_that_never_answers_pings_is_never_dead(steps: list[float]) -> None:
    liveness, now = Liveness(0, 15, 20), 0.0
    for step in steps:
        now += step
        assert liveness.look(now, heard=False) is not Look.DEAD


@given(st.lists(st.tuples(st.floats(0.01, 60), st.booleans()), max_size=60), st.booleans())
def test_a_look_is_always_due_within_the_interval_or_the_timeout(steps: list[tuple[float, bool]], ponged: bool) -> None:
    liveness, now = Liveness(0, 15, 20), 0.0
    if ponged:
        liveness.ponged()
    silent_since = 0.0
    for step, heard in steps:
        look = liveness.look(now, heard=heard)
        silent_since = now if heard else silent_since
        if look is Look.DEAD:
            assert ponged
            assert now - silent_since >= 20
            return
        assert now < liveness.next_look <= now + 20
        now += step
