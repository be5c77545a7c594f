"""A fence against leaks around every test of a shard's parts."""

from collections.abc import Iterator

import pytest
from support.fences import descriptors, new_descriptors


@pytest.fixture(autouse=True)
def no_descriptor_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test leaves one; those that share a product have a fence of their own around it."""
    if "product" in request.fixturenames:
        yield
        return
    before = descriptors()
    yield
    assert new_descriptors(before) == []
