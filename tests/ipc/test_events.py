"""Events and commands as they go over the bus, and the names of shards on it."""

import contextlib

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ipc import events
from ipc.events import (
    Closed,
    Command,
    Counts,
    DirectoryRequest,
    Event,
    FullDirectory,
    Gone,
    Heartbeat,
    Kick,
    Probe,
    Probed,
    PushConfig,
    SetLogLevel,
    Snapshot,
    SnapshotRequest,
    Stop,
    decode_command,
    decode_counts,
    decode_event,
    encode,
    identity,
    parse_identity,
)
from ipc.status import ShardReport

numbers = st.integers(0, 2**63 - 1)
floats = st.floats(0, 1e9)
texts = st.text(max_size=10)
connections = st.lists(st.tuples(numbers, texts), max_size=4)
gone = st.builds(Gone, numbers, texts, texts, floats, texts)
by_code = st.dictionaries(st.text(max_size=10), numbers, max_size=3)
counts = st.dictionaries(st.text(max_size=10), st.dictionaries(st.integers(0, 63), numbers, max_size=3), max_size=3)
reports = st.builds(
    ShardReport,
    **{
        field.name: {float: floats, int: numbers, list[str]: st.lists(st.text(max_size=10), max_size=2)}.get(
            field.type, by_code
        )
        for field in msgspec.structs.fields(ShardReport)
    },
)
all_events = st.one_of(
    st.builds(Closed, numbers, st.lists(gone, max_size=4)),
    st.builds(Heartbeat, numbers, reports),
    st.builds(Snapshot, numbers, numbers, connections, connections, connections, st.lists(numbers, max_size=4)),
    st.builds(Probed, numbers, numbers),
    st.builds(DirectoryRequest, numbers),
)
all_commands = st.one_of(
    st.builds(Probe, numbers, st.text(max_size=10)),
    st.builds(SnapshotRequest, numbers),
    st.builds(FullDirectory, numbers, counts),
    st.builds(PushConfig, st.binary(max_size=20), st.lists(st.text(max_size=10), max_size=3)),
    st.builds(Stop, floats),
    st.builds(Kick, st.lists(numbers, max_size=4), floats),
    st.builds(SetLogLevel, texts),
)
BAD_UTF8 = b"\x93\x01\x00\x91\x92\x00\xa1\xff"
DEEP = b"\x94\x01\x00\x90" + b"\x91" * 9000 + b"\xc0"
BAD_AGENT = b"\x93\x0a\x00\xa1\xff"
DEEP_COMMAND = b"\x93\x0c\x00" + b"\x91" * 9000 + b"\xc0"
BAD_COUNTS = b"\x92\x01\x81\xa1\xff\x80"
DEEP_COUNTS = b"\x93\x01\x80" + b"\x91" * 9000 + b"\xc0"


@given(all_events)
def test_decoding_an_encoded_event_gives_the_event(event: Event) -> None:
    assert decode_event(encode(event)) == event
    with pytest.raises(msgspec.MsgspecError):
        decode_command(encode(event))


@given(all_commands)
def test_decoding_an_encoded_command_gives_the_command(command: Command) -> None:
    assert decode_command(encode(command)) == command
    with pytest.raises(msgspec.MsgspecError):
        decode_event(encode(command))


@given(numbers, counts)
def test_decoding_published_counts_gives_the_counts(sequence: int, published: dict[str, dict[int, int]]) -> None:
    assert decode_counts(encode(Counts(sequence, published))) == Counts(sequence, published)


@given(st.binary(max_size=60))
@example(BAD_UTF8)
@example(DEEP)
@example(BAD_AGENT)
@example(DEEP_COMMAND)
@example(BAD_COUNTS)
@example(DEEP_COUNTS)
def test_decoding_any_bytes_raises_what_it_promises(data: bytes) -> None:
    with contextlib.suppress(msgspec.MsgspecError):
        assert isinstance(decode_event(data), Event)
    with contextlib.suppress(msgspec.MsgspecError):
        assert isinstance(decode_command(data), Command)
    with contextlib.suppress(msgspec.MsgspecError):
        assert isinstance(decode_counts(data), Counts)


def test_the_damaged_examples_would_be_whole_without_the_damage() -> None:
    assert decode_event(BAD_UTF8.replace(b"\xff", b"a")) == Closed(0, [Gone(0, "a")])
    assert decode_event(DEEP[:4] + b"\x91\xc0") == Closed(0, [])
    assert decode_command(BAD_AGENT.replace(b"\xff", b"a")) == Probe(0, "a")
    assert decode_command(DEEP_COMMAND[:3] + b"\x91\xc0") == Stop()
    assert decode_counts(BAD_COUNTS.replace(b"\xff", b"a")) == Counts(1, {"a": {}})
    assert decode_counts(DEEP_COUNTS[:3] + b"\x91\xc0") == Counts(1, {})


@given(st.integers(0, 10_000), st.text("0123456789abcdef", min_size=1))
def test_an_identity_tells_shard_and_epoch(shard: int, epoch: str) -> None:
    assert parse_identity(identity(shard, epoch).encode()) == (shard, epoch)


@pytest.mark.parametrize(
    "name",
    [b"", b"/", b"shard-0", b"shard-0/", b"shard-/a", b"shard/a", b"0/a", b"-0/a", b"other-0/a", b"shard-x/a",
     b"shard--1/a", b"shard-\xb2/a", b"\x00\x01\x02\x03\x04"],
)  # fmt: skip
def test_a_name_that_is_no_shards_is_none(name: bytes) -> None:
    assert parse_identity(name) is None


@given(st.binary(max_size=255))
def test_any_name_is_a_shards_or_none(name: bytes) -> None:
    parsed = parse_identity(name)
    assert parsed is None or events.identity(*parsed).partition("/")[2] == parsed[1]
