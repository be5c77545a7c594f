"""Cutting streams into frames, however they arrive."""

import sys
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialout import (
    MAX_FRAME_LENGTH,
    FrameDecoder,
    FrameError,
    LocalProtocolError,
    OversizedFrame,
    TruncatedFrame,
    ZeroLengthFrame,
    encode_frame,
)

FRAME = b"\x00\x00\x00\x03\x20{}"
frames_lists = st.lists(st.tuples(st.integers(0, 255), st.binary(min_size=1, max_size=300)), max_size=8)


def pieces(stream: bytes, cuts: list[int]) -> Iterator[bytes]:
    return (stream[a:b] for a, b in pairwise([0, *sorted(cuts), len(stream)]))


@st.composite
def cut_streams(draw: st.DrawFn) -> tuple[list[tuple[int, bytes]], list[bytes]]:
    frames = draw(frames_lists)
    stream = b"".join(encode_frame(frame_type, payload) for frame_type, payload in frames)
    cuts = draw(st.lists(st.integers(0, len(stream)), max_size=20))
    return frames, list(pieces(stream, cuts))


@given(cut_streams(), st.sampled_from([bytes, bytearray, memoryview]))
def test_decoder_returns_same_frames_however_stream_is_cut(
    cut: tuple[list[tuple[int, bytes]], list[bytes]],
    kind: type[bytes] | type[bytearray] | type[memoryview],
) -> None:
    frames, reads = cut
    decoder = FrameDecoder()
    seen = [frame for read in reads for frame in decoder.feed(kind(read))]
    assert seen == frames
    assert all(type(payload) is bytes for _, payload in seen)
    assert decoder.buffered == 0
    decoder.feed_eof()


def test_decoder_returns_frames_fed_byte_by_byte() -> None:
    decoder = FrameDecoder()
    stream = FRAME + b"\x00\x00\x00\x01\x41" + FRAME
    seen = [(at, frame) for at in range(len(stream)) for frame in decoder.feed(stream[at : at + 1])]
    assert seen == [(6, (0x20, b"{}")), (11, (0x41, b"")), (18, (0x20, b"{}"))]


def test_decoder_copies_payload_out_of_reused_buffer() -> None:
    buffer = bytearray(FRAME)
    [(_, payload)] = FrameDecoder().feed(memoryview(buffer))
    buffer[5:] = b"xx"
    assert payload == b"{}"


def test_decoder_holds_partial_frame_apart_from_reused_buffer() -> None:
    decoder = FrameDecoder()
    buffer = bytearray(FRAME[:6])
    assert decoder.feed(memoryview(buffer)) == []
    buffer[:] = b"xxxxxx"
    assert decoder.feed(FRAME[6:]) == [(0x20, b"{}")]


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_decoder_raises_only_frame_errors_whatever_comes(reads: list[bytes]) -> None:
    decoder = FrameDecoder(max_length=64)
    fed = b""
    seen: list[tuple[int, bytes]] = []
    try:
        for read in reads:
            fed += read
            seen += decoder.feed(read)
        decoder.feed_eof()
    except FrameError as error:
        seen += error.frames
    # Whatever happened, the frames are the front of the stream: none lost, none made up.
    front = b"".join((len(body) + 1).to_bytes(4) + bytes([kind]) + body for kind, body in seen)
    assert fed.startswith(front)


@given(st.lists(st.integers(0, len(FRAME) * 2 + 4), max_size=6))
def test_decoder_keeps_complete_frames_when_bad_length_follows(cuts: list[int]) -> None:
    decoder = FrameDecoder()
    seen: list[tuple[int, bytes]] = []
    with pytest.raises(OversizedFrame) as raised:  # noqa: PT012 - which feed raises depends on the cuts
        for read in pieces(FRAME + FRAME + b"\x01\x00\x00\x01", cuts):
            seen += decoder.feed(read)
    assert [*seen, *raised.value.frames] == [(0x20, b"{}"), (0x20, b"{}")]
    assert (raised.value.length, raised.value.limit) == (MAX_FRAME_LENGTH + 1, MAX_FRAME_LENGTH)


def test_decoder_refuses_frame_above_its_own_limit_and_takes_one_at_it() -> None:
    assert FrameDecoder(max_length=3).feed(FRAME) == [(0x20, b"{}")]
    with pytest.raises(OversizedFrame):
        FrameDecoder(max_length=2).feed(FRAME)


