"""Agents register with the real product: every dialect, every transport, every refusal."""

import json
import socket
import stat
import time
from pathlib import Path

import pytest
from support.agents import Agent, registration
from support.product import Product, StartProduct
from support.waiting import wait_for

from dialout import Dialect, encode_frame

VECTORS = {
    vector["name"]: vector
    for vector in json.loads((Path(__file__).parent.parent / "dialout" / "vectors.json").read_text())
}


def test_agents_of_every_dialect_register_over_every_transport_and_are_in_the_pool(start_product: StartProduct) -> None:
    product = start_product("--tcp", "127.0.0.1:0", "--tcp", "[::1]:0")
    addresses: list[Path | tuple[str, int]] = [product.socket]
    for listener in product.query("status")["supervisor"]["listeners"]:
        if listener["kind"] == "tcp":
            host, _, port = listener["address"].rpartition(":")
            addresses.append((host.strip("[]"), int(port)))
    assert len(addresses) == 3
    agents = []
    for dialect in Dialect:
        for number, address in enumerate(addresses):
            agent = Agent(address)
            agents.append(agent)
            agent.send(registration(f"{dialect}-{number}", dialect, metadata={"version": "1.2.0"}))
            frame = agent.frame()
            assert frame is not None
            assert frame[0] == dialect.answer_type
            answer = json.loads(frame[1])
            assert answer["accepted"] is answer["success"] is True
            assert answer["assigned_id"] == answer["connection_id"]
            number_of_ping = b'{"sequence":7}' if dialect is Dialect.CORE else b'{"timestamp":7}'
            assert agent.ping(dialect, number_of_ping) == (dialect.pong_type, number_of_ping)

    rows = {row["agent_id"]: row for row in product.connections()}
    assert len(rows) == len(agents) == 9
    for dialect in Dialect:
        for number in range(3):
            row = rows[f"{dialect}-{number}"]
            assert row["dialect"] == dialect
            assert row["transport"] == ("uds" if number == 0 else "tcp")
            assert row["connection_id"].startswith(f"{dialect}-{number}-conn-")
            assert row["metadata"] == {"version": "1.2.0"}
            held = {c["connection_id"] for c in product.query_connections(row["shard"])}
            assert row["connection_id"] in held, "the shard that is named holds it"
    assert {row["shard"] for row in rows.values()} == {0, 1}
    for agent in agents:
        agent.close()
    wait_for(lambda: product.counts() == [0, 0], "all slots to be free")


@pytest.mark.parametrize(
    ("name", "answer_type", "error_code"),
    [
        ("x_zero_length", 0x04, "bad_registration"),
        ("x_length_over_limit", 0x04, "bad_registration"),
        ("x_length_max_header", 0x04, "bad_registration"),
        ("x_docs_literal_registration_type_01", None, None),
        ("x_forward_handshake_rust", 0x02, "bad_registration"),
        ("x_forward_handshake_docs", 0x02, "bad_registration"),
        ("x_v1_frame", 0x04, "version_mismatch"),
        ("x_first_frame_decision", 0x04, "bad_registration"),
    ],
)
def test_listener_answers_a_bad_first_frame_with_a_reason_and_closes(
    product: Product, name: str, answer_type: int | None, error_code: str | None
) -> None:
    with Agent(product.socket) as agent:
        agent.send(bytes.fromhex(VECTORS[name]["hex"]))
        frame = agent.frame()
        assert frame is not None
        answer = json.loads(frame[1])
        if error_code is None:
            assert answer["accepted"] is True, "an agent of the docs dialect that guessed 0x01 is served"
            return
        assert frame[0] == answer_type
        assert answer["accepted"] is answer["success"] is False
        assert answer["error_code"] == error_code
        assert answer["error"]
        assert agent.frame() is None


@pytest.mark.parametrize(
    ("payload", "error_code"),
    [
        (b"not json", "bad_registration"),
        (b"[1]", "bad_registration"),
        (b"", "bad_registration"),
        (b'{"agent_id":"a","capabilities":null}', "version_mismatch"),
        (b'{"protocol_version":1,"agent_id":"a","capabilities":null}', "version_mismatch"),
        (b'{"protocol_version":true,"agent_id":"a","capabilities":null}', "version_mismatch"),
        (b'{"protocol_version":2,"agent_id":"","capabilities":null}', "bad_registration"),
        (b'{"protocol_version":2,"agent_id":"a b","capabilities":null}', "bad_registration"),
        (b'{"protocol_version":2,"agent_id":"' + b"a" * 129 + b'","capabilities":null}', "bad_registration"),
        (b'{"protocol_version":2,"agent_id":"\\u001b[31m","capabilities":null}', "bad_registration"),
        (b'{"protocol_version":2,"agent_id":"a","capabilities":7}', "bad_registration"),
    ],
)
def test_listener_names_what_is_wrong_in_a_registration(
    product: Product, payload: bytes, error_code: str | None
) -> None:
    with Agent(product.socket) as agent:
        agent.send(encode_frame(0x03, payload) if payload else b"\0\0\0\1\3")
        answer = agent.answer()
        assert not answer.accepted
        assert answer.error_code == error_code
        assert agent.frame() is None


