"""The text of an event beside its kind, for people: at a terminal, and on the status page. Pure."""

from supervisor.history_rows import Event
from supervisor.words import duration, safe


def what(event: Event) -> str:
    """The text of an event beside its kind."""
    text = safe(event.text, 200)
    if event.kind == "registered":
        return f"after {1000 * event.seconds:.0f} ms"
    if event.kind == "closed":
        after = f", after {duration(event.seconds)}" if event.seconds else ""
        more = "" if _says_the_same(text, event.code) else f": {text}"
        return f"{safe(event.code)}{after}{more}"
    return with_code(event.code, event.text) + (f" (from {safe(event.peer)})" if event.peer else "")


def with_code(code: str, text: str) -> str:
    """The code and the text. Without the code when the text begins with the code's words."""
    if text and _says_the_same(text, code):
        return safe(text, 200)
    return ": ".join(filter(None, (safe(code), safe(text, 200))))


def _says_the_same(text: str, code: str) -> bool:
    """Whether a text is empty, or begins with the words of its code."""
    return not text or text.lower().startswith(code.replace("_", " "))