@pytest.mark.parametrize("bad", [b"\x00\x00\x00\x00", b"\x01\x00\x00\x01"])
@pytest.mark.parametrize("behind", [b"", b"\x20", FRAME])
def test_decoder_refuses_bad_length_whatever_stands_behind_it(bad: bytes, behind: bytes) -> None:
    with pytest.raises(FrameError) as raised:
        FrameDecoder().feed(FRAME + bad + behind)
    assert raised.value.frames == [(0x20, b"{}")]


@pytest.mark.parametrize("bad", [b"\x00\x00\x00\x00", b"\x01\x00\x00\x01"])
@pytest.mark.parametrize("first", [b"", b"\x00"])
def test_decoder_takes_nothing_more_after_error(first: bytes, bad: bytes) -> None:
    decoder = FrameDecoder()
    decoder.feed(bad[: len(first)])
    with pytest.raises(FrameError):
        decoder.feed(bad[len(first) :])
    assert decoder.buffered == 0
    with pytest.raises(LocalProtocolError):
        decoder.feed(FRAME)
    decoder.feed_eof()


@pytest.mark.parametrize("held", range(1, len(FRAME)))
def test_decoder_reports_eof_inside_frame_after_any_byte(held: int) -> None:
    decoder = FrameDecoder()
    assert decoder.feed(FRAME[:held]) == []
    assert decoder.buffered == held
    with pytest.raises(TruncatedFrame):
        decoder.feed_eof()
    assert decoder.buffered == 0


@pytest.mark.parametrize("length", [0, MAX_FRAME_LENGTH + 1, 0xFFFF_FFFF])
@pytest.mark.parametrize("split", [0, 2])
def test_decoder_allocates_nothing_for_bad_length(length: int, split: int) -> None:
    header = length.to_bytes(4)
    decoder = FrameDecoder()
    decoder.feed(header[:split])
    tracemalloc.start()
    try:
        with pytest.raises(ZeroLengthFrame if length == 0 else OversizedFrame):
            decoder.feed(header[split:])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32_768


def test_decoder_reserves_nothing_for_largest_legal_length() -> None:
    decoder = FrameDecoder()
    tracemalloc.start()
    try:
        decoder.feed(MAX_FRAME_LENGTH.to_bytes(4) + b"\x10")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert decoder.buffered == 5
    assert peak < 32_768


def test_decoder_holds_little_while_idle_and_lets_go_of_large_buffer() -> None:
    decoder = FrameDecoder()
    idle = sys.getsizeof(decoder)
    assert idle <= 64
    payload = b"x" * (MAX_FRAME_LENGTH - 1)
    stream = memoryview(encode_frame(0x10, payload))
    tracemalloc.start()
    try:
        frames: list[tuple[int, bytes]] = []
        for start in range(0, len(stream), 65_536):
            frames += decoder.feed(stream[start : start + 65_536])
        assert frames == [(0x10, payload)]
        frames.clear()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 32_768
    assert decoder.buffered == 0
    assert not any(isinstance(getattr(decoder, slot), bytearray) for slot in FrameDecoder.__slots__)


def test_decoder_copies_no_more_than_linearly_when_large_frame_comes_in_pieces() -> None:
    decoder = FrameDecoder()
    stream = memoryview(encode_frame(0x10, b"x" * (MAX_FRAME_LENGTH - 1)))
    tracemalloc.start()
    try:
        buffers = set()
        for start in range(0, len(stream) - 65_536, 65_536):
            decoder.feed(stream[start : start + 65_536])
            buffers.add(id(decoder._buffer))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # One buffer grows in place; a fresh one for every piece would be 255 copies of up to 16 MiB.
    assert len(buffers) == 1
    assert peak < 1.25 * MAX_FRAME_LENGTH


@given(st.integers(0, 255), st.binary(min_size=1, max_size=200))
def test_encoder_and_decoder_agree(frame_type: int, payload: bytes) -> None:
    assert FrameDecoder().feed(encode_frame(frame_type, payload)) == [(frame_type, payload)]


def test_encoder_writes_empty_object_for_empty_payload() -> None:
    assert encode_frame(0x20) == encode_frame(0x20, b"") == FRAME


def test_encoder_takes_payload_at_limit_and_refuses_one_above() -> None:
    frame = encode_frame(0x10, b"x" * (MAX_FRAME_LENGTH - 1))
    assert frame[:5] == b"\x01\x00\x00\x00\x10"
    with pytest.raises(LocalProtocolError, match="16777215"):
        encode_frame(0x10, b"x" * MAX_FRAME_LENGTH)


@pytest.mark.parametrize("frame_type", [-1, 256])
def test_encoder_refuses_type_that_is_no_byte(frame_type: int) -> None:
    with pytest.raises(LocalProtocolError, match="one byte"):
        encode_frame(frame_type)
