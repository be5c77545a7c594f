"""Whether there is a body, by the headers alone."""

import pytest

from dialout import Dialect, FrameDecoder, Headers, RequestHeaders, ResponseHeaders, codec_for
from dialout.bodies import body_by_headers

CORE = codec_for(Dialect.CORE)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"content-length": ["1"]}, True),
        ({"Content-Length": ["0010"]}, True),
        ({"CONTENT-LENGTH": ["5, 5"]}, True),
        ({"transfer-encoding": ["chunked"]}, True),
        ({"content-length": ["0"], "Transfer-Encoding": ["chunked"]}, True),
        ({"content-length": ["0"], "Content-Length": ["7"]}, True),
        ({"content-length": ["0"]}, False),
        ({"content-length": ["00"]}, False),
        ({}, None),
        ({"host": ["a"], "content-type": ["text/plain"], "content-lengthy": ["5"]}, None),
        ({"content-length": []}, None),
        ({"content-length": ["x"]}, None),
        ({"content-length": ["-1"]}, None),
        ({"content-length": ["\u0665"]}, None),
        ({"content-length": [""]}, None),
    ],
)
def test_headers_say_whether_there_is_a_body_or_say_nothing(headers: Headers, expected: bool | None) -> None:
    assert body_by_headers(headers) is expected


@pytest.mark.parametrize("event", [RequestHeaders("POST", "/", {}, True), ResponseHeaders(200, {}, True)])
@pytest.mark.parametrize(
    ("headers", "has_body", "read"),
    [
        ({"content-length": ["3"]}, True, True),
        ({"content-length": ["0"]}, False, False),
        ({}, True, True),
        ({}, False, None),
        ({}, None, None),
    ],
)
def test_core_agents_know_of_a_body_by_the_headers_or_by_a_further_key(
    event: RequestHeaders | ResponseHeaders, headers: Headers, has_body: bool | None, read: bool | None
) -> None:
    written = (
        RequestHeaders("POST", "/", headers, has_body)
        if isinstance(event, RequestHeaders)
        else ResponseHeaders(200, headers, has_body)
    )
    frame = CORE.encode_event(written, request_id=1, correlation_id="c1", now="")
    [(frame_type, payload)] = FrameDecoder().feed(frame)
    _, _, found = CORE.decode_event(frame_type, payload)
    assert isinstance(found, type(event))
    assert found.has_body is read
    # What the headers tell is in stock frames already.
    assert (b"has_body" in payload) is (has_body is True and not headers)
