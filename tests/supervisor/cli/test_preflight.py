"""``shardgate check`` finds a file good exactly when ``shardgate run`` starts with it."""

import json
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.product import environment, short_folder

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

IS_ROOT = os.geteuid() == 0
ABSENT_USER = "no-such-user-here"


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as folder:
        (folder / "file").touch()
        (folder / "sub").mkdir()
        yield folder


def write(folder: Path, nodes: str) -> Path:
    file = folder / "listener.kdl"
    rundir = "" if "runtime-dir" in nodes else f'runtime-dir "{folder}/run"\n'
    file.write_text(f"reverse-listener {{\n{nodes}\n{rundir}shards 1\n}}\n")
    return file


# nodes, the first of which is on line 2 and to blame; a part of what is said, with FOLDER for the folder of the file
NOT_HERE = [
    ('path "FOLDER/none/a.sock"', "the folder FOLDER/none is not there; run: mkdir -p FOLDER/none"),
    ('path "FOLDER/none/deep/a.sock"', "the folder FOLDER/none is not there; run: mkdir -p FOLDER/none/deep"),
    ('path "none/a.sock"', "the folder FOLDER/none is not there"),
    ('path "FOLDER/file/a.sock"', "is a file, and no socket can be made below it"),
    ('path "FOLDER/file"', "FOLDER/file exists and is not a socket"),
    ('path "FOLDER/sub"', 'FOLDER/sub is a folder; choose a name in it, such as "FOLDER/sub/agents.sock"'),
    ('path "FOLDER/run/bus"', "is a name that shardgate itself uses"),
    (f'socket-owner "{ABSENT_USER}"\npath "a.sock"', f"there is no user '{ABSENT_USER}' on this host"),
    (f'socket-group "{ABSENT_USER}"\npath "a.sock"', f"there is no group '{ABSENT_USER}' on this host"),
    ('tcp-address "192.0.2.1:0"', "192.0.2.1:0: cannot listen: Cannot assign requested address"),
    ('tcp-address "0.0.0.0:9" "127.0.0.1:9"', "127.0.0.1:9 and 0.0.0.0:9 have an address in common"),
    ('tcp-address "[::1]:9" "[0:0::1]:9"', "have an address in common"),
    ('runtime-dir "FOLDER/file"', "is not a directory"),
    ('runtime-dir "FOLDER/file/run"', "is not a directory"),
    (f'runtime-dir "FOLDER/{"x" * 90}"', "bytes too long for Unix sockets in it"),
    ('admin {\nlisten "FOLDER/none/admin.sock"\n}', "the folder FOLDER/none is not there"),
    ('admin {\nlisten "192.0.2.1:0"\nallow-remote true\n}', "cannot listen: Cannot assign requested address"),
    ('admin {\nlisten "FOLDER/./a.sock"\n}\npath "FOLDER/sub/../a.sock"', "agents register at"),
    ('status-dir "FOLDER/file"', "is not a directory"),
    (f'status-group "{ABSENT_USER}"\nstatus-dir "FOLDER/status"', f"there is no group '{ABSENT_USER}' on this host"),
    ('path "~/a.sock"', '"~" stands for a home only in a shell'),
    ('path "${XDG_RUNTIME_DIR}/a.sock"', "variables are not replaced"),
    ('path "/run/$USER/a.sock"', "variables are not replaced"),
    ('path "%t/a.sock"', "%t is replaced in units of systemd only"),
    ('path "unix:///tmp/a.sock"', 'got the URL "unix:///tmp/a.sock"; did you mean "/tmp/a.sock"?'),
    ('path "@agents"', "no mode says who may connect to an abstract socket"),
    ('path "127.0.0.1:9090"', 'write tcp-address "127.0.0.1:9090"'),
    ('path "sub/"', 'did you mean "sub/agents.sock"?'),
    ('runtime-dir "~/run"', '"~" stands for a home only in a shell'),
    ('status-dir "${HOME}/x"', "variables are not replaced"),
    ('admin {\nlisten "unix:///tmp/a"\n}', 'did you mean "/tmp/a"?'),
    ('admin {\nlisten "~/a"\n}', '"~" stands for a home only in a shell'),
    ('auth {\ntoken-file "~/tokens"\n}', '"~" stands for a home only in a shell'),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "said"), NOT_HERE)
def test_what_a_start_would_not_find_is_named_with_its_line(
    nodes: str, said: str, folder: Path, cli: Cli, cli_process: Cli
) -> None:
    file = write(folder, nodes.replace("FOLDER", str(folder)))
    before = sorted(folder.rglob("*"))
    done = cli("check", file)

    assert (done.returncode, done.stdout) == (78, "")
    [problem] = done.stderr.splitlines()
    assert problem.startswith(f"{file}:{3 if nodes.startswith(('admin', 'auth')) else 2}: ")
    assert said.replace("FOLDER", str(folder)) in problem
    assert json.loads(cli("check", "--json", file).stdout)["problems"][0]["message"] in problem
    assert sorted(folder.rglob("*")) == before, "nothing was made"

    if "FOLDER" in nodes or ABSENT_USER in nodes:
        run = cli_process("run", "--config", file)
        assert run.returncode in (1, 78), "and a start does not begin"


