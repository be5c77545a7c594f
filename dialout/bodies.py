"""Tell from its headers alone whether a message has a body."""

from dialout.events import Headers

__all__ = ["body_by_headers"]

_LENGTH, _CODING = "content-length", "transfer-encoding"


def body_by_headers(headers: Headers) -> bool | None:
    """Whether the headers announce a body. None when they do not tell, or make no sense.

    Any Transfer-Encoding announces one, and so does a Content-Length above 0. A Content-Length of 0 denies it
    (RFC 9112, section 6.3). Their absence means nothing: HTTP/2 messages need neither. The case of names is ignored.
    """
    found: bool | None = None
    for name, values in headers.items():
        # The length is compared first. Lowering every name would take as long as decoding the frame.
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
