"""``shardgate send`` in this process, which saves the start of an interpreter."""

import contextlib
import io
import json
import subprocess
import sys
from typing import Any

import pytest

from supervisor.cli.main import main
from support.product import Product


def send(product: Product, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    """Run ``shardgate send`` and return it finished, with its output."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        code = main(["send", *arguments, "--runtime-dir", str(product.runtime_dir)])
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def decided(product: Product, *arguments: str) -> Any:
    """What ``shardgate send --json`` prints about a decision."""
    done = send(product, *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)
