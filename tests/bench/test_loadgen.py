"""The load generator against real listeners: what it counts, what it survives, what it answers."""

import contextlib
import json
import shutil
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench import loadgen
from bench.targets import streams

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="the load generator needs a C compiler")

ACCEPTANCE = b'{"accepted":true,"success":true}'


def frame(kind: int, payload: bytes) -> bytes:
    return struct.pack(">IB", len(payload) + 1, kind) + payload


def read_frame(connection: socket.socket) -> tuple[int, bytes]:
    length, kind = struct.unpack(">IB", connection.recv(5, socket.MSG_WAITALL))
    return kind, connection.recv(length - 1, socket.MSG_WAITALL)


@contextlib.contextmanager
def listening(address: str | tuple[str, int], backlog: int = 64) -> Iterator[socket.socket]:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind(address)
        listener.listen(backlog)
        listener.settimeout(10)
        yield listener


@contextlib.contextmanager
def answering(listener: socket.socket, answer: Callable[[socket.socket], None], count: int) -> Iterator[None]:
    """Accepts `count` connections in a thread and lets `answer` treat each; they stay open until the end."""
    kept: list[socket.socket] = []

    def accept() -> None:
        for _ in range(count):
            connection, _ = listener.accept()
            connection.settimeout(10)
            kept.append(connection)
            answer(connection)

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        for connection in kept:
            connection.close()


def accept_registration(connection: socket.socket) -> None:
    read_frame(connection)
    connection.sendall(frame(0x04, ACCEPTANCE))


def test_generator_holds_every_accepted_connection_of_each_agent(tmp_path: Path) -> None:
    with streams(tmp_path, "asyncio") as listener, loadgen.start(listener.address, per_id=4) as generator:
        first = generator.register(40, 8)
        second = generator.register(20, 8)
        pool = listener.pool()

    assert (first.accepted, second.accepted, second.held, second.lost) == (40, 20, 60, 0)
    assert pool.connections == 60
    assert 0 < first.p50_us <= first.p90_us <= first.p99_us <= first.max_us <= first.seconds * 1e6


def test_generator_counts_refusals_and_keeps_the_text_of_the_first(tmp_path: Path) -> None:
    with streams(tmp_path, "asyncio") as listener, loadgen.start(listener.address, per_id=10) as generator:
        report = generator.register(20, 4)

    assert (report.accepted, report.refused, report.failed) == (8, 12, 0)
    assert report.first_failure is not None
    assert "too many connections" in report.first_failure


def test_generator_registers_under_the_same_ids_again_after_close(tmp_path: Path) -> None:
    sent = []

    def note(connection: socket.socket) -> None:
        sent.append(read_frame(connection))
        connection.sendall(frame(0x04, ACCEPTANCE))

    path = str(tmp_path / "agents.sock")
    with (
        listening(path) as listener,
        answering(listener, note, 6),
        loadgen.start(path, per_id=2) as generator,
    ):
        generator.register(3, 1)
        assert generator.close().closed == 3
        generator.register(3, 1)

    assert [kind for kind, _ in sent] == [0x03] * 6
    assert [json.loads(payload)["agent_id"] for _, payload in sent] == ["bench-0", "bench-0", "bench-1"] * 2
    assert len(frame(0x03, sent[0][1])) - len("bench-0") == 277 - len("waf-agent-v2")


def test_generator_waits_for_its_turn_when_the_backlog_is_full(tmp_path: Path) -> None:
    path = str(tmp_path / "agents.sock")
    may_accept = threading.Event()

    def accept_when_told(connection: socket.socket) -> None:
        assert may_accept.wait(10)
        accept_registration(connection)

    with (
        listening(path, backlog=1) as listener,
        loadgen.start(path) as generator,
        answering(listener, accept_when_told, 30),
    ):
        timer = threading.Timer(0.05, may_accept.set)
        timer.start()
        report = generator.register(30, 30)
        timer.join()

    assert report.accepted == 30
    assert report.connect_retries > 0


def test_generator_reports_a_close_without_an_answer(tmp_path: Path) -> None:
    def hang_up(connection: socket.socket) -> None:
        read_frame(connection)
        connection.shutdown(socket.SHUT_RDWR)

    path = str(tmp_path / "agents.sock")
    with listening(path) as listener, answering(listener, hang_up, 2), loadgen.start(path) as generator:
        report = generator.register(2, 1)

    assert (report.accepted, report.failed) == (0, 2)
    assert report.first_failure == "closed by the listener before the answer"


def test_generator_gives_up_when_nothing_happens(tmp_path: Path) -> None:
    path = str(tmp_path / "agents.sock")
    with listening(path), loadgen.start(path, stall_s=0.1) as generator:
        report = generator.register(5, 2)
        assert generator.close().closed == 0

    assert (report.accepted, report.failed) == (0, 2)
    assert report.first_failure is not None
    assert "no progress" in report.first_failure


def test_generator_reports_why_it_cannot_connect(tmp_path: Path) -> None:
    with loadgen.start(str(tmp_path / "nobody.sock")) as generator:
        report = generator.register(3, 2)

    assert report.failed == 3
    assert report.first_failure == "connect: No such file or directory"


