"""The page for operators: one file, which loads nothing else. Only its own script and style may run."""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Page(NamedTuple):
    """The page's HTML and the Content-Security-Policy that fits it."""

    html: bytes
    policy: str


@cache
def page() -> Page:
    """Read the page and make its policy, which allows the one script and the one style by their digests."""
    html = Path(__file__).with_name("page.html").read_text("utf-8")
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_digest('script', html)}",
            f"style-src {_digest('style', html)}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        )
    )
    return Page(html.encode(), policy)


def _digest(tag: str, html: str) -> str:
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
