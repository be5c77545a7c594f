"""Sockets that whoever starts shardgate has opened: used, kept over restarts, and left as they are."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from support import passing
from support.agents import Agent, registration
from support.fences import descriptors
from support.product import Product, StartProduct, environment, short_folder
from support.waiting import wait_for

from dialout import Dialect


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for sockets, with a short path."""
    with short_folder() as folder:
        yield folder


@pytest.fixture
def sockets(folder: Path) -> Iterator[tuple[socket.socket, socket.socket]]:
    """What a socket unit would have opened: a Unix socket of mode 0622, and a TCP socket."""
    with socket.socket(socket.AF_UNIX) as uds, socket.create_server(("127.0.0.1", 0)) as tcp:
        uds.bind(str(folder / "passed.sock"))
        (folder / "passed.sock").chmod(0o622)
        uds.listen()
        yield uds, tcp


def start_with(
    start_product: StartProduct, sockets: tuple[socket.socket, ...], *options: str, names: str = ""
) -> Product:
    numbers = [sock.fileno() for sock in sockets]
    prefix = passing.prefix(numbers, names)
    return start_product(*options, uds=False, prefix=prefix, pass_fds=tuple(numbers))


def addresses(product: Product) -> list[str]:
    return [row["address"] for row in product.query("status")["supervisor"]["listeners"]]


def name_of(sock: socket.socket) -> str:
    return "{}:{}".format(*sock.getsockname())


def test_passed_sockets_are_what_a_configuration_without_addresses_listens_on(
    start_product: StartProduct, sockets: tuple[socket.socket, socket.socket], folder: Path
) -> None:
    tcp = sockets[1]
    product = start_with(start_product, sockets, names="agents:far")
    path = folder / "passed.sock"
    assert addresses(product) == [str(path), name_of(tcp)]
    assert "far" in product.log.read_text()
    for address in (path, tcp.getsockname()):
        for dialect in Dialect:
            with Agent(address) as agent:
                assert agent.register("a", dialect).accepted
    # Nothing of it is handed down, and the descriptors go no further than to us.
    for pid in product.pids():
        variables = Path(f"/proc/{pid}/environ").read_bytes()
        if pid != product.process.pid:
            assert b"LISTEN_" not in variables
    ours = descriptors()
    passed = {ours[sock.fileno()] for sock in sockets}
    in_shard = descriptors(product.shard_pid(0))
    assert not {in_shard.get(3), in_shard.get(4)} & passed
    # The mode is not ours, and neither is the file at the end.
    assert path.stat().st_mode & 0o777 == 0o622
    product.process.terminate()
    assert product.process.wait(15) == 0
    assert path.is_socket()
    # What comes now waits for the next one, as systemd would start it.
    with Agent(path, 20) as agent:
        agent.send(registration("waiting"))
        product.start()
        assert agent.answer().accepted
    product.wait_until_running()


@pytest.mark.parametrize("passes_again", [True, False], ids=["by the manager", "by hand"])
def test_passed_sockets_outlive_a_crash(
    start_product: StartProduct,
    sockets: tuple[socket.socket, socket.socket],
    folder: Path,
    passes_again: bool,
) -> None:
    product = start_with(start_product, sockets)
    before = addresses(product)
    product.process.kill()
    product.process.wait()
    if not passes_again:
        product._prefix = ()
    with Agent(folder / "passed.sock", 20) as agent, Agent(sockets[1].getsockname(), 20) as far:
        agent.send(registration("waiting"))
        far.send(registration("far"))
        product.start()
        assert agent.answer().accepted
        assert far.answer().accepted
    product.wait_until_running()
    assert addresses(product) == before
    assert (folder / "passed.sock").stat().st_mode & 0o777 == 0o622


def test_passed_socket_serves_the_configured_address_that_it_has(
    start_product: StartProduct, sockets: tuple[socket.socket, socket.socket], folder: Path, tmp_path: Path
) -> None:
    uds, tcp = sockets
    # Through a link, as /var/run leads to /run; with a mode, which is not for a socket of somebody else.
    link = tmp_path / "link"
    link.symlink_to(folder)
    config = tmp_path / "shardgate.kdl"
    config.write_text(
        f'reverse-listener {{\npath "{link}/passed.sock"\nsocket-mode "0600"\ntcp-address "127.0.0.1:0" "[::1]:0"\n}}\n'
    )
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(folder / "other.sock"))
        other.listen()
        product = start_with(start_product, (uds, tcp, other), "--config", str(config))
        path, first, second = addresses(product)
        # "Any port" takes the one that is there; the address for which nothing was passed is opened.
        assert (path, first) == (str(folder / "passed.sock"), name_of(tcp))
        assert second.startswith("[::1]:")
        assert Path(path).stat().st_mode & 0o777 == 0o622
        with Agent(folder / "passed.sock") as agent:
            assert agent.register("a").accepted
        log = product.log.read_text()
        assert "a passed socket serves no configured address" in log
        assert "other.sock" in log


def test_sockets_for_another_process_are_left_alone(
    start_product: StartProduct, sockets: tuple[socket.socket, socket.socket]
) -> None:
    number = sockets[0].fileno()
    product = start_product(prefix=passing.prefix([number], pid="1"), pass_fds=(number,))
    assert addresses(product) == [str(product.socket)]


def _datagram() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


def _sequenced() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.bind("")
    sock.listen()
    return sock


@pytest.mark.parametrize(
    ("make", "names", "expected"),
    [
        (_datagram, "dgram", "descriptor 3 (dgram) is no stream socket"),
        (_sequenced, "", "descriptor 3 (unknown) is no stream socket"),
        (lambda: socket.socket(socket.AF_INET), "mute", "descriptor 3 (mute) does not listen"),
        (lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0), "", "address family 16"),
        (lambda: Path(os.devnull).open(), "null", "descriptor 3 (null) is no socket"),  # noqa: SIM115 - closed by the test
        (lambda: socket.create_server(("127.0.0.1", 0)), "a:b", "LISTEN_FDNAMES has 2 names for 1 sockets"),
    ],
    ids=["datagram", "sequenced", "does not listen", "netlink", "no socket", "names"],
)
def test_passed_thing_that_is_no_listening_socket_is_named(
    folder: Path, make: Callable[[], AbstractContextManager[Any]], names: str, expected: str
) -> None:
    with make() as thing:
        done = subprocess.run(
            [
                *passing.prefix([thing.fileno()], names), sys.executable, "-P", "-m", "shardgate", "run",
                "--runtime-dir", str(folder / "run"),
            ],
            pass_fds=(thing.fileno(),), env=environment(), capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
    assert done.returncode == 1
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_abstract_socket_can_be_passed(start_product: StartProduct) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("")  # The kernel chooses a name.
        sock.listen()
        product = start_with(start_product, (sock,))
        assert addresses(product)[0].startswith("@")
        with socket.socket(socket.AF_UNIX) as agent:
            agent.settimeout(10)
            agent.connect(sock.getsockname())
            agent.sendall(registration("a"))
            assert agent.recv(1)
        product.process.send_signal(signal.SIGTERM)
        wait_for(lambda: product.process.poll() == 0, "the end")
