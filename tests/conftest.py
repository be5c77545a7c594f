"""Fixtures for all tests, and the path to what they share."""

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import uvloop

sys.path.insert(0, str(Path(__file__).parent))

from support.fences import descriptors, new_descriptors
from support.product import Product, StartProduct, short_folder

hypothesis.settings.register_profile("ci", deadline=None, max_examples=50, derandomize=False)
hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(scope="session", autouse=True)
def first_loop() -> None:
    """Let uvloop open what it keeps for the life of the process, so that no test is blamed for it."""

    async def nothing() -> None:
        pass

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(nothing())


@pytest.fixture
def start_product() -> Iterator[StartProduct]:
    """Start shardgates in folders of their own; all are stopped, and all that they left is found, at the end."""
    products: list[Product] = []
    before = descriptors()
    with short_folder() as folder:

        def start(*options: str, **keywords: object) -> Product:
            product = Product(folder / str(len(products)), *options, **keywords)  # type: ignore[arg-type]
            products.append(product)
            return product

        try:
            yield start
        finally:
            leftovers = [line for product in products for line in product.end()]
    assert leftovers == []
    assert new_descriptors(before) == []
