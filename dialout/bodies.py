"""Whether a message has a body, by its headers alone."""

from dialout.events import Headers

__all__ = ["body_by_headers"]

_LENGTH, _CODING = "content-length", "transfer-encoding"


def body_by_headers(headers: Headers) -> bool | None:
    """Whether the headers say that a body follows; None where they say nothing, or nothing that makes sense.

    Any Transfer-Encoding does, and a Content-Length above 0; a Content-Length of 0 says that there is none (RFC 9112,
    section 6.3). Their absence says nothing: HTTP/2 messages need neither. Names are taken in any case.
    """
    found: bool | None = None
    for name, values in headers.items():
        # By their length first: to lower every name would take as long as to decode the frame.
        if len(name) == len(_CODING) and name.lower() == _CODING:
            return True
        if len(name) == len(_LENGTH) and name.lower() == _LENGTH:
            sizes = [part.strip() for value in values for part in value.split(",")]
            if not all(size.isascii() and size.isdecimal() for size in sizes):
                continue
            if any(size.strip("0") for size in sizes):
                found = True
            elif found is None and sizes:
                found = False
    return found
