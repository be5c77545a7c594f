"""Shards import what their supervisor imports, whatever else has the same names."""

import sys
from pathlib import Path

import pytest
from support.product import StartProduct, environment

OURS_FIRST = """
import runpy, sys
sys.path[:0] = sys.argv[1].split(":")
sys.argv[:] = sys.argv[5:]
runpy.run_module("shardgate", run_name="__main__")
"""
"""As ``python -m shardgate`` in a checkout does: what is ours is found there, and not by a variable."""


@pytest.mark.parametrize("flags", [("-P",), ("-I",)], ids=" ".join)
def test_shards_start_although_the_environment_names_a_strange_package(
    start_product: StartProduct, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "__init__.py").write_text("raise ImportError('a strange package')")
    (tmp_path / "shards" / "__main__.py").write_text("raise SystemExit('a strange package')")
    prefix = (sys.executable, *flags, "-c", OURS_FIRST, environment()["PYTHONPATH"])
    product = start_product(shards=1, prefix=prefix, variables={"PYTHONPATH": str(tmp_path)})
    assert [row["restarts"] for row in product.query("status")["shards"]] == [0]
