"""One product for the tests that leave it as they found it."""

from collections.abc import Iterator

import pytest
from support.product import Product, shared_product


@pytest.fixture(scope="module")
def product() -> Iterator[Product]:
    """A shardgate with a Unix socket, a TCP listener and two shards, shared by the tests of a module."""
    with shared_product("--tcp", "127.0.0.1:0", "--max-connections-per-agent", "50") as product:
        yield product