def test_generator_counts_held_connections_that_the_listener_closes(tmp_path: Path) -> None:
    def accept_and_leave(connection: socket.socket) -> None:
        accept_registration(connection)
        connection.shutdown(socket.SHUT_RDWR)

    path = str(tmp_path / "agents.sock")
    with listening(path) as listener, loadgen.start(path) as generator:
        with answering(listener, accept_and_leave, 3):
            generator.register(3, 1)
        report = generator.close()

    assert (report.closed + report.lost, report.lost) == (3, 3)


@pytest.mark.parametrize("family", ["uds", "tcp"])
def test_held_connection_answers_requests_and_pings_in_order_when_serving(family: str, tmp_path: Path) -> None:
    request = frame(0x10, b'{"metadata":{"request_id":"text"},"request_id":9007199254740991,"uri":"/"}')
    address: str | tuple[str, int] = str(tmp_path / "agents.sock") if family == "uds" else ("127.0.0.1", 0)
    answers: list[tuple[int, bytes]] = []
    served = threading.Event()

    def send_events(connection: socket.socket) -> None:
        read_frame(connection)
        connection.sendall(frame(0x04, ACCEPTANCE) + frame(0xF0, b'{"timestamp":7}') + request[:20])
        answers.append(read_frame(connection))
        connection.sendall(request[20:] + request)
        answers.extend([read_frame(connection), read_frame(connection)])
        served.set()

    with listening(address) as listener:
        where = str(address) if family == "uds" else str(listener.getsockname()[1])
        with loadgen.start(where, serve=True) as generator, answering(listener, send_events, 1):
            assert generator.register(1, 1).accepted == 1
            assert served.wait(10)
            stats = generator.stats()

    decision = b'{"request_id":9007199254740991,"decision":"allow"}'
    assert answers == [(0xF1, b'{"timestamp":7}'), (0x20, decision), (0x20, decision)]
    assert (stats.requests, stats.cancels, stats.pings, stats.ignored) == (2, 0, 1, 0)


def test_generator_sends_the_uri_of_an_echo_request_back_and_no_other(tmp_path: Path) -> None:
    def request(request_id: int, uri: str) -> bytes:
        return frame(0x10, json.dumps({"request_id": request_id, "uri": uri}, separators=(",", ":")).encode())

    answers: list[tuple[int, bytes]] = []

    def ask(connection: socket.socket) -> None:
        read_frame(connection)
        connection.sendall(frame(0x04, ACCEPTANCE) + request(1, "/echo/a?b=c") + request(2, "/api/echo"))
        answers.extend([read_frame(connection), read_frame(connection)])

    path = str(tmp_path / "agents.sock")
    with listening(path) as listener, loadgen.start(path, serve=True) as generator, answering(listener, ask, 1):
        generator.register(1, 1)

    echo = [{"operation": "set", "name": "x-uri", "value": "/echo/a?b=c"}]
    assert [json.loads(payload) for _, payload in answers] == [
        {"request_id": 1, "decision": "allow", "request_headers": echo},
        {"request_id": 2, "decision": "allow"},
    ]


@pytest.mark.parametrize("cancellation", [True, False])
def test_generator_counts_cancels_without_an_answer_and_declares_whether_it_takes_them(
    cancellation: bool, tmp_path: Path
) -> None:
    declared: list[bool] = []
    answers: list[tuple[int, bytes]] = []
    served = threading.Event()

    def cancel(connection: socket.socket) -> None:
        _, payload = read_frame(connection)
        declared.append(json.loads(payload)["capabilities"]["supports_cancellation"])
        connection.sendall(frame(0x04, ACCEPTANCE) + frame(0x30, b'{"request_id":1,"reason":"manual"}') * 2)
        connection.sendall(frame(0x31, b"{}") + frame(0xF0, b"{}"))
        answers.append(read_frame(connection))
        served.set()

    path = str(tmp_path / "agents.sock")
    with (
        listening(path) as listener,
        loadgen.start(path, serve=True, cancellation=cancellation) as generator,
        answering(listener, cancel, 1),
    ):
        generator.register(1, 1)
        assert served.wait(10)  # the phase ends with the acceptance, before the rest is read
        stats = generator.stats()

    assert declared == [cancellation]
    assert answers == [(0xF1, b"{}")]
    assert (stats.cancels, stats.requests, stats.ignored) == (2, 0, 1)


def test_generator_refuses_more_connections_than_it_has_descriptors_for(tmp_path: Path) -> None:
    with (
        loadgen.start(str(tmp_path / "nobody.sock")) as generator,
        pytest.raises(loadgen.LoadGeneratorError, match="descriptors"),
    ):
        generator.register(2_000_000, 1)


def test_build_says_what_to_install_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")

    with pytest.raises(loadgen.LoadGeneratorError, match="no C compiler"):
        loadgen.build()


def test_build_compiles_once_for_one_source(tmp_path: Path) -> None:
    first = loadgen.build(tmp_path)
    built = first.stat()

    assert loadgen.build(tmp_path) == first
    assert first.stat() == built
    assert list(tmp_path.iterdir()) == [first]
