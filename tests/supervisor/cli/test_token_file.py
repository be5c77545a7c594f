"""``shardgate token`` on a token file: comments and modes stay, and nothing is lost however many edit it."""

import hashlib
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.product import environment

from supervisor.config.errors import ConfigError
from supervisor.config.token_file import edit_token_file
from supervisor.config.tokens import read_token_file

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

FIRST, SECOND = "ab" * 32, "cd" * 32
FILE = f"# the WAFs\nwaf-* sha256:{FIRST}\n\n# everybody else\nauth,rate-* sha256={SECOND}\nthis line is broken\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A token file that several people have written."""
    path = tmp_path / "tokens"
    path.write_text(FILE)
    path.chmod(0o640)
    return path


def test_token_list_shows_lines_patterns_and_no_whole_digest(cli: Cli, file: Path) -> None:
    done = cli("token", "list", file)
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["LINE", "DIGEST", "AGENTS"],
        ["2", "ab" * 6, "waf-*"],
        ["5", "cd" * 6, "auth,rate-*"],
    ]
    assert json.loads(cli("token", "list", file, "--json").stdout)[1] == {
        "line": 5, "digest": "cd" * 6, "patterns": ["auth", "rate-*"],
    }  # fmt: skip


def test_token_list_says_how_many_connections_a_token_may_let_in(cli: Cli, file: Path) -> None:
    file.write_text(f"waf-* sha256:{FIRST} max-connections:2000\n")
    assert cli("token", "list", file).stdout.splitlines()[1].endswith("waf-* (at most 2,000 connections)")
    assert json.loads(cli("token", "list", file, "--json").stdout)[0]["max_connections"] == 2000


def test_token_revoke_removes_one_line_and_leaves_all_else_as_it_is(cli: Cli, file: Path) -> None:
    inode = file.stat().st_ino
    done = cli("token", "revoke", file, "ab" * 6)

    assert (done.returncode, done.stdout) == (
        0, "revoked, was good for waf-*; 'shardgate reload' puts it into effect\n",
    )  # fmt: skip
    assert file.read_text() == FILE.replace(f"waf-* sha256:{FIRST}\n", "")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert file.stat().st_ino != inode, "a reader of the old file goes on with all of it"
    assert [path.name for path in file.parent.iterdir()] == ["tokens"]


def test_token_revoke_takes_the_token_itself_on_standard_input(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    digest = hashlib.sha256(b"leaked").hexdigest()
    file.write_text(f"a sha256:{digest}\nb sha256:{FIRST}\nc sha256:{digest}\n")

    done = cli("token", "revoke", file, "--json", stdin="leaked\n")

    assert json.loads(done.stdout) == {"schema": 1, "digest": digest[:12], "patterns": ["a", "c"]}
    assert file.read_text() == f"b sha256:{FIRST}\n"


@pytest.mark.parametrize(
    ("digest", "code", "said"),
    [
        ("ef" * 4, 1, "no such token"),
        ("hunter2!", 2, "at least 8 hex digits"),
        ("abab", 2, "at least 8 hex digits"),
        ("ab" * 4, 5, "2 tokens begin like this"),
    ],
)
def test_token_revoke_refuses_what_names_no_single_token_and_changes_nothing(
    digest: str, code: int, said: str, cli: Cli, file: Path
) -> None:
    with file.open("a") as stream:
        stream.write(f"x sha256:{'ab' * 31}cc\n")
    before = file.read_text()

    done = cli("token", "revoke", file, digest)

    assert (done.returncode, file.read_text()) == (code, before)
    assert said in done.stderr
    assert "hunter2" not in done.stderr


def test_token_revoke_keeps_the_last_token_unless_it_is_forced(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"* sha256:{FIRST}\n")

    refused = cli("token", "revoke", file, FIRST[:8])
    assert refused.returncode == 5
    assert "the old ones stay good" in refused.stderr
    assert cli("token", "revoke", file, FIRST[:8], "--force").returncode == 0
    assert file.read_text() == ""


def test_token_new_adds_to_a_file_and_makes_it_private(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    told = json.loads(cli("token", "new", "--pattern", "waf-*", "--add", file, "--json").stdout)
    cli("token", "hash", "--add", file, stdin="known")

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [(t.patterns, t.digest) for t in read_token_file(file)] == [
        (("waf-*",), hashlib.sha256(told["token"].encode()).digest()),
        (("*",), hashlib.sha256(b"known").digest()),
    ]


def test_a_link_to_a_token_file_stays_one(cli: Cli, file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)

    assert cli("token", "revoke", link, FIRST[:8]).returncode == 0
    assert link.is_symlink()
    assert FIRST not in file.read_text()


@pytest.mark.parametrize("what", ["missing", "folder", "pipe", "open to all"])
def test_token_refuses_a_file_that_it_cannot_keep_safe(what: str, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "open to all":
        path.write_text(f"* sha256:{FIRST}\n")
        path.chmod(0o666)

    done = cli("token", "revoke", path, FIRST[:8], "--force")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"shardgate: {path}: ")


EDITOR = """
import sys
from supervisor.config.token_file import edit_token_file

path, name, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
for n in range(times):
    edit_token_file(path, lambda lines: [*lines, f"{name}-{n} sha256:" + "ab" * 32])
    if n % 2:
        edit_token_file(path, lambda lines: [line for line in lines if not line.startswith(f"{name}-{n} ")])
"""


def test_many_processes_edit_one_file_and_no_edit_is_lost_and_no_reader_sees_a_half(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("# kept\n")
    editors, times = 8, 20
    seen: list[int] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(len(read_token_file(path)))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        running = [
            subprocess.Popen([sys.executable, "-c", EDITOR, path, f"e{n}", str(times)], env=environment())
            for n in range(editors)
        ]
        assert [process.wait(50) for process in running] == [0] * editors
    finally:
        done.set()
        reader.join()

    left = {token.patterns[0] for token in read_token_file(path)}
    assert left == {f"e{n}-{m}" for n in range(editors) for m in range(0, times, 2)}
    assert path.read_text().startswith("# kept\n")
    assert len(seen) > 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokens"]


def test_an_edit_that_fails_leaves_the_file_and_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("# kept\n")

    def fail(_: list[str]) -> list[str]:
        raise ConfigError([])

    with pytest.raises(ConfigError):
        edit_token_file(str(path), fail)
    edit_token_file(str(path), lambda lines: [*lines, "# more"])
    assert path.read_text() == "# kept\n# more\n"
