"""What agents say unasked: it is taken note of, and fills no log."""

from structlog.testing import capture_logs
from support.engine import PairedAgent, on_loop, pool_of_this_loop
from support.pools import until

from dialout import Dialect, encode_frame
from ipc.logs import MOST_REPEATS

UPDATE = encode_frame(0x32, b'{"update_type":{"type":"request_reload"},"request_id":"r","timestamp_ms":1}')


@on_loop
async def test_agent_that_speaks_about_its_configuration_without_end_fills_no_log() -> None:
    many = 50 * MOST_REPEATS
    with capture_logs() as lines:
        with pool_of_this_loop() as pool:
            agent = PairedAgent(pool, dialect=Dialect.CORE)
            agent.send(UPDATE * many)
            await until(lambda: agent.connection.frames == many)
        written = [line for line in lines if line["event"] == "agent speaks about its configuration"]
        left_out = [line["n"] for line in lines if line["event"] == "agents speak about their configuration"]
    assert written[0]["connection_id"] == agent.connection.connection_id
    assert written[0]["kind"] == "request_reload"
    assert len(written) + sum(left_out) == many
    # Each second has its own count, and this takes milliseconds.
    assert MOST_REPEATS <= len(written) <= many // 5
