"""A process that answers queries as a supervisor or a shard would, with answers given to it.

Run as ``stand_in.py RUNTIME_DIR ROLE`` with ROLE ``supervisor`` or a shard's number, and the results by method as JSON
on standard input. ``PID`` in them stands for its own pid. It records itself, prints "ready", and serves until SIGTERM
or a "stop" that it was given a result for. Lists are paged by their first field, as a shard does it; a result
``{"refused": TEXT}`` is a refusal.
"""

import asyncio
import base64
import json
import os
import signal
import sys
from typing import Any

from ipc.query import Refused
from ipc.query_server import QueryServer
from ipc.rundir import RuntimeDir, record_of_this_process


def _with_own_pid(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_own_pid(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_own_pid(item) for item in value]
    return os.getpid() if value == "PID" else value


def _page(entries: list[Any], arguments: dict[str, Any]) -> list[Any]:
    def position(entry: Any) -> Any:
        return entry["n"] if isinstance(entry, dict) else entry[0]

    def agent_of(entry: Any) -> Any:
        return entry["agent_id"] if isinstance(entry, dict) else entry[0]

    agent = arguments.get("agent")
    found = [e for e in entries if position(e) > arguments["after"] and agent in (None, agent_of(e))]
    for entry in found:
        if isinstance(entry, dict) and isinstance(entry.get("metadata"), str):
            entry["metadata"] = base64.b64decode(entry["metadata"])
    return found[: arguments["limit"]]


async def _serve(rundir: RuntimeDir, role: str, results: dict[str, Any]) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    def method(name: str) -> Any:
        def answer(arguments: dict[str, Any]) -> Any:
            result = results[name]
            if isinstance(result, dict) and "refused" in result:
                raise Refused(result["refused"])
            if name == "stop":
                # The answer leaves first.
                asyncio.get_running_loop().call_later(0.05, stop.set)
            return _page(result, arguments) if isinstance(result, list) else result

        return answer

    record = record_of_this_process("epoch", "0")
    if role == "supervisor":
        rundir.write_supervisor(record)
        path = rundir.supervisor_query
    else:
        rundir.write_shard(int(role), record)
        path = rundir.shard_query(int(role))
    server = QueryServer(path, {name: method(name) for name in results})
    print("ready", flush=True)
    await stop.wait()
    server.close()


if __name__ == "__main__":
    directory = RuntimeDir(sys.argv[1])
    directory.create()
    asyncio.run(_serve(directory, sys.argv[2], _with_own_pid(json.load(sys.stdin))))