@pytest.mark.parametrize("name", ["x_http", "x_tls_client_hello"])
def test_listener_closes_other_protocols_without_a_frame(product: Product, name: str) -> None:
    with Agent(product.socket) as agent:
        agent.send(bytes.fromhex(VECTORS[name]["hex"]))
        assert agent.frame() is None


def test_agent_that_closes_inside_its_registration_is_told_so(product: Product) -> None:
    with Agent(product.socket) as agent:
        agent.send(registration("half")[:40])
        agent.sock.shutdown(socket.SHUT_WR)
        assert agent.answer().error_code == "bad_registration"


def test_agent_over_tcp_reads_its_refusal_although_it_sent_more(product: Product) -> None:
    """Unread bytes at close would make TCP reset the answer away."""
    with Agent(product.tcp_address()) as agent:
        agent.send(encode_frame(0x03, b"{}") + b"x" * 100_000)
        assert agent.answer().error_code == "version_mismatch"


def test_agent_that_sends_nothing_or_too_slowly_is_told_of_the_timeout(start_product: StartProduct) -> None:
    product = start_product("--handshake-timeout", "400ms")
    with Agent(product.socket) as silent, Agent(product.socket) as slow:
        frame = registration("slow")
        ended = time.monotonic() + 3
        for byte in frame:
            if time.monotonic() > ended:
                break
            try:
                slow.send(bytes([byte]))
            except OSError:
                break  # Told, and gone.
            slow.sock.settimeout(0.05)
            try:
                data = slow.sock.recv(4096)
            except TimeoutError:
                continue
            slow.frames.extend(slow.decoder.feed(data))
            break
        slow.sock.settimeout(5)
        assert slow.answer().error_code == "timeout"
        assert silent.answer().error_code == "timeout"
    wait_for(lambda: product.query("status")["supervisor"]["held_descriptors"] == 0, "nothing to be held")
    assert product.query("status")["supervisor"]["rejected_total"]["timeout"] == 2


def test_registration_cut_into_single_bytes_is_accepted(product: Product) -> None:
    with Agent(product.socket) as agent:
        for byte in registration("bytewise"):
            agent.send(bytes([byte]))
        assert agent.answer().accepted


def test_frames_sent_behind_the_registration_travel_with_the_connection(product: Product) -> None:
    with Agent(product.socket) as agent:
        pings = [encode_frame(0xF0, b'{"timestamp":%d}' % n) for n in range(200)]
        agent.send(registration("eager") + b"".join(pings))
        assert agent.answer().accepted
        assert [agent.frame() for _ in pings] == [(0xF1, ping[5:]) for ping in pings]


def test_assigned_ids_are_never_repeated(product: Product) -> None:
    seen = set()
    for _ in range(20):
        with Agent(product.socket) as agent:
            seen.add(agent.register("again").assigned_id)
    assert len(seen) == 20
    assert all(name is not None and name.startswith("again-conn-") for name in seen)


def test_malformed_frame_after_registration_closes_that_connection_alone(product: Product) -> None:
    with Agent(product.socket) as good, Agent(product.socket) as bad:
        assert good.register("pair").accepted
        assert bad.register("pair").accepted
        bad.send(b"\xff\xff\xff\xff\x20")
        assert bad.frame() is None
        assert good.ping(Dialect.SDK) == (0xF1, b'{"timestamp":7}')


def test_frames_without_a_meaning_are_counted_and_the_stream_stays_in_step(product: Product) -> None:
    with Agent(product.socket) as agent:
        agent.register("talker")
        agent.send(encode_frame(0x77, b"x" * 1000) * 3)
        assert agent.ping(Dialect.SDK) == (0xF1, b'{"timestamp":7}')
        row = next(row for row in product.connections() if row["agent_id"] == "talker")
        assert (row["frames"], row["frames_ignored"]) == (4, 3)


