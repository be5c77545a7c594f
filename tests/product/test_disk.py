"""The disk fails, or loses what was on it: agents are served, what died comes back, and operators hear of it."""

import errno
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from support.admin import ask_json, metrics, total
from support.agents import Agent, registration
from support.disk import Disk
from support.product import Product, StartProduct, short_folder
from support.waiting import wait_for

from ipc import handoff
from ipc.rundir import RuntimeDir
from supervisor.cli import asking
from supervisor.merge import Status, is_healthy, problems

ADMIN = ("--admin", "127.0.0.1:0")
ERRORS = ("ENOSPC", "EROFS", "ENOENT", "EACCES")


@pytest.fixture
def disk() -> Iterator[Disk]:
    with short_folder() as folder:
        yield Disk(folder / "fault")


def registers(where: Path, agent_id: str = "a") -> bool:
    try:
        with Agent(where) as agent:
            return agent.register(agent_id).accepted
    except OSError:
        return False


def shard(product: Product, number: int) -> dict[str, object]:
    return next(row for row in product.query("status")["shards"] if row["id"] == number)


def status(product: Product) -> Status:
    return asking.collect_status(RuntimeDir(product.runtime_dir), 2.0).status


def is_whole(product: Product) -> bool:
    return is_healthy(status(product))


def is_missed(product: Product, what: str) -> bool:
    return what in str(problems(status(product)))


def found_on_disk(product: Product) -> list[str]:
    return [
        f["found"] for f in product.ask("doctor")["findings"] if f["about"] == "on disk" and f["level"] == "problem"
    ]


@pytest.mark.parametrize("error", ERRORS)
def test_directory_that_takes_nothing_stops_nobody_and_is_told(
    error: str, start_product: StartProduct, disk: Disk
) -> None:
    product = start_product(*ADMIN, variables=disk.variables)
    pid = product.process.pid
    with Agent(product.socket) as member:
        assert member.register("member").accepted
        disk.fail(error, product.runtime_dir)
        os.kill(product.shard_pid(0), signal.SIGKILL)
        wait_for(lambda: "cannot be started" in str(shard(product, 0)["last_event"]), "the shard to be missed")
        # Agents are served, and operators' commands too.
        assert registers(product.socket)
        assert product.command("reload").returncode == 0
        # What cannot be done is said, in every place.
        shown = product.command("status")
        assert shown.returncode == 3
        assert os.strerror(getattr(errno, error)) in shown.stdout
        assert "totals.json cannot be written" in shown.stdout or error == "ENOSPC"
        assert ask_json(product, "/readyz")["status"] == "degraded"
        assert product.command("doctor").returncode == 1
        assert total(metrics(product), "process_file_write_failures_total") > 0 or error == "ENOSPC"
        if error == "ENOSPC":
            # Another supervisor would not find what it needs, so this one goes on.
            product.process.send_signal(signal.SIGUSR2)
            wait_for(lambda: "has ended, serving on" in product.log.read_text(), "the other one to end", 30)
            assert registers(product.socket)
        disk.mend()
        wait_for(lambda: shard(product, 0)["state"] == "running", "the shard to come back")
        wait_for(lambda: is_whole(product), "all to be well")
        assert ask_json(product, "/readyz")["status"] == "ready"
        assert found_on_disk(product) == []
        assert RuntimeDir(product.runtime_dir).read_totals() != b""
    assert product.query("status")["supervisor"]["pid"] == pid
    # It ends in order although nothing can be written, and what could not be removed is in nobody's way.
    disk.fail(error, product.runtime_dir)
    product.process.terminate()
    assert product.process.wait(20) == 0
    disk.mend()
    if error == "EROFS":
        product.start()
        product.wait_until_running()
        assert registers(product.socket)
    else:
        for path in product.runtime_dir.iterdir():
            path.unlink()


@pytest.mark.parametrize("error", ERRORS)
def test_start_in_a_directory_that_takes_nothing_says_so_and_leaves_nothing(
    error: str, start_product: StartProduct, disk: Disk
) -> None:
    with short_folder() as folder:
        disk.fail(error, folder)
        product = start_product("--runtime-dir", str(folder), wait=False, variables=disk.variables)
        assert product.process.wait(20) == 1
        text = product.log.read_text()
        assert text.startswith(f"shardgate: {folder}")
        assert os.strerror(getattr(errno, error)) in text
        assert not product.socket.exists()
        assert list(folder.iterdir()) == []


