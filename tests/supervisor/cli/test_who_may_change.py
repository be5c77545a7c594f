"""Files that decide which agents get in are refused when another user could change them."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.config.token_file import edit_token_file

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

DIGEST = "ab" * 32
OTHER = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


class Host:
    """A configuration and a token file, each in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.config_folder, self.token_folder = folder / "etc", folder / "keys" / "deep"
        self.config, self.tokens = self.config_folder / "listener.kdl", self.token_folder / "tokens"
        self.config_folder.mkdir(parents=True)
        self.token_folder.mkdir(parents=True)
        self.tokens.write_text(f"waf-* sha256:{DIGEST}\n")
        self.config.write_text(
            f'reverse-listener {{\n path "a.sock"\n require-auth true\n auth {{ token-file "{self.tokens}"; }}\n}}\n'
        )
        for file in (self.config, self.tokens):
            file.chmod(0o640)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def place(host: Host, name: str) -> Path:
    return {
        "configuration": host.config,
        "token file": host.tokens,
        "folder of the configuration": host.config_folder,
        "folder of the tokens": host.token_folder,
        "folder above": host.token_folder.parent,
    }[name]


PLACES = ["configuration", "token file", "folder of the configuration", "folder of the tokens", "folder above"]


@pytest.mark.parametrize("name", PLACES)
def test_what_any_user_may_write_is_refused_by_check_and_by_run(
    name: str, host: Host, cli: Cli, tmp_path: Path
) -> None:
    path = place(host, name)
    mode = path.stat().st_mode
    assert cli("check", host.config).returncode == 0

    path.chmod(mode | 0o002)
    for command in (["check", host.config], ["run", "--config", host.config, "--runtime-dir", tmp_path / "run"]):
        done = cli(*command)
        assert (done.returncode, done.stdout) == (78, "")
        assert "everybody may write" in done.stderr
    assert not (tmp_path / "run").exists()

    # The advice, word for word.
    advice = done.stderr.strip().partition("run: ")[2]
    subprocess.run(["sh", "-c", advice], check=True, timeout=120)
    assert cli("check", host.config).returncode == 0


@needs_root
@pytest.mark.parametrize("name", PLACES)
def test_what_belongs_to_another_user_is_refused_by_check_and_by_run(
    name: str, host: Host, cli: Cli, tmp_path: Path
) -> None:
    path = place(host, name)
    os.chown(path, OTHER, -1)
    for command in (["check", host.config], ["run", "--config", host.config, "--runtime-dir", tmp_path / "run"]):
        done = cli(*command)
        assert (done.returncode, done.stdout) == (78, "")
        assert f"(uid {OTHER})" in done.stderr
    assert not (tmp_path / "run").exists()
    advice = done.stderr.strip().partition("run: ")[2].partition(";")[0]
    subprocess.run(["sh", "-c", advice], check=True, timeout=120)
    assert cli("check", host.config).returncode == 0


def test_a_link_is_followed_to_the_file_that_it_stands_for(host: Host, cli: Cli, tmp_path: Path) -> None:
    link, more = tmp_path / "link", tmp_path / "more"
    link.symlink_to("more")
    more.symlink_to(host.config_folder)
    assert cli("check", link / "listener.kdl").returncode == 0
    host.config_folder.chmod(0o777)
    done = cli("check", link / "listener.kdl")
    assert done.returncode == 78
    assert f"the folder {host.config_folder}, and so" in done.stderr


def test_a_folder_whose_files_only_their_owners_move_is_fine(host: Host, cli: Cli) -> None:
    """The folders of Kubernetes' volumes have this mode, and so has /tmp."""
    host.config_folder.chmod(0o1777)
    host.token_folder.chmod(0o3777)
    assert cli("check", host.config).returncode == 0


@needs_root
def test_a_link_of_another_user_in_a_shared_folder_is_refused(host: Host, cli: Cli) -> None:
    host.config_folder.chmod(0o1777)
    link = host.config_folder / "link.kdl"
    link.symlink_to(host.config)
    assert cli("check", link).returncode == 0
    os.chown(link, OTHER, -1, follow_symlinks=False)
    done = cli("check", link)
    assert done.returncode == 78
    assert f"the link {link} belongs to" in done.stderr


def test_a_token_file_that_others_could_change_is_not_edited_and_none_is_made_there(host: Host, cli: Cli) -> None:
    host.token_folder.chmod(0o777)
    before = host.tokens.read_text()
    for file in (host.tokens, host.token_folder / "new"):
        done = cli("token", "new", "--add", file)
        assert (done.returncode, done.stdout) == (1, "")
        assert "everybody may write the folder" in done.stderr
    assert host.tokens.read_text() == before
    assert [entry.name for entry in host.token_folder.iterdir()] == ["tokens"]
    assert cli("token", "list", host.tokens).returncode == 0, "to look is no harm"


def test_an_edit_writes_through_no_file_that_another_user_has_put_there(host: Host) -> None:
    victim = host.token_folder / "victim"
    victim.write_text("precious")
    (host.token_folder / f"tokens.{os.getpid()}.part").symlink_to(victim)
    edit_token_file(str(host.tokens), lambda lines: [*lines, f"x sha256:{DIGEST}"])
    assert victim.read_text() == "precious"
