"""A fence against leaks around every test of a shard's parts, and a whole shard."""

import signal
from collections.abc import Iterator

import pytest
from support.fences import descriptors, new_descriptors
from support.product import short_folder
from support.shard_process import ShardProcess


@pytest.fixture(autouse=True)
def no_descriptor_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test leaves one; those that share a product have a fence of their own around it."""
    if "product" in request.fixturenames:
        yield
        return
    before = descriptors()
    yield
    assert new_descriptors(before) == []


@pytest.fixture
def shard() -> Iterator[ShardProcess]:
    """A running shard; its end is orderly."""
    with short_folder() as folder:
        shard = ShardProcess(folder)
        try:
            yield shard
        finally:
            shard.channel.close()
            shard.process.send_signal(signal.SIGTERM)
            assert shard.process.wait(15) == 0
            assert [path.name for path in folder.iterdir() if path.is_socket()] == []