def test_status_directory_that_takes_nothing_stops_no_shard(start_product: StartProduct, disk: Disk) -> None:
    with short_folder() as folder:
        product = start_product(*with_status_dir(folder), shards=1, variables=disk.variables)
        look = folder / "look"
        disk.fail("ENOSPC", look)
        os.kill(product.shard_pid(0), signal.SIGKILL)
        wait_for(lambda: shard(product, 0)["restarts"] == 1, "the shard's end to be noticed")
        wait_for(lambda: shard(product, 0)["state"] == "running", "the shard to come back")
        assert registers(product.socket)
        wait_for(lambda: is_missed(product, f"{look}/shard-0.query"), "its socket to be missed")
        disk.mend()
        wait_for(lambda: is_whole(product), "all to be well")
        assert (look / "shard-0.query").stat().st_mode & 0o777 == 0o660
        # The directory itself comes back with its mode, and what is in it.
        shutil.rmtree(look)
        wait_for((look / "shard-0.query").exists, "the directory to be made again")
        wait_for(lambda: is_whole(product), "all to be well")
        assert look.stat().st_mode & 0o7777 == 0o2750
        product.process.terminate()
        assert product.process.wait(20) == 0


def test_takeover_that_meets_a_full_disk_half_way_goes_back_and_goes_on(
    start_product: StartProduct, disk: Disk
) -> None:
    product = start_product(variables=disk.variables)
    pid = product.process.pid
    fault = f"os.symlink('ENOSPC:{product.runtime_dir}', os.environ['TEST_DISK_FAULT'])"
    with Agent(product.socket) as member:
        assert member.register("member").accepted
        code = (
            "import os, sys, supervisor.takeover as takeover\n"
            f"def fails(self):\n    {fault}\n    os._exit(9)\n"
            "takeover.Predecessor.say_taken = fails\n"
            "import shardgate; sys.argv = sys.argv[4:]; sys.exit(shardgate.main())"
        )
        command = [sys.executable, "-P", "-c", code, sys.executable, "-P", "-m", "shardgate", *product._arguments]
        done = subprocess.run(
            [*command, "--takeover"], env=product._environment, capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 9
        wait_for(lambda: "cannot go on yet, trying again" in product.log.read_text(), "the old one to wait")
        with Agent(product.socket, 30) as waiting:
            waiting.send(registration("waiting"))
            disk.mend()
            assert waiting.answer().accepted
        product.wait_until_running()
        assert product.query("status")["supervisor"]["pid"] == pid
        assert product.connections()[0]["agent_id"] == "member"


def test_numbers_are_recorded_again_when_there_is_room_again(start_product: StartProduct, disk: Disk) -> None:
    product = start_product(shards=1, variables=disk.variables)
    recorded = RuntimeDir(product.runtime_dir)
    (product.runtime_dir / "numbers").unlink()
    disk.fail("ENOSPC", product.runtime_dir)
    wait_for(lambda: product.query("status")["supervisor"]["problems"], "the file to be missed")
    assert recorded.read_first_number() == 1
    disk.mend()
    wait_for(lambda: recorded.read_first_number() > 1, "the numbers to be recorded")
    wait_for(lambda: is_whole(product), "all to be well")


def remove(path: Path) -> None:
    path.unlink()


def replace_by_a_file(path: Path) -> None:
    path.unlink()
    path.touch()


def test_removed_socket_of_agents_is_opened_again_with_its_mode_and_outlives_the_supervisor(
    start_product: StartProduct,
) -> None:
    product = start_product("--socket-mode", "0640")
    before = product.sockets()
    with Agent(product.socket) as member:
        assert member.register("member").accepted
        for _ in range(2):
            product.socket.unlink()
            wait_for(product.socket.exists, "the socket to be back")
            assert registers(product.socket)
            assert product.socket.stat().st_mode & 0o777 == 0o640
            wait_for(lambda: product.query("status")["supervisor"]["problems"] == [], "all to be well")
        assert "file_mended" in product.command("events").stdout
        # A takeover in the moment before it is noticed finds it mended.
        product.socket.unlink()
        product.take_over()
        assert registers(product.socket)
        # The shards keep the new one: agents wait there for the next supervisor.
        product.process.kill()
        product.process.wait()
        with Agent(product.socket, 20) as waiting:
            waiting.send(registration("waiting"))
            product.start()
            product.wait_until_running()
            assert waiting.answer().accepted
    # The old ones are closed with the supervisor that had them.
    wait_for(lambda: sum(product.sockets().values()) <= sum(before.values()), "all others to be closed")


def test_what_lies_in_the_place_of_a_socket_is_said_and_left_alone(start_product: StartProduct) -> None:
    product = start_product(*ADMIN)
    with Agent(product.socket) as member:
        assert member.register("member").accepted
        replace_by_a_file(product.socket)
        wait_for(lambda: is_missed(product, "exists and is not a socket"), "it to be missed")
        shown = product.command("status")
        assert (shown.returncode, "exists and is not a socket" in shown.stdout) == (3, True)
        readiness = ask_json(product, "/readyz")
        assert (readiness["status"], "not a socket" in str(readiness["reasons"])) == ("degraded", True)
        assert "not a socket" in found_on_disk(product)[0]
        assert "file_gone" in product.command("events").stdout
        assert product.socket.is_file()
        product.socket.unlink()
        # Another process listens there: it keeps its place.
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(product.socket))
            other.listen()
            wait_for(lambda: is_missed(product, "a running process listens"), "the other to be seen")
        wait_for(lambda: registers(product.socket), "the place to be taken again")
        wait_for(lambda: is_whole(product), "all to be well")


