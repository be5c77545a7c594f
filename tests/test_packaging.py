"""What the distributions hold and depend on, and which of our modules may know what.

``make test`` names the folder of the built distributions in ``TESTED_DISTRIBUTIONS``; without it, in a checkout that
nobody installed, the tests of what was built are skipped.
"""

import ast
import email
import email.message
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import dialout
from ipc.version import __version__

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
PACKAGES = ("dialout", "ipc", "shards", "supervisor")

built_only = pytest.mark.skipif(
    "TESTED_DISTRIBUTIONS" not in os.environ, reason="nothing was built: make test builds and installs it"
)


def distribution(pattern: str) -> Path:
    """The one built file that fits *pattern*."""
    (path,) = Path(os.environ["TESTED_DISTRIBUTIONS"]).glob(pattern)
    return path


def names_in_wheel(name: str) -> set[str]:
    with zipfile.ZipFile(distribution(f"{name}-*.whl")) as wheel:
        return set(wheel.namelist())


def names_in_sdist(name: str) -> set[str]:
    with tarfile.open(distribution(f"{name}-*.tar.gz")) as sdist:
        return {member.name.partition("/")[2] for member in sdist.getmembers()}


def wheel_metadata(name: str) -> email.message.Message:
    with zipfile.ZipFile(distribution(f"{name}-*.whl")) as wheel:
        (member,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(wheel.read(member))


# Versions and commands


def test_shardgate_pins_dialout_of_its_own_version() -> None:
    assert f"dialout=={__version__}" in PROJECT["dependencies"]
    assert dialout.__version__ == __version__


@built_only
@pytest.mark.parametrize("name", ["dialout", "shardgate"])
def test_distribution_carries_the_version_that_its_code_says(name: str) -> None:
    assert wheel_metadata(name)["Version"] == __version__
    assert metadata.version(name) == __version__


@built_only
@pytest.mark.parametrize(
    "command", [["shardgate"], [sys.executable, "-P", "-m", "shardgate"]], ids=["script", "module"]
)
def test_command_says_its_version_when_started_anywhere(command: list[str], tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [*command, "--version"],
        cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, f"shardgate {__version__}\n", "")


# Contents


@built_only
@pytest.mark.parametrize("package", [*PACKAGES, "shardgate"])
def test_tests_import_what_was_installed_and_not_a_checkout(package: str) -> None:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).is_relative_to(sysconfig.get_path("purelib"))


@built_only
@pytest.mark.parametrize(
    ("name", "top_level"), [("dialout", {"dialout"}), ("shardgate", {"ipc", "shards", "supervisor", "shardgate.py"})]
)
def test_wheel_holds_its_packages_and_nothing_else(name: str, top_level: set[str]) -> None:
    names = names_in_wheel(name)
    info = f"{name}-{__version__}.dist-info"
    assert {path.partition("/")[0] for path in names} == {*top_level, info}
    assert f"{info}/licenses/LICENSE" in names
    modules = {path for path in names if not path.startswith(info)}
    pages = {"supervisor/admin/page.html"} if name == "shardgate" else set()
    assert {path for path in modules if not path.endswith((".py", "/py.typed"))} == pages
    assert {f"{package}/py.typed" for package in top_level & set(PACKAGES)} <= modules


@built_only
@pytest.mark.parametrize("name", ["dialout", "shardgate"])
def test_sdist_holds_what_the_wheel_is_built_from_and_nothing_else(name: str) -> None:
    info = f"{name}-{__version__}.dist-info/"
    sources = {path.removeprefix("dialout/") for path in names_in_wheel(name) if not path.startswith(info)}
    texts = {"LICENSE", "README.md", "CHANGELOG.md" if name == "shardgate" else "PROXY_PROTOCOL.md"}
    assert names_in_sdist(name) == sources | texts | {"pyproject.toml", "PKG-INFO", ".gitignore"}


@built_only
@pytest.mark.parametrize("name", ["dialout", "shardgate"])
def test_wheel_built_from_the_sdist_equals_the_one_built_from_the_tree(name: str, tmp_path: Path) -> None:
    subprocess.run(["tar", "-xzf", distribution(f"{name}-*.tar.gz"), "-C", tmp_path], check=True, timeout=120)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=tmp_path / f"{name}-{__version__}", capture_output=True, check=True, timeout=120,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.read_bytes() == distribution(f"{name}-*.whl").read_bytes()


@built_only
def test_both_distributions_carry_the_same_licence() -> None:
    texts = set()
    for name in ("dialout", "shardgate"):
        with zipfile.ZipFile(distribution(f"{name}-*.whl")) as wheel:
            texts.add(wheel.read(f"{name}-{__version__}.dist-info/licenses/LICENSE"))
        assert wheel_metadata(name)["License-Expression"] == "Apache-2.0"
    (text,) = texts
    assert b"Apache License" in text


