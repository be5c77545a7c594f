"""Places on disk, the names that outlive them, and locks that others hold."""

import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.product import short_folder

from ipc import flocks, names
from ipc.places import CannotMend, Places
from ipc.rundir import RuntimeDir, RuntimeDirBusy


def test_link_that_leads_to_something_is_left_alone(tmp_path: Path) -> None:
    path, moved, mended = tmp_path / "a", tmp_path / "b", []
    path.touch()
    places = Places()
    places.add(path, "the file", lambda: mended.append(path))
    path.rename(moved)
    path.symlink_to(moved)
    places.look()
    assert (mended, places.problems) == ([], [])
    moved.unlink()
    places.look()
    assert mended == [path], "it leads nowhere"


def test_what_is_gone_or_replaced_is_made_again_and_what_is_there_is_left_alone(tmp_path: Path) -> None:
    told: list[str] = []
    places = Places(lambda code, text: told.append(f"{code} {text}"))
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        path.write_text("ours")
        places.add(path, "the file", lambda path=path: path.write_text("ours again"))  # type: ignore[misc]
    places.look()
    assert (told, places.mended_total) == ([], 0)
    one.unlink()
    other.unlink()
    other.write_text("theirs")
    os.utime(other, ns=(1, 1))
    places.look()
    assert (one.read_text(), other.read_text(), places.mended_total) == ("ours again", "ours again", 2)
    assert told == [
        f"file_mended the file {one} is gone, and was made again",
        f"file_mended the file {other} was replaced, and was made again",
    ]
    places.look()
    assert places.mended_total == 2
    places.drop(one)
    one.unlink()
    places.look()
    assert not one.exists()


def test_what_cannot_be_made_again_is_told_once_and_tried_at_each_look(tmp_path: Path) -> None:
    told: list[str] = []
    places = Places(lambda code, _: told.append(code))
    path, attempts = tmp_path / "s", []

    def mend() -> None:
        attempts.append(1)
        if len(attempts) == 2:
            raise OSError(28, "No space left on device")
        if len(attempts) < 4:
            raise CannotMend("another process has it")
        path.touch()

    path.touch()
    places.add(path, "the socket", mend)
    path.rename(tmp_path / "aside")
    for reason in ("another process has it", "No space left on device", "another process has it"):
        places.look()
        assert places.problems == [f"the socket {path} is gone, and cannot be made again: {reason}"]
    # It comes back by itself.
    (tmp_path / "aside").rename(path)
    places.look()
    assert (places.problems, told) == ([], ["file_gone", "file_mended"])
    path.unlink()
    places.look()
    assert (places.problems, places.mended_total, told[2:]) == ([], 1, ["file_mended"])


@pytest.mark.parametrize("gone", ["the lock file", "the directory", "its parent"])
def test_second_lock_is_refused_although_the_first_ones_file_is_gone(gone: str) -> None:
    with short_folder() as folder:
        path = folder / "parent" / "run"
        first, second = RuntimeDir(path), RuntimeDir(path)
        first.create()
        first.lock()
        try:
            if gone == "the lock file":
                first.lock_path.unlink()
            else:
                first.lock_path.unlink()
                path.rmdir()
                if gone == "its parent":
                    path.parent.rmdir()
            second.create()
            with pytest.raises(RuntimeDirBusy, match=f"pid {os.getpid()}, whose lock file was removed"):
                second.lock()
            assert not second.is_locked
            assert second.holder() == os.getpid()
            # The first one has it again, by its file too.
            first.lock()
            with pytest.raises(RuntimeDirBusy):
                second.lock()
        finally:
            first.unlock()
        second.lock()
        second.unlock()
        assert second.holder() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_name_that_another_user_has_taken_keeps_nobody_out() -> None:
    with short_folder() as folder:
        directory = RuntimeDir(folder / "run")
        directory.create()
        code = (
            "import os, socket, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "held = [socket.socket(socket.AF_UNIX) for _ in sys.argv[1:]]\n"
            "for sock, name in zip(held, sys.argv[1:]): sock.bind(b'\\0' + name.encode())\n"
            "print(flush=True); sys.stdin.read()"
        )
        held = [name[1:].decode() for name in names.names_of(directory.path)]
        with subprocess.Popen(
            [sys.executable, "-c", code, *held], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as stranger:
            assert stranger.stdout is not None
            stranger.stdout.readline()
            directory.lock()
            assert directory.is_locked
            assert directory.holder() is None
            directory.unlock()


def test_names_differ_for_directories_of_one_path_in_two_places(tmp_path: Path) -> None:
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
    (by_parent, by_path), others = names.names_of(tmp_path / "a" / "run"), names.names_of(tmp_path / "b" / "run")
    assert not {by_parent, by_path} & set(others)
    # It is the folder around it that counts, and not how it is spelled.
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert names.names_of(tmp_path / "link" / "run") == [by_parent, by_path]


def test_descriptor_that_holds_a_name_is_known_by_it(tmp_path: Path) -> None:
    taken, pid = names.take(tmp_path)
    try:
        assert pid is None
        assert [names.name_at(fd) for fd in taken] == names.names_of(tmp_path)
    finally:
        names.release(taken)
    with socket.socket(socket.AF_UNIX) as other:
        assert names.name_at(other.fileno()) == b""
    assert names.name_at(10**6) == b""


def test_lock_that_is_held_is_waited_for_within_limits_and_its_holder_is_named(tmp_path: Path) -> None:
    ours, theirs = os.open(tmp_path, os.O_RDONLY), os.open(tmp_path, os.O_RDONLY)
    try:
        assert flocks.holders(ours) == []
        fcntl.flock(theirs, fcntl.LOCK_EX)
        assert not flocks.taken_within(ours, 0.05)
        assert flocks.holders(ours) == [flocks.Holder(os.getpid(), os.geteuid())]
        fcntl.flock(theirs, fcntl.LOCK_UN)
        assert flocks.taken_within(ours, 0.05)
    finally:
        os.close(ours)
        os.close(theirs)
