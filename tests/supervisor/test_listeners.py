"""Which of the sockets that shards kept are used again, and how."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.product import short_folder

from ipc.messages import KeptListener
from supervisor.config.model import Config, TcpAddress
from supervisor.listeners import Address, Listener, ListenError, assign, has_its_path, open_all, wanted

DEFAULT = Path("/run/agents.sock")

tcp_addresses = st.builds(TcpAddress, host=st.sampled_from(["127.0.0.1", "::1"]), port=st.sampled_from([0, 9090, 9091]))
paths = st.sampled_from([Path("/a"), Path("/b")])


def kept(address: Path | TcpAddress) -> KeptListener:
    return KeptListener("uds" if isinstance(address, Path) else "tcp", str(address))


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder with a short path."""
    with short_folder() as folder:
        yield folder


@given(
    st.lists(paths | tcp_addresses, unique=True, max_size=4),
    st.lists(paths | tcp_addresses.filter(lambda address: address.port != 0), unique=True, max_size=6),
)
def test_kept_socket_serves_the_address_that_it_has_and_no_other_one(
    addresses: list[Path | TcpAddress], held: list[Path | TcpAddress]
) -> None:
    listeners = list(map(kept, held))

    found = assign(addresses, listeners)

    assert len(set(found.values())) == len(found)
    for address, listener in found.items():
        assert not isinstance(address, KeptListener)
        assert listener in listeners
        if isinstance(address, TcpAddress) and address.port == 0:
            assert listener.address.startswith(str(address)[:-1])
        else:
            assert listener == kept(address)
    # What has its own socket gets it; any port gets what is left on its host.
    assert {address for address in addresses if address in held} <= found.keys()
    for address in addresses:
        if address not in found and isinstance(address, TcpAddress) and address.port == 0:
            spare = {listener.address for listener in listeners} - {listener.address for listener in found.values()}
            assert not any(one.startswith(str(address)[:-1]) for one in spare)


def test_configuration_without_a_listener_wants_the_default_path() -> None:
    tcp = TcpAddress("127.0.0.1", 9090)
    assert wanted(Config(), DEFAULT) == [DEFAULT]
    assert wanted(Config(tcp_addresses=(tcp,)), DEFAULT) == [tcp]
    assert wanted(Config(path="/a", tcp_addresses=(tcp,)), DEFAULT) == [Path("/a"), tcp]


def copies(listeners: list[Listener]) -> dict[KeptListener, int]:
    return {listener.kept: os.dup(listener.sock.fileno()) for listener in listeners}


def test_socket_that_was_taken_back_is_the_same_one_with_the_mode_that_is_configured_now(folder: Path) -> None:
    path = folder / "agents.sock"
    config = Config(path=str(path), tcp_addresses=(TcpAddress("127.0.0.1", 0),))
    first = open_all(config, DEFAULT)
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(str(path))
        taken = copies(first)
        for listener in first:
            listener.leave()

        again = open_all(Config(path=str(path), socket_mode=0o600, tcp_addresses=config.tcp_addresses), DEFAULT, taken)
        assert [listener.row for listener in again] == [listener.row for listener in first]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        accepted, _ = again[0].sock.accept()
        accepted.close()
    for listener in again:
        listener.close()
    assert not path.exists()


def test_socket_that_is_not_wanted_is_closed_and_one_whose_path_is_gone_is_not_usable(folder: Path) -> None:
    path = folder / "agents.sock"
    first = open_all(Config(path=str(path), tcp_addresses=(TcpAddress("127.0.0.1", 0),)), DEFAULT)
    tcp = first[1].sock.getsockname()
    taken = copies(first)
    uds = first[0].kept
    assert has_its_path(uds)
    for listener in first:
        listener.leave()

    [only] = open_all(Config(path=str(path)), DEFAULT, taken)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(tcp, timeout=10)
    only.close()
    assert not has_its_path(uds)
    path.touch()
    assert not has_its_path(uds)
    path.unlink()
    # The number of the inode may be the same one.
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        assert not has_its_path(uds)


def test_socket_that_was_taken_back_keeps_its_file_when_another_one_cannot_be_opened(folder: Path) -> None:
    path = folder / "agents.sock"
    first = open_all(Config(path=str(path)), DEFAULT)
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken_port = TcpAddress("127.0.0.1", other.getsockname()[1])
        with pytest.raises(ListenError):
            open_all(Config(path=str(path), tcp_addresses=(taken_port,)), DEFAULT, copies(first))
    with socket.socket(socket.AF_UNIX) as agent:
        agent.connect(str(path))
    first[0].close()


def test_inherited_socket_keeps_its_file_and_its_mode(folder: Path) -> None:
    path = folder / "agents.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        path.chmod(0o606)
        sock.listen()
        info = path.stat()
        inherited = KeptListener("uds", str(path), (info.st_dev, info.st_ino, info.st_mtime_ns), inherited=True)
        [listener] = open_all(Config(path=str(path)), DEFAULT, {inherited: os.dup(sock.fileno())})
        assert listener.kept == inherited
        listener.close()
        assert stat.S_IMODE(path.stat().st_mode) == 0o606


def test_inherited_sockets_are_wanted_where_no_address_is_configured() -> None:
    passed = KeptListener("uds", "/run/passed.sock", (1, 2, 3), inherited=True)
    assert wanted(Config(), DEFAULT, [passed]) == [passed]
    assert wanted(Config(path="/a"), DEFAULT, [passed]) == [Path("/a")]
    assert assign([passed], [passed]) == {passed: passed}


def test_two_spellings_of_an_address_are_one(folder: Path) -> None:
    (folder / "link").symlink_to(folder)
    uds = KeptListener("uds", str(folder / "agents.sock"), inherited=True)
    tcp = KeptListener("tcp", "[::1]:9090", inherited=True)
    addresses: list[Address] = [folder / "link" / "agents.sock", TcpAddress("0:0::1", 9090)]
    assert assign(addresses, [uds, tcp]) == dict(zip(addresses, [uds, tcp], strict=True))
    # The name itself may be a link that leads elsewhere.
    (folder / "other.sock").symlink_to(folder / "agents.sock")
    assert assign([folder / "other.sock"], [uds]) == {}
    # Of two sockets with the same address the first one is taken: what was passed stands in front of what was kept.
    assert assign([TcpAddress("::1", 9090)], [tcp, KeptListener("tcp", "[::1]:9090")]) == {TcpAddress("::1", 9090): tcp}
