"""Where deploy/ is, and the programs that check it."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture(scope="session")
def deploy() -> Path:
    """The folder deploy/."""
    return DEPLOY


def find_tool(name: str) -> str:
    """The path of a program, beside this interpreter or on the path.

    Without it the test is skipped; it fails where ``SHARDGATE_TOOLS=required`` says that all are there, as in CI.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    found = shutil.which(name, path=path)
    if found is not None:
        return found
    if os.environ.get("SHARDGATE_TOOLS") == "required":
        pytest.fail(f"{name} is not installed; 'make deploy-tools' and the packages named in .ci/run bring it")
    pytest.skip(f"{name} is not installed")


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """`find_tool`."""
    return find_tool
