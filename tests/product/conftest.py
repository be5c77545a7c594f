"""One product for the tests that leave it as they found it."""

from collections.abc import Iterator

import pytest
from support.product import Product, short_folder


@pytest.fixture(scope="module")
def product() -> Iterator[Product]:
    """A shardgate with a Unix socket, a TCP listener and two shards, shared by the tests of a module."""
    with short_folder() as folder:
        product = Product(folder / "p", "--tcp", "127.0.0.1:0", "--max-connections-per-agent", "50")
        try:
            yield product
        finally:
            leftovers = product.end()
    assert leftovers == []