@pytest.mark.parametrize(
    "nodes",
    ['path "a.sock"', 'path "run/a.sock"', 'tcp-address "127.0.0.1:0"', 'path "./~/a.sock"', 'path "./@a"',
     'admin {\nlisten "sub/admin.sock"\n}', 'status-dir "deep/status"', 'runtime-dir "deep/run"', ""],
)  # fmt: skip
def test_a_file_that_is_good_starts(nodes: str, folder: Path, cli: Cli, start_gate: Callable[[Path], None]) -> None:
    (folder / "~").mkdir()
    file = write(folder, nodes)
    assert cli("check", file).returncode == 0
    assert not (folder / "run").exists()
    start_gate(file)


@pytest.fixture
def start_gate(cli_process: Cli) -> Iterator[Callable[[Path], None]]:
    """Start ``shardgate run`` with a configuration, and wait until it serves."""
    started = []

    def start(file: Path) -> None:
        gate = subprocess.Popen(
            [sys.executable, "-P", "-m", "shardgate", "run", "--config", str(file), "--log-format", "json"],
            stderr=subprocess.PIPE, env=environment(), cwd=file.parent, text=True,
        )  # fmt: skip
        started.append(gate)
        assert gate.stderr is not None
        for line in gate.stderr:
            if '"event":"ready"' in line:
                return
        raise AssertionError(f"it ended with {gate.wait(10)}")

    yield start
    for gate in started:
        gate.terminate()
        gate.communicate(timeout=120)


def test_a_running_shardgate_is_no_objection_to_its_own_file(
    folder: Path, cli: Cli, start_gate: Callable[[Path], None]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file = write(folder, f'path "a.sock"\ntcp-address "127.0.0.1:{port}"\nadmin {{\nlisten "./admin.sock"\n}}')
    assert cli("check", file).returncode == 0
    start_gate(file)
    done = cli("check", file)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_strange_process_at_an_address_is_an_objection(folder: Path, cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket(socket.AF_UNIX) as path:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        path.bind(str(folder / "a.sock"))
        path.listen()
        for nodes, where in ((f'tcp-address "{address}"', address), ('path "a.sock"', f"{folder}/a.sock")):
            done = cli("check", write(folder, nodes))
            assert done.returncode == 78
            assert f"{where}: " in done.stderr
            assert "listens there already" in done.stderr
    # What a dead process left is in nobody's way.
    assert cli("check", write(folder, 'path "a.sock"')).returncode == 0


def test_a_file_for_another_host_can_be_checked_alone(folder: Path, cli: Cli) -> None:
    file = write(folder, 'path "/srv/of/another/host/a.sock"\nsocket-owner "no-such-user-here"\nshards 65')
    assert cli("check", "--file-only", file).returncode == 78
    file = write(folder, 'path "/srv/of/another/host/a.sock"\nsocket-owner "no-such-user-here"')
    assert cli("check", file).returncode == 78
    assert cli("check", "--file-only", file).returncode == 0


# The first check loads every module, where another user may not read root's interpreter.
AS_ORDINARY = """
import contextlib, io, os, sys, textwrap
from supervisor.cli.main import main
if os.geteuid() == 0:
    with contextlib.redirect_stderr(io.StringIO()):
        main(["check", sys.argv[1]])
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
sys.exit(main(["check", sys.argv[1]]))
"""


def test_what_only_root_may_do_is_named_to_others(folder: Path) -> None:
    folder.chmod(0o755)
    mine = folder / "mine"
    mine.mkdir()
    if IS_ROOT:
        os.chown(mine, 65534, 65534)

    def check(nodes: str) -> str:
        rundir = f'runtime-dir "{mine}/run"\n' if "runtime-dir" not in nodes else ""
        file = folder / "listener.kdl"
        file.write_text(f"reverse-listener {{\n{nodes}\n{rundir}}}\n")
        done = subprocess.run(
            [sys.executable, "-P", "-c", AS_ORDINARY, str(file)],
            capture_output=True, text=True, env=environment(), check=False, timeout=120,
        )  # fmt: skip
        return f"{done.returncode} {done.stderr}"

    root = pwd.getpwuid(0).pw_name
    assert check(f'path "{mine}/a.sock"') == "0 "
    assert "only root can give the socket to another user" in check(f'path "{mine}/a.sock"\nsocket-owner "{root}"')
    assert "is no member of group 0" in check(f'path "{mine}/a.sock"\nsocket-group 0')
    assert "may not make files in /usr" in check('path "/usr/a.sock"')
    assert "may not make /usr/run" in check('runtime-dir "/usr/run"')
    if Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text().strip() == "1024":
        assert "below 1024 systemd can open it" in check('tcp-address "127.0.0.1:1"')
