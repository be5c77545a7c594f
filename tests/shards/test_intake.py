"""What a shard does with the connections that a supervisor hands it: prepared, committed, revoked, refused."""

import contextlib
import os
import select
import socket

import pytest
from support.shard_process import ACCEPTANCE, ShardProcess, received
from support.waiting import wait_for

from dialout import Dialect, FrameDecoder, encode_frame, parse_registration_response
from dialout.proxy.wire import Welcome, decode_from_shard, encode_hello
from ipc.messages import Commit, Declined, Prepare, Prepared, Refuse, Revoke
from ipc.process import DescriptorBudget


def test_shard_neither_reads_nor_writes_a_connection_that_is_only_prepared(shard: ShardProcess) -> None:
    (agent,) = shard.prepare(1)
    agent.sendall(encode_frame(0xF0, b'{"timestamp":1}'))
    assert shard.receive() == Prepared(1)
    assert shard.report("prepared") == 1
    agent.setblocking(False)
    with pytest.raises(BlockingIOError):
        agent.recv(1)
    agent.settimeout(10)
    shard.send(Commit([1]))
    pong = encode_frame(0xF1, b'{"timestamp":1}')
    assert received(agent, 2) == ACCEPTANCE + pong, "the acceptance is the first frame"
    assert (shard.report("connections"), shard.report("prepared")) == (1, 0)
    agent.close()
    wait_for(lambda: shard.report("connections") == 0, "the close to be noticed")


def test_shard_serves_the_residue_before_what_comes_later(shard: ShardProcess) -> None:
    (agent,) = shard.prepare(5, residue=encode_frame(0xF0, b'{"timestamp":1}')[:7])
    agent.sendall(encode_frame(0xF0, b'{"timestamp":1}')[7:])
    assert shard.receive() == Prepared(5)
    shard.send(Commit([5]))
    assert received(agent, 2) == ACCEPTANCE + encode_frame(0xF1, b'{"timestamp":1}')
    agent.close()


@pytest.mark.parametrize("dialect", Dialect)
def test_shard_closes_a_revoked_connection_untouched_and_tells_a_refused_one(
    shard: ShardProcess, dialect: Dialect
) -> None:
    revoked, refused = shard.prepare(1, 2, dialect=dialect)
    assert shard.receive() == Prepared(1)
    shard.send(Revoke([1]))
    shard.send(Refuse([2]))
    assert revoked.recv(100) == b""
    (frame,) = FrameDecoder().feed(refused.recv(4096))
    assert frame[0] == dialect.answer_type
    assert parse_registration_response(*frame).error_code == "connection_limit"
    assert refused.recv(100) == b""
    shard.send(Commit([1, 2]))
    assert shard.report("connections") == 0
    revoked.close()
    refused.close()


def test_prepared_connections_outlive_their_supervisor_and_the_next_one_commits_them(shard: ShardProcess) -> None:
    (agent,) = shard.prepare(3)
    assert shard.receive() == Prepared(3)
    shard.channel.close()
    wait_for(lambda: shard.report("prepared") == 1, "the shard to go on")
    shard.connect()
    shard.send(Commit([3]))
    assert received(agent) == ACCEPTANCE
    agent.close()


def test_shard_declines_what_it_has_no_descriptors_for(shard: ShardProcess) -> None:
    shard.limit_descriptors(DescriptorBudget.RESERVE - 16)
    (agent,) = shard.prepare(9)
    declined = shard.receive()
    assert isinstance(declined, Declined)
    assert declined.batch == 9
    assert agent.recv(1) == b"", "no copy of it is left"
    agent.close()


def test_agent_that_was_turned_away_is_not_reset_for_what_it_had_sent(shard: ShardProcess) -> None:
    """A reset would take the answer away from an agent that has not read it yet."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        agent = socket.create_connection(listener.getsockname(), timeout=10)
        connection, _ = listener.accept()
    agent.sendall(encode_frame(0xF0, b'{"timestamp":1}'))
    shard.send(Prepare(1, [shard.offer(1, transport="tcp")]), connection.fileno())
    connection.close()
    assert shard.receive() == Prepared(1)
    shard.send(Refuse([1]))
    assert select.select([agent], [], [], 10)[0]
    assert shard.report("prepared") == 0
    assert agent.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    (frame,) = FrameDecoder().feed(agent.recv(4096))
    assert parse_registration_response(*frame).error_code == "connection_limit"
    assert agent.recv(1) == b""
    agent.close()


def test_a_second_supervisor_replaces_the_first(shard: ShardProcess) -> None:
    first = shard.channel
    shard.connect()
    assert first.recv(100) == b""
    first.close()
    (agent,) = shard.prepare(4)
    assert shard.receive() == Prepared(4)
    agent.close()


def test_shard_refuses_proxies_that_would_take_its_last_descriptors_and_lives_on(shard: ShardProcess) -> None:
    """At the limit libzmq would abort the process, at the next question of status, and every agent would be lost."""
    shard.limit_descriptors(DescriptorBudget.RESERVE + 8)
    (agent,) = shard.prepare(1)
    assert shard.receive() == Prepared(1)
    shard.send(Commit([1]))
    assert received(agent) == ACCEPTANCE
    before = shard.report("descriptors")
    with contextlib.ExitStack() as stack:
        refusals = 0
        for _ in range(2 * DescriptorBudget.RESERVE):
            proxy = stack.enter_context(socket.socket(socket.AF_UNIX))
            proxy.settimeout(10)
            proxy.connect(os.fspath(shard.rundir.shard_proxy(0)))
            with contextlib.suppress(BrokenPipeError):  # It may have been refused already.
                proxy.sendall(encode_hello("test", "1"))
            (frame,) = FrameDecoder().feed(proxy.recv(4096))
            welcome = decode_from_shard(*frame)
            assert isinstance(welcome, Welcome)
            refusals += bool(welcome.error)
        assert 0 < refusals < 2 * DescriptorBudget.RESERVE
        for _ in range(8):
            assert shard.report("connections") == 1
        # Agents go elsewhere.
        (late,) = shard.prepare(2)
        assert isinstance(shard.receive(), Declined)
        late.close()
    wait_for(lambda: shard.report("descriptors") <= before, "the proxies' descriptors to be free")
    (agent_again,) = shard.prepare(3)
    assert shard.receive() == Prepared(3)
    for sock in (agent, agent_again):
        sock.close()


def test_garbage_on_the_channel_loses_the_channel_and_nothing_else(shard: ShardProcess) -> None:
    (agent,) = shard.prepare(6)
    assert shard.receive() == Prepared(6)
    shard.send(Commit([6]))
    assert received(agent) == ACCEPTANCE
    shard.channel.send(b"\x07garbage")
    with contextlib.suppress(ConnectionResetError):
        assert shard.channel.recv(100) == b""
    shard.channel.close()
    assert shard.report("connections") == 1
    shard.connect()
    agent.close()
