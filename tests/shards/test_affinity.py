"""The bounded table against a model that looks at everything."""

from hypothesis import given
from hypothesis import strategies as st

from shards.affinity import RecentTable

CAPACITY = 3
IDLE = 10.0

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "get", "pop", "sweep", "take_all"]),
        st.integers(0, 5),
        st.sampled_from([0.0, 1.0, 9.0, 10.0, 11.0]),
    ),
    max_size=60,
)


@given(STEPS)
def test_table_is_bounded_forgets_what_is_idle_and_drops_the_least_recently_used(
    steps: list[tuple[str, int, float]],
) -> None:
    table: RecentTable[int, str] = RecentTable(CAPACITY, IDLE)
    model: dict[int, tuple[str, float]] = {}
    now = 0.0
    for number, (deed, key, wait) in enumerate(steps):
        now += wait
        value = f"value {number}"
        if deed == "put":
            dropped = None
            if key not in model and len(model) == CAPACITY:
                # Insertion and use both move an entry to the end; times alone may be equal.
                dropped, _ = model.pop(next(iter(model)))
            model.pop(key, None)
            model[key] = (value, now)
            assert table.put(key, value, now) == dropped
        elif deed == "get":
            found, _ = model.pop(key, (None, now))
            if found is not None:
                model[key] = (found, now)
            assert table.get(key, now) == found
        elif deed == "pop":
            assert table.pop(key) == model.pop(key, (None, 0.0))[0]
        elif deed == "sweep":
            old = [key for key, (_, used) in model.items() if now - used > IDLE]
            assert table.sweep(now) == [model.pop(key)[0] for key in old]
        else:
            assert table.take_all() == [found for found, _ in model.values()]
            model.clear()
        assert len(table) == len(model) <= CAPACITY


def test_use_keeps_an_entry_alive_beyond_its_idle_time() -> None:
    table: RecentTable[str, int] = RecentTable(CAPACITY, IDLE)
    table.put("a", 1, 0.0)
    for now in (8.0, 16.0, 24.0):
        assert table.get("a", now) == 1
    assert table.sweep(34.0) == []
    assert table.sweep(34.1) == [1]
    assert table.get("a", 34.1) is None
