"""The errors of registering: one for each code, and nothing raw in their words."""

import pytest

from dialout import (
    AuthFailed,
    ConnectionLimit,
    DialoutError,
    ErrorCode,
    NotAllowed,
    NotConnected,
    RegistrationError,
    RegistrationResponse,
    RegistrationTimeout,
    VersionMismatch,
)
from dialout.agent import errors
from dialout.agent.errors import printable, registration_error


def refusal(code: ErrorCode | None, **fields: object) -> RegistrationError:
    return registration_error(RegistrationResponse(accepted=False, error_code=code, **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_code_has_an_exception_of_its_own_that_carries_it(code: ErrorCode) -> None:
    error = refusal(code, error="because", retry_after_ms=1500)

    assert type(error) is not RegistrationError
    assert (error.error_code, error.retry_after) == (code, 1.5)
    assert str(error).startswith(f"{code}: because")
    assert isinstance(error, NotConnected)
    assert isinstance(error, DialoutError)


def test_each_row_of_the_documents_table_has_its_name() -> None:
    named = {ErrorCode.VERSION_MISMATCH: VersionMismatch, ErrorCode.AUTH_FAILED: AuthFailed,
             ErrorCode.NOT_ALLOWED: NotAllowed, ErrorCode.CONNECTION_LIMIT: ConnectionLimit,
             ErrorCode.TIMEOUT: RegistrationTimeout}  # fmt: skip
    for code, kind in named.items():
        assert type(refusal(code)) is kind


def test_refusal_without_a_known_code_is_a_plain_registration_error() -> None:
    error = refusal(None, error="Protocol version mismatch: expected 2, got 1")

    assert type(error) is RegistrationError
    assert (error.error_code, error.retry_after) == (None, None)
    assert str(error) == "refused: Protocol version mismatch: expected 2, got 1"


def test_words_of_the_proxy_are_escaped_and_bounded() -> None:
    error = refusal(ErrorCode.NOT_ALLOWED, error="no\x1b[2J\n\u202e" + "x" * 10_000)

    assert str(error).isascii()
    assert str(error).isprintable()
    assert len(str(error)) < 400
    assert printable('it\'s "fine"') == 'it\'s "fine"'.replace("'", "\\'")
    assert printable("ok" * 3, 4) == "okok..."


def test_error_tree_in_docstring_is_the_real_one() -> None:
    drawn = {word for word in (errors.__doc__ or "").split() if word in vars(errors) and word != "DialoutError"}
    classes = {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}

    assert drawn == classes
