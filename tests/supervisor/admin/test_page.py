"""The page: one file that loads nothing and puts in nothing but text."""

import base64
import hashlib
import re

from supervisor.admin.page import page

HTML = page().html.decode()
POLICY = dict(part.split(" ", 1) for part in page().policy.split("; "))
(SCRIPT,) = re.findall(r"<script>(.*?)</script>", HTML, re.DOTALL)


def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_policy_allows_the_one_script_and_the_one_style_and_nothing_from_elsewhere() -> None:
    (style,) = re.findall(r"<style>(.*?)</style>", HTML, re.DOTALL)

    assert POLICY["default-src"] == "'none'"
    assert POLICY["script-src"] == digest(SCRIPT)
    assert POLICY["style-src"] == digest(style)
    assert POLICY["connect-src"] == "'self'"
    assert not re.search(r"unsafe|\*|https?:", page().policy)


def test_page_names_nothing_that_would_have_to_be_loaded() -> None:
    outside = re.sub(r"http://www\.w3\.org/2000/svg", "", HTML)

    assert not re.search(r"https?://|@import|url\(|<(img|iframe|object|embed|base|form)\b|\bsrc=", outside)
    assert re.findall(r'<link [^>]*href="([^:]+):', HTML) == ["data"]


def test_page_has_no_handler_and_no_style_in_its_elements() -> None:
    # The policy would stop them, in silence.
    assert not re.search(r"<[a-z][^>]*\s(on[a-z]+|style)=", HTML)


def test_script_puts_in_text_and_never_html() -> None:
    for way in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "new Function",
        "createContextual",
    ):
        assert way not in SCRIPT


def test_page_says_that_it_needs_javascript_and_where_the_same_is_without() -> None:
    (text,) = re.findall(r"<main>\s*<noscript>(.*?)</noscript>", HTML, re.DOTALL)
    assert "needs JavaScript" in text
    assert re.findall(r'href="([^"]+)"', text) == ["/readyz", "/status.json", "/agents.json"]
    # What only a script fills in is not shown empty.
    assert "body:has(.without)" in HTML


def test_sizes_on_the_page_are_named_for_what_they_are_divided_by() -> None:
    (size,) = re.findall(r"const size = .*", SCRIPT)
    assert re.findall(r"\b[KMG]i?B\b", size) == ["KiB", "MiB", "GiB"]


def test_page_tells_its_language_and_fits_its_window() -> None:
    assert '<html lang="en">' in HTML
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in HTML
    assert "prefers-color-scheme: dark" in HTML
