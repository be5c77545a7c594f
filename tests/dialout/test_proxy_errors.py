"""The codes of failures and their exceptions."""

import pytest

from dialout import DialoutError
from dialout.proxy import errors as pool_errors
from dialout.proxy.errors import FailureCode, PoolError, pool_error


@pytest.mark.parametrize("code", list(FailureCode))
def test_every_code_has_an_exception_of_its_own(code: FailureCode) -> None:
    error = pool_error(str(code), "because", agent_id="waf", retry_safe=True, shard=3)

    assert type(error) is not PoolError
    assert error.code is code
    assert (str(error), error.agent_id, error.retry_safe, error.shard) == ("because", "waf", True, 3)
    assert isinstance(error, DialoutError)
    assert sum(kind.code == code for kind in PoolError.__subclasses__()) == 1


def test_errors_that_are_raised_before_anything_is_sent_are_safe_to_retry_unless_told_otherwise() -> None:
    unsent = {code for code in FailureCode if pool_error(code, "because").retry_safe}

    assert unsent == {
        FailureCode.AGENT_NOT_FOUND,
        FailureCode.AGENT_UNAVAILABLE,
        FailureCode.AGENT_MOVING,
        FailureCode.FLOW_CONTROL_PAUSED,
        FailureCode.CIRCUIT_OPEN,
        FailureCode.OVERLOADED,
        FailureCode.CANNOT_RECEIVE,
        FailureCode.NO_SHARD,
    }
    assert not any(pool_error(code, "because", retry_safe=False).retry_safe for code in unsent)


def test_unknown_code_is_kept() -> None:
    error = pool_error("moon_phase", "because")

    assert type(error) is PoolError
    assert error.code == "moon_phase"
    assert not error.retry_safe


def test_error_tree_in_docstring_is_the_real_one() -> None:
    classes = {kind.__name__ for kind in PoolError.__subclasses__()}

    drawn = {word for word in (pool_errors.__doc__ or "").split() if word in vars(pool_errors)}
    assert drawn == classes | {"DialoutError", "PoolError"}
    assert classes | {"FailureCode", "FailurePolicy", "PoolError", "pool_error"} == set(pool_errors.__all__)
