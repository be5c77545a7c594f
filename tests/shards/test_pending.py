"""Which call an answer is about: the table of one connection, against a model that looks at every call."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engine import headers

from dialout import Dialect
from shards.calls import Call, Exchange
from shards.pending import MOST_ABANDONED, Pending

NUMBERS = st.integers(0, 5)


def call_with(number: int, name: str, dialect: Dialect) -> Call:
    """A call whose frame is out."""
    call = Call(Exchange("waf"), headers(), lambda *_: None, 0.0, final=True)
    call.request_id, call.correlation_id = number, name
    call.key = name if dialect is Dialect.CORE else number
    return call


@given(
    st.sampled_from(Dialect),
    st.lists(st.tuples(st.sampled_from(["send", "give up", "take", "oldest"]), NUMBERS, NUMBERS), max_size=40),
)
def test_every_answer_takes_the_call_that_it_names_and_each_call_is_taken_once(
    dialect: Dialect, steps: list[tuple[str, int, int]]
) -> None:
    pending = Pending(dialect)
    model: list[Call] = []
    numbers = itertools.count(1)
    for deed, which, form in steps:
        call = model[which % len(model)] if model else None
        if deed == "send":
            number = next(numbers)
            call = call_with(number, f"name-{number}", dialect)
            pending[call.key] = call
            model.append(call)
        elif deed == "give up" and call is not None and not call.done:
            call.done = True
            pending.abandon()
        elif deed == "take" and call is not None:
            names = {Dialect.CORE: (None, call.correlation_id), Dialect.SDK: (call.request_id, None)}
            docs = ((call.request_id, None), (None, call.correlation_id), (call.request_id, call.correlation_id))
            assert pending.take(*names.get(dialect, docs[form % 3])) is call
            model.remove(call)
            assert pending.take(*names.get(dialect, docs[form % 3])) is None
        elif deed == "oldest":
            taken = pending.take_oldest()
            if dialect is Dialect.CORE and len(model) > 1:
                assert taken is None, "nobody can tell which"
            else:
                assert taken is (model.pop(0) if model else None)
        assert list(pending.values()) == model
        assert pending.abandoned == sum(call.done for call in model)
        assert pending.take(None, None) is None


@pytest.mark.parametrize("dialect", Dialect)
def test_calls_given_up_are_forgotten_when_there_are_too_many_and_those_that_wait_are_not(dialect: Dialect) -> None:
    pending = Pending(dialect)
    for number in range(1, MOST_ABANDONED + 2):
        call = call_with(number, f"name-{number}", dialect)
        pending[call.key] = call
        waits = call_with(-number, f"waits-{number}", dialect)
        pending[waits.key] = waits
        call.done = True
        pending.abandon()
        assert pending.abandoned == (number if number <= MOST_ABANDONED else 0)
    assert [call.done for call in pending.values()] == [False] * (MOST_ABANDONED + 1)
