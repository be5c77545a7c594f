"""What goes over a handoff channel, as bytes: whatever comes, a message or an error."""

import contextlib
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dialout import Capabilities, Dialect, HealthState
from ipc import messages
from ipc.messages import (
    ChannelError,
    Commit,
    Declined,
    Entrust,
    Established,
    Hello,
    Kept,
    KeptListener,
    Message,
    MoveOut,
    Moving,
    Offer,
    Prepare,
    Prepared,
    Refuse,
    Revoke,
    Staying,
    TakeBack,
    decode,
    encode,
)

numbers = st.integers(0, 2**63 - 1)
texts = st.text(max_size=20)
blobs = st.binary(max_size=40)
capabilities = st.builds(
    Capabilities, events=st.integers(0, 255), max_concurrent=st.none() | numbers, websocket=st.booleans()
)
states = st.builds(
    Established,
    left_at=st.floats(0, 1e9), ticket=numbers, connected_at=st.floats(0, 1e10), frames=numbers, frames_ignored=numbers,
    errors=numbers, health=st.none() | st.sampled_from(HealthState), paused=st.booleans(), pinged_at=st.floats(0, 1e9),
    ping_mark=numbers, answers_pings=st.booleans(),
)  # fmt: skip
offers = st.builds(
    Offer,
    number=numbers, agent_id=texts, dialect=st.sampled_from(Dialect), capabilities=capabilities, transport=texts,
    metadata=blobs, residue=blobs, unsent=blobs, state=st.none() | states,
)  # fmt: skip
kept_listeners = st.lists(
    st.builds(
        KeptListener,
        kind=st.sampled_from(["uds", "tcp"]), address=texts, file=st.none() | st.tuples(numbers, numbers, numbers),
        inherited=st.booleans(),
    ),
    max_size=3,
)  # fmt: skip
any_message: st.SearchStrategy[Message] = st.one_of(
    st.builds(Hello, shard=numbers, epoch=texts, pid=numbers),
    st.builds(Prepare, batch=numbers, offers=st.lists(offers, max_size=3)),
    st.builds(Commit, numbers=st.lists(numbers)),
    st.builds(Revoke, numbers=st.lists(numbers)),
    st.builds(Refuse, numbers=st.lists(numbers)),
    st.builds(Prepared, batch=numbers),
    st.builds(Declined, batch=numbers, reason=texts),
    st.builds(MoveOut, numbers=st.lists(numbers), seconds=st.floats(0, 1e6), force=st.booleans()),
    st.builds(Moving, offers=st.lists(offers, max_size=3)),
    st.builds(Staying, numbers=st.lists(numbers)),
    st.builds(Entrust, listeners=kept_listeners, orphan_timeout=st.floats(0, 1e6)),
    st.just(TakeBack()),
    st.builds(Kept, listeners=kept_listeners),
)


@given(any_message)
def test_decoding_what_was_encoded_gives_the_message(message: Message) -> None:
    assert decode(encode(message)) == message
    # The channel's buffer is used again for the next message.
    buffer = bytearray(encode(message))
    decoded = decode(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert decoded == message
    assert type(decoded) is type(message)


@given(st.one_of(st.binary(max_size=60), st.binary(max_size=60).map(lambda data: messages.VERSION + data)))
@example(b"")
@example(b"\x02\x94\x00\x00\xa1\xff\x01")
@example(b"\x02\x95\x00\x00\xa0\x01" + b"\x91" * 100_000)
def test_decoding_any_bytes_raises_channel_error_or_gives_a_message(data: bytes) -> None:
    with contextlib.suppress(ChannelError):
        assert isinstance(decode(data), Message)


@given(any_message, st.data())
def test_decoding_a_damaged_message_raises_channel_error_or_gives_a_message(message: Message, data: Any) -> None:
    encoded = bytearray(encode(message))
    position = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(ChannelError):
        decode(encoded[:position])
    encoded[position] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ChannelError):
        assert isinstance(decode(encoded), Message)
