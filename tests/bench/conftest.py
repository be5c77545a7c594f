"""A folder for each test, where Unix sockets fit in: their paths have 107 bytes, and pytest's own folders many more."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.product import short_folder


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A short path instead of pytest's."""
    with short_folder() as folder:
        yield folder
