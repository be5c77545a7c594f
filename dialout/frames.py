"""Cut a byte stream into frames, and build frames.

A frame is a big-endian u32 length, one type byte, and a JSON payload. The length counts the type byte and the payload,
not itself. It is 1 to 16 MiB. All dialects of the protocol use the same framing.
"""

from collections.abc import Sequence
from struct import Struct
from typing import Final

from dialout.errors import LocalProtocolError, OversizedFrame, TruncatedFrame, ZeroLengthFrame

__all__ = ["MAX_FRAME_LENGTH", "FrameDecoder", "encode_frame"]

MAX_FRAME_LENGTH: Final = 16 * 1024 * 1024
"""The largest legal length field. The largest payload is one byte less."""

HEADER: Final = Struct(">IB")
_LENGTH: Final = Struct(">I")


def encode_frame(frame_type: int, payload: bytes = b"{}") -> bytes:
    """Build one whole frame. An empty payload becomes ``{}``, which all known agents can parse.

    Raises LocalProtocolError when the payload is above ``MAX_FRAME_LENGTH - 1`` bytes or the type is not a byte. A
    reader of such a frame would drop the connection.
    """
    if not payload:
        payload = b"{}"
    length = len(payload) + 1
    if length > MAX_FRAME_LENGTH:
        raise LocalProtocolError(f"a payload of {length - 1} bytes is above {MAX_FRAME_LENGTH - 1}")
    if not 0 <= frame_type <= 0xFF:
        raise LocalProtocolError(f"{frame_type} is not a frame type: types are one byte")
    return HEADER.pack(length, frame_type) + payload


class FrameDecoder:
    """Assemble complete frames from the reads of one connection.

    Between frames it holds no buffer. The buffer of a large frame is freed with the frame. Inside a frame it holds only
    the bytes that have arrived; a length field reserves no memory. ``limit`` is the largest length field that is legal
    from now on. A new limit does not apply to a frame with a length that is already known. ``wanted`` is the size that
    the buffer must reach before the decoder can continue. It is 0 between frames and -1 after a FrameError.
    """

    __slots__ = ("_buffer", "limit", "wanted")

    def __init__(self, max_length: int = MAX_FRAME_LENGTH) -> None:
        self.limit = max_length
        # The bytes of an incomplete frame, its length field included.
        self._buffer: bytearray | None = None
        # The size that _buffer must reach before the decoder continues: 4 until the length is known.
        # 0 between frames, -1 after a FrameError.
        self.wanted = 0

    @property
    def buffered(self) -> int:
        """Bytes held of an incomplete frame; 0 between frames."""
        return 0 if self._buffer is None else len(self._buffer)

    @property
    def incomplete(self) -> bytes:
        """A copy of the held bytes of an incomplete frame. Another decoder fed with them continues the frame."""
        return b"" if self._buffer is None else bytes(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> list[tuple[int, bytes]]:
        """Take one read and return the (type, payload) frames that it completes, in order.

        The payloads are copies, so the caller may reuse the receive buffer behind ``data`` at once. Raises
        ZeroLengthFrame or OversizedFrame as soon as a bad length field is complete. ``error.frames`` holds the frames
        that came before it in the same feed. Any later feed raises LocalProtocolError, since the frame boundaries are
        lost.
        """
        frames: list[tuple[int, bytes]] = []
        position = 0
        if self.wanted:
            position = self._resume(data, frames)
            if self.wanted:
                return frames
        if type(data) is not bytes:
            # A slice of bytes makes one object for each payload, a slice of a view makes two. With small frames, one
            # copy of the whole read costs less than the second objects.
            data, position = bytes(memoryview(data)[position:]), 0
        end = len(data)
        limit = self.limit
        unpack = HEADER.unpack_from
        while end - position >= 5:
            length, frame_type = unpack(data, position)
            stop = position + 4 + length
            if stop > end or not 0 < length <= limit:
                break
            frames.append((frame_type, data[position + 5 : stop]))
            position = stop
        if position < end:
            self._keep(data, position, frames)
        return frames

    def feed_eof(self) -> None:
        """Note the end of the stream. Raises TruncatedFrame when it ended inside a frame."""
        if self._buffer is not None:
            held, self._buffer, self.wanted = len(self._buffer), None, -1
            raise TruncatedFrame(f"the stream ended inside a frame, {held} bytes after it began")

    def _resume(self, data: bytes | bytearray | memoryview, frames: list[tuple[int, bytes]]) -> int:
        """Continue the incomplete frame, and append it if it is complete. Returns the bytes taken from ``data``."""
        buffer = self._buffer
        if buffer is None:
            raise LocalProtocolError("the stream is out of step after a FrameError: close the connection")
        view = memoryview(data)
        position = 0
        if self.wanted == 4:
            position = min(4 - len(buffer), len(view))
            buffer += view[:position]
            if len(buffer) < 4:
                return position
            self.wanted = 4 + self._checked(_LENGTH.unpack(buffer)[0], frames)
        stop = min(position + self.wanted - len(buffer), len(view))
        buffer += view[position:stop]
        if len(buffer) == self.wanted:
            self._buffer, self.wanted = None, 0
            with memoryview(buffer) as whole:
                frames.append((whole[4], bytes(whole[5:])))
        return stop

    def _keep(self, data: bytes | bytearray | memoryview, position: int, frames: list[tuple[int, bytes]]) -> None:
        """Hold the incomplete frame at ``position``. Raises FrameError if its length is known and not legal."""
        if len(data) - position >= 4:
            self.wanted = 4 + self._checked(_LENGTH.unpack_from(data, position)[0], frames)
        else:
            self.wanted = 4
        self._buffer = bytearray(memoryview(data)[position:])

    def _checked(self, length: int, frames: Sequence[tuple[int, bytes]]) -> int:
        if 0 < length <= self.limit:
            return length
        self._buffer, self.wanted = None, -1
        if length == 0:
            raise ZeroLengthFrame("the peer sent a frame of length 0", frames)
        raise OversizedFrame(length, self.limit, frames)