# Dependencies


@built_only
def test_dialout_depends_on_msgspec_alone() -> None:
    assert [requirement.split(">")[0] for requirement in wheel_metadata("dialout").get_all("Requires-Dist", [])] == [
        "msgspec"
    ]


def test_dialout_imports_whole_where_only_msgspec_is_installed(tmp_path: Path) -> None:
    for name in ("dialout", "msgspec"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        (tmp_path / name).symlink_to(Path(spec.origin).parent)
    modules = sorted(module.name for module in MODULES if module.package == "dialout")
    program = f"import sys; sys.path.append({str(tmp_path)!r}); import {', '.join(modules)}"
    # Isolated, and without site-packages.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", program],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


# Who may import what, read from the source, so that imports inside functions count as well.


class Module(NamedTuple):
    """One of our modules, read and not imported."""

    name: str
    package: str
    tree: ast.Module

    def imports(self) -> Iterator[str]:
        """The dotted name of each module that it imports; names taken from a module count as modules too."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.name} imports relatively"
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.Call) and "import_module" in names_of(node.func):
                yield self._said_to(node)

    def _said_to(self, call: ast.Call) -> str:
        """The module that *call* of ``import_module`` names; of a format string what stands before its first value."""
        named = next(ast.walk(call.args[0]))
        if isinstance(named, ast.JoinedStr):
            named = named.values[0]
        assert isinstance(named, ast.Constant), f"{self.name} line {call.lineno} imports what it computes"
        return str(named.value)

    def names(self) -> Iterator[str]:
        """Every name and attribute that its code uses."""
        for node in ast.walk(self.tree):
            yield from names_of(node)
            if isinstance(node, ast.alias):
                yield node.name


def names_of(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr


def our_modules() -> list[Module]:
    found = []
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        folder = Path(spec.origin).parent
        for path in sorted(folder.rglob("*.py")):
            name = ".".join((package, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__")
            found.append(Module(name, package, ast.parse(path.read_text(), str(path))))
    return found


MODULES = our_modules()


def importers_of(*names: str) -> set[str]:
    """Our modules that import one of *names*."""
    prefixes = tuple(f"{name}." for name in names)
    return {module.name for module in MODULES if any(f"{name}.".startswith(prefixes) for name in module.imports())}


def users_of(*names: str) -> set[str]:
    """Our modules whose code uses one of *names*."""
    return {module.name for module in MODULES if not set(names).isdisjoint(module.names())}


@pytest.mark.parametrize(
    ("package", "below"),
    [
        ("dialout", set()),
        ("ipc", {"dialout"}),
        ("shards", {"ipc", "dialout"}),
        ("supervisor", {"ipc", "dialout"}),
    ],
)
def test_package_imports_only_those_below_it(package: str, below: set[str]) -> None:
    ours = [module for module in MODULES if module.package == package]
    assert ours
    upwards = {*PACKAGES, "shardgate", "bench", "tests"} - below - {package}
    wrong = {(module.name, name) for module in ours for name in module.imports() if name.split(".")[0] in upwards}
    assert wrong == set()


def third_party(package: str) -> set[str]:
    """The top-level names that are neither ours nor Python's and that *package* imports."""
    names = {name.split(".")[0] for module in MODULES if module.package == package for name in module.imports()}
    return names - sys.stdlib_module_names - set(PACKAGES)


def test_dialout_imports_the_standard_library_and_msgspec_only() -> None:
    assert third_party("dialout") == {"msgspec"}


def test_shardgate_declares_what_it_imports_and_imports_what_it_declares() -> None:
    imported = third_party("ipc") | third_party("shards") | third_party("supervisor")
    declared: set[Any] = set()
    for requirement in PROJECT["dependencies"]:
        name = requirement.replace("=", ">").split(">")[0]
        declared.add({"pyzmq": "zmq"}.get(name, name.replace("-", "_")))
    assert imported == declared - {"dialout"}


def test_one_module_passes_descriptors() -> None:
    assert users_of("SCM_RIGHTS", "send_fds", "recv_fds") == {"ipc.handoff"}


def test_one_module_imports_zmq() -> None:
    assert importers_of("zmq") == {"ipc.bus"}


def test_one_module_starts_processes() -> None:
    starting = importers_of("subprocess", "multiprocessing", "concurrent.futures.process", "pty", "_posixsubprocess")
    starting |= users_of(
        "create_subprocess_exec", "create_subprocess_shell", "subprocess_exec", "subprocess_shell",
        "fork", "forkpty", "posix_spawn", "posix_spawnp", "popen", "ProcessPoolExecutor",
    )  # fmt: skip
    starting |= {
        module.name
        for module in MODULES
        for name in module.names()
        if name.startswith(("exec", "spawn")) and name.removeprefix("exec").removeprefix("spawn").strip("lvpe") == ""
    }
    assert starting == {"supervisor.processes"}