def test_200_registrations_at_once_fill_the_limit_exactly(start_product: StartProduct) -> None:
    product = start_product()
    agents = [Agent(product.socket) for _ in range(200)]
    for agent in agents:
        agent.send(registration("crowd"))
    answers = [agent.answer() for agent in agents]
    accepted = [answer for answer in answers if answer.accepted]
    refused = [answer for answer in answers if not answer.accepted]
    assert len(accepted) == 4
    assert [answer.error_code for answer in refused] == ["connection_limit"] * 196
    assert all(answer.retry_after_ms for answer in refused)
    status = product.status()
    assert sum(shard["connections"] for shard in status["shards"]) == 4
    assert status["supervisor"]["accepted_total"] == 4
    assert status["supervisor"]["rejected_total"]["connection_limit"] == 196
    assert product.ask("agents")[0]["connections"] == 4
    for agent in agents:
        agent.close()


@pytest.mark.parametrize("transport", ["uds", "tcp"])
def test_agent_at_its_limit_that_closes_one_registers_again_at_once(
    start_product: StartProduct, transport: str
) -> None:
    product = start_product("--tcp", "127.0.0.1:0")
    address = product.socket if transport == "uds" else product.tcp_address()
    held = []
    for _ in range(4):
        agent = Agent(address)
        assert agent.register("phoenix").accepted
        held.append(agent)
    for number in range(1000):
        held.pop(number % 4).close()
        agent = Agent(address)
        answer = agent.register("phoenix")
        assert answer.accepted, f"round {number}: {answer.error}"
        held.append(agent)
    wait_for(lambda: sum(product.counts()) == 4, "four connections")
    for agent in held:
        agent.close()


def test_silent_connections_do_not_keep_a_good_one_waiting(start_product: StartProduct) -> None:
    product = start_product()
    silent = [Agent(product.socket) for _ in range(2000)]
    try:
        for _ in range(20):
            with Agent(product.socket) as good:
                assert good.register("good").accepted
        # 256 unfinished handshakes for one uid, less those that made room for a good one; the oldest were told.
        assert 200 < product.query("status")["supervisor"]["handshakes"] <= 256
        assert silent[0].answer().error_code == "overloaded"
        with Agent(product.socket) as late:
            time_between_connect_and_send = product.query("status")
            assert time_between_connect_and_send
            assert late.register("late").accepted
    finally:
        for agent in silent:
            agent.close()
    wait_for(lambda: product.query("status")["supervisor"]["held_descriptors"] == 0, "nothing to be held")


def test_slow_agent_whose_frame_has_arrived_is_not_pushed_out(start_product: StartProduct) -> None:
    product = start_product("--max-handshakes", "4", "--max-handshakes-per-peer", "4")
    first = Agent(product.socket)
    frame = registration("first")
    first.send(frame[:100])
    crowd = [Agent(product.socket) for _ in range(3)]
    wait_for(lambda: product.query("status")["supervisor"]["handshakes"] == 4, "four handshakes")
    first.send(frame[100:])
    crowd += [Agent(product.socket) for _ in range(5)]
    assert first.answer().accepted
    for agent in [first, *crowd]:
        agent.close()


def test_socket_has_its_mode_and_goes_with_the_listener(start_product: StartProduct) -> None:
    product = start_product("--socket-mode", "0600")
    assert stat.S_IMODE(product.socket.stat().st_mode) == 0o600
    product.process.terminate()
    assert product.process.wait(15) == 0
    assert not product.socket.exists()


def test_listener_replaces_a_stale_socket_and_leaves_a_living_one(start_product: StartProduct) -> None:
    product = start_product()
    other = start_product("--uds", str(product.socket), uds=False, wait=False)
    assert other.process.wait(15) == 1
    assert "a running process listens there" in other.log.read_text()
    with Agent(product.socket) as agent:
        assert agent.register("still-served").accepted
    stale = product.folder.parent / "stale.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(stale))
    third = start_product("--uds", str(stale), uds=False)
    with Agent(stale) as agent:
        assert agent.register("served").accepted
    third.process.terminate()
    assert third.process.wait(15) == 0
    assert not stale.exists()


def test_listener_never_replaces_a_file_that_is_no_socket(start_product: StartProduct, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    product = start_product("--uds", str(path), uds=False, wait=False)
    assert product.process.wait(15) == 1
    assert "is not a socket" in product.log.read_text()
    assert path.read_text() == "data"


def test_agent_cannot_push_descriptors_into_the_listener(product: Product) -> None:
    with Agent(product.socket) as agent:
        try:
            agent.sock.getsockopt(socket.SOL_SOCKET, 83)
        except OSError:
            pytest.skip("SO_PASSRIGHTS came with Linux 6.16")
        with pytest.raises(PermissionError):
            socket.send_fds(agent.sock, [registration("pusher")], [agent.sock.fileno()])
        assert agent.register("honest").accepted