def test_removed_folder_of_the_agents_socket_is_waited_for(start_product: StartProduct) -> None:
    with short_folder() as folder:
        (folder / "s").mkdir()
        where = folder / "s" / "a.sock"
        product = start_product("--uds", str(where), uds=False)
        assert registers(where)
        shutil.rmtree(where.parent)
        wait_for(lambda: is_missed(product, str(where)), "it to be missed")
        where.parent.mkdir()
        wait_for(lambda: registers(where), "the socket to be back")
        wait_for(lambda: is_whole(product), "all to be well")
        product.process.terminate()
        assert product.process.wait(20) == 0


@pytest.mark.parametrize("how", ["moved away", "removed with its parent"])
def test_removed_runtime_directory_is_made_again_with_all_that_is_in_it(
    how: str, start_product: StartProduct, tmp_path: Path
) -> None:
    with short_folder() as folder:
        rundir = folder / "parent" / "run"
        product = start_product(*ADMIN, *with_status_dir(folder), "--runtime-dir", str(rundir), wait=False)
        product.runtime_dir = rundir
        product.wait_until_running()
        with Agent(product.socket) as member:
            assert member.register("member").accepted
            if how == "moved away":
                rundir.rename(folder / "elsewhere")
            else:
                shutil.rmtree(rundir.parent)
            # A second one is refused, also in the moment before all is back.
            second = start_product("--runtime-dir", str(rundir), wait=False)
            assert second.process.wait(20) == 1
            assert f"in use by a running supervisor (pid {product.process.pid}" in second.log.read_text()
            wait_for(lambda: is_whole(product), "all to be well")
            directory = RuntimeDir(rundir)
            assert rundir.stat().st_mode & 0o777 == 0o700
            for path in every_place(directory):
                wait_for(path.exists, f"{path} to be back")
            handoff.connect(directory.shard_handoff(1)).close()
            assert [row["agent_id"] for row in product.connections()] == ["member"]
            # A shard that dies comes back, and the next supervisor finds everything.
            os.kill(product.shard_pid(0), signal.SIGKILL)
            wait_for(lambda: shard(product, 0)["restarts"] == 1, "the shard's end to be noticed")
            wait_for(lambda: shard(product, 0)["state"] == "running", "the shard to come back")
            product.take_over()
            wait_for(lambda: is_whole(product), "all to be well")
            assert registers(product.socket)
        product.process.terminate()
        assert product.process.wait(20) == 0


def with_status_dir(folder: Path) -> tuple[str, str]:
    (folder / "c.kdl").write_text(f'reverse-listener {{\n  status-dir "{folder}/look"\n}}\n')
    return "--config", str(folder / "c.kdl")


def every_place(directory: RuntimeDir) -> list[Path]:
    of_shards = (directory.shard_handoff, directory.shard_query, directory.shard_proxy)
    return [
        directory.lock_path,
        directory.bus,
        directory.counts,
        directory.supervisor_query,
        directory.supervisor_handoff,
        *(directory.path / name for name in ("supervisor.json", "numbers", "shard-0.json", "shard-1.json")),
        *(place(number) for place in of_shards for number in (0, 1)),
    ]


def test_every_single_place_is_mended(start_product: StartProduct) -> None:
    with short_folder() as folder:
        looking = folder / "look"
        product = start_product("--admin", str(folder / "admin.sock"), *with_status_dir(folder))
        directory, look = RuntimeDir(product.runtime_dir), RuntimeDir(looking)
        places = [*every_place(directory), folder / "admin.sock", look.supervisor_query, look.shard_query(0)]
        seen = {path: path.lstat().st_mtime_ns for path in places}
        for path in places:
            path.unlink()

        def is_back(path: Path) -> bool:
            return path.exists() and path.lstat().st_mtime_ns != seen[path]

        for path in places:
            wait_for(partial(is_back, path), f"{path} to be back")
        wait_for(lambda: is_whole(product), "all to be well")
        assert ask_json(product, "/readyz")["status"] == "ready"
        assert "running" in product.command("status", "--runtime-dir", str(looking)).stdout


def test_locked_folder_of_the_socket_is_no_wait_without_end(start_product: StartProduct) -> None:
    with short_folder() as folder:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            product = start_product("--uds", str(folder / "a.sock"), uds=False, wait=False)
            assert product.process.wait(20) == 1
            assert f"{folder}: locked by pid {os.getpid()} of uid {os.geteuid()}" in product.log.read_text()
        finally:
            os.close(descriptor)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_folder_that_another_user_holds_locked_is_used_all_the_same(start_product: StartProduct) -> None:
    with short_folder() as folder:
        folder.chmod(0o755)
        code = (
            "import fcntl, os, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534);"
            "fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as holder:
            assert holder.stdout is not None
            holder.stdout.readline()
            product = start_product("--uds", str(folder / "a.sock"), uds=False)
            assert registers(folder / "a.sock")
            assert "locked by another user" in product.log.read_text()
            product.process.terminate()
            assert product.process.wait(20) == 0
