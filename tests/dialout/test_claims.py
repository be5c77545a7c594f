"""What a registration claims, and that nothing else of it is read before the claim was found good."""

from typing import Any

import msgspec
import pytest

from dialout import ErrorCode, Rejection
from dialout.claims import Claim, read_claim
from dialout.registration import MAX_CAPABILITIES, parse_registration, read_registration

HEAD = b'{"protocol_version":2,"agent_id":"waf-1","auth_token":"t",'

UNREADABLE: dict[str, bytes] = {
    "numbers that no float holds": b"[" + b",".join([b"1e999"] * 2000) + b"]",
    "an integer of 10,000 digits": b"9" * 10_000,
    "500 levels of nesting": b"[" * 500 + b"]" * 500,
    "a wrong type": b'"none"',
}


def payload(**fields: bytes) -> bytes:
    """A registration of waf-1 with these raw values."""
    return HEAD + b",".join(b'"%b":%b' % (name.encode(), value) for name, value in fields.items()) + b"}"


def refusal(reader: Any, *arguments: Any) -> Rejection:
    with pytest.raises(Rejection) as caught:
        reader(*arguments)
    return caught.value


@pytest.mark.parametrize("value", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("field", ["capabilities", "metadata", "supported_versions", "client_name", "made_up"])
@pytest.mark.parametrize("frame_type", [0x01, 0x03])
def test_claim_is_read_whatever_stands_beside_it(frame_type: int, field: str, value: bytes) -> None:
    claim = read_claim(frame_type, payload(**{field: value}))

    assert (claim.agent_id, claim.auth_token) == ("waf-1", "t")


@pytest.mark.parametrize("value", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("field", ["protocol_version", "agent_id", "auth_token"])
def test_claim_that_cannot_be_read_is_refused_for_its_type(field: str, value: bytes) -> None:
    rejection = refusal(read_claim, 0x03, payload(**{field: value if value[:1] != b'"' else b"true"}))

    is_version = field == "protocol_version"
    assert rejection.error_code is (ErrorCode.VERSION_MISMATCH if is_version else ErrorCode.BAD_REGISTRATION)
    assert ("version mismatch" if is_version else f"{field} must be a string") in rejection.message


@pytest.mark.parametrize("field", ["protocol_version", "agent_id", "auth_token"])
def test_only_the_last_of_many_duplicates_is_read(field: str) -> None:
    last = {"protocol_version": b"2", "agent_id": b'"waf-1"', "auth_token": b'"t"'}[field]
    many = b",".join([b'"%b":1e999' % field.encode()] * 1000)

    claim = read_claim(0x03, b"{%b,%b}" % (many, HEAD[1:-1] + b',"%b":%b' % (field.encode(), last)))

    assert (claim.agent_id, claim.auth_token) == ("waf-1", "t")


def test_claim_hides_its_token() -> None:
    claim = read_claim(0x03, payload(auth_token=b'"SECRET"'))

    assert claim.auth_token == "SECRET"
    assert "SECRET" not in repr(claim)


def test_longest_id_in_its_longest_spelling_is_read() -> None:
    spelled = b'"' + b"\\u0061" * 128 + b'"'

    assert read_claim(0x03, payload(agent_id=spelled)).agent_id == "a" * 128
    assert "agent_id must be" in refusal(read_claim, 0x03, payload(agent_id=b'"' + b"\\u0061" * 129 + b'"')).message


def good(**fields: bytes) -> Claim:
    return read_claim(0x01, payload(**({"capabilities": b'{"features":{}}'} | fields)))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"metadata": b"[" + b",".join([b"1e308"] * 2000) + b"]"}, "metadata has more than 8 numbers"),
        ({"metadata": b"9" * 10_000}, "metadata has a number of more than 64 digits"),
        ({"metadata": b"[" * 65 + b"]" * 65}, "metadata has more than 64 levels"),
        ({"metadata": b"{" + b",".join([b'"":1'] * 10_001) + b"}"}, "metadata has more than 10000 keys"),
        ({"capabilities": b'{"features":{},"limits":{"max_body_size":' + b"9" * 2000 + b"}}"}, "more than 64 digits"),
        ({"capabilities": b'{"supported_events":[' + b"1," * 1000 + b"1]}"}, "length <= 256"),
        ({"capabilities": b'{"features":{},"x":"' + b"x" * MAX_CAPABILITIES + b'"}'}, "more than 4096 bytes"),
        ({"capabilities": b'{"features":{},"agent_id":[' + b",".join([b"1e308"] * 300) + b"]}"}, "more than 8 numbers"),
    ],
)
def test_rest_that_is_dear_to_read_is_refused(fields: dict[str, bytes], words: str) -> None:
    rejection = refusal(read_registration, good(**fields))

    assert rejection.error_code is ErrorCode.BAD_REGISTRATION
    assert words in rejection.message


def test_metadata_is_not_decoded_and_decoding_it_is_left_to_its_reader() -> None:
    text = b'{"largest":1e999}'

    assert read_registration(good(metadata=text)).metadata == text
    assert "metadata cannot be read" in refusal(parse_registration, 0x01, payload(
        capabilities=b'{"features":{}}', metadata=text
    )).message  # fmt: skip
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(text)


@pytest.mark.parametrize("inner", [b'"waf-1"', b'"waf-2"', b"7", b'"' + b"x" * 900 + b'"', b"null", None])
def test_id_inside_the_capabilities_is_compared_and_no_more(inner: bytes | None) -> None:
    named = b'{"features":{}}' if inner is None else b'{"features":{},"agent_id":%b}' % inner

    registration = read_registration(good(capabilities=named))

    assert registration.agent_id == "waf-1"
    assert bool(registration.warnings) is (inner not in (b'"waf-1"', b"null", None))
