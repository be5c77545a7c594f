"""Texts that may be dear to read: what costs, how often, in what shape, and at what place of a frame's payload."""

from dataclasses import dataclass
from typing import Final

from hypothesis import strategies as st

__all__ = ["Recipe", "recipes"]

MOST_BYTES: Final = 256 * 1024
"""Of one text, about: enough to tell what grows with its square from what grows with its length."""

# What costs an existing reader the most, or has cost it once.
KNOWN_UNITS: Final = [
    b"1e308",
    b"1e290",
    b"1e289",
    b"1E+300",
    b"1.7976931348623157e308",
    b"1e23",
    b"9007199254740993.0",
    b"1e-320",
    b"5e-324",
    b"1e400",
    b"9" * 20,
    b"9" * 64,
    b"9" * 65,
    b"9" * 4000,
    b"0." + b"1" * 64,
    b"0e999999999",
    b"1.5",
    b"257",
    b'""',
    b'"ab"',
    b'"\\u0041"',
    b'"\\n"',
    b'"\\\\\\""',
    b'"\xc3\xa4"',
    b'"\xf0\x9f\x92\xa9"',
    b'"1e308"',
    b'"MWUzMDg="',
    b"[]",
    b"{}",
    b"[[]]",
    b'{"a":1}',
    b'{"a":{"a":{}}}',
    b'{"set":{"name":"a","value":"b"}}',
    b'{"name":"a","value":1e308}',
    b'{"le":1e308,"count":1}',
    b'{"name":"a","sum":1e300,"count":1,"buckets":[{"le":1e300,"count":1}]}',
    b'["a","b"]',
    b"null",
    b"true",
    b"NaN",
    b"\\",
    b'"',
    b" ",
]

# Keys that readers look for, in an order that puts them where they mean something.
PATHS: Final = [
    (),
    ("audit", "custom"),
    ("audit",),
    ("audit", "confidence"),
    ("audit", "tags"),
    ("decision",),
    ("decision", "challenge", "params"),
    ("decision", "block", "headers"),
    ("request_id",),
    ("correlation_id",),
    ("request_headers",),
    ("response_headers",),
    ("routing_metadata",),
    ("request_body_mutation", "data"),
    ("request_body_mutation",),
    ("websocket_decision",),
    ("chunk_index",),
    ("data",),
    ("state",),
    ("custom",),
    ("counters",),
    ("gauges",),
    ("histograms",),
    ("update_type",),
    ("action",),
    ("timestamp",),
    ("sequence",),
    ("headers",),
    ("metadata",),
    ("config",),
    ("reason",),
    ("status",),
    ("protocol_version",),
    ("agent_id",),
    ("auth_token",),
    ("capabilities",),
    ("capabilities", "supported_events"),
    ("capabilities", "features"),
    ("capabilities", "limits"),
    ("error",),
    ("config", "a"),
    ("error_code",),
    ("unknown",),
]

SHAPES: Final = {
    "array": (b"[", b",", b"]"),
    "object": (b'{"":0,', b',"k":', b"}"),
    "text": (b'"', b"", b'"'),
    "bare": (b"", b"", b""),
    "spaced": (b"[", b" , ", b" ]"),
}

FIELDS: Final = (
    b'"request_id":7,"correlation_id":"c","method":"GET","uri":"/","chunk_index":0,"data":"","is_last":true,"status":200',
    b'"protocol_version":2,"agent_id":"a","capabilities":{"handles_request_headers":true}',
    b'"request_id":7,"correlation_id":"c","decision":"allow"',
    b'"state":1,"update_type":{"type":"rule_update"}',
    b'"accepted":true,"assigned_id":"a"',
)


@dataclass(frozen=True)
class Recipe:
    """How a text is made; what fails is shown as this, since the text itself may be long.

    *unit* stands *count* times in *shape* under the keys of *path*, *deep* levels of arrays or objects around it. With
    *repeated* it is not the unit that is repeated, but the last key, with one unit each.
    """

    fields: bytes
    path: tuple[str, ...]
    shape: str
    unit: bytes
    count: int
    deep: int = 0
    objects: bool = False
    distinct: bool = False
    repeated: bool = False

    def text(self) -> bytes:
        """The payload."""
        keys = [key.encode() for key in self.path]
        if self.repeated and keys:
            field = b'"%b":%b' % (keys.pop(), self.unit)
            inner = b"{" + b",".join([field] * self.count) + b"}"
        elif self.distinct:
            inner = b"{" + b",".join(b'"%x":%b' % (number, self.unit) for number in range(self.count)) + b"}"
        else:
            begin, between, end = SHAPES[self.shape]
            inner = begin + between.join([self.unit] * self.count) + end
        opening, closing = (b'{"a":', b"}") if self.objects else (b"[", b"]")
        inner = opening * self.deep + inner + closing * self.deep
        for key in reversed(keys):
            inner = b'{"%b":%b}' % (key, inner)
        if not keys:
            return inner
        # The whole object, with the ordinary fields before it.
        return b"{%b,%b" % (self.fields, inner[1:]) if self.fields else inner


_digits = st.text("0123456789", min_size=1, max_size=30).map(str.encode)
_numbers = st.builds(
    lambda sign, whole, part, exponent: sign + whole + part + exponent,
    st.sampled_from([b"", b"-"]),
    _digits,
    st.one_of(st.just(b""), _digits.map(lambda digits: b"." + digits)),
    st.one_of(st.just(b""), st.integers(-400, 400).map(lambda power: b"e%d" % power)),
)
_units = st.one_of(st.sampled_from(KNOWN_UNITS), _numbers, st.binary(min_size=1, max_size=12))


@st.composite
def recipes(draw: st.DrawFn, most: int = MOST_BYTES) -> Recipe:
    """Recipes of texts up to about *most* bytes."""
    unit = draw(_units)
    length = draw(st.one_of(st.integers(1, 4096), st.integers(1, most)))
    return Recipe(
        draw(st.sampled_from([*FIELDS, b""])),
        draw(st.sampled_from(PATHS)),
        draw(st.sampled_from(sorted(SHAPES))),
        unit,
        max(1, length // (len(unit) + 5)),
        draw(st.one_of(st.just(0), st.integers(0, 80), st.integers(0, most // 8))),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.booleans()),
    )
