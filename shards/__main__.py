"""The entry point of a shard process. The supervisor starts it by its path; users run ``shardgate run``.

The supervisor starts the process with signals blocked. The process sets its signal handlers before anything else.
"""

import argparse
import os
import sys

_version, *_path = os.environ.pop("SHARDGATE_IMPORT_PATH", "").split("\n")
if _version == str(sys.hexversion):
    # The supervisor's import path, unless another interpreter has replaced its own meanwhile.
    sys.path[:] = _path

from ipc import signals, streams  # noqa: E402 - see above


def run() -> None:
    """Run the shard that the command line describes."""
    import msgspec

    from ipc.options import PoolOptions
    from shards.main import main

    parser = argparse.ArgumentParser(prog="shard", description="A shard of shardgate; started by its supervisor.")
    parser.add_argument("--shard", type=int, required=True)
    parser.add_argument("--epoch", required=True)
    parser.add_argument("--parent", type=int)
    parser.add_argument("--runtime-dir", required=True)
    parser.add_argument("--pool", type=lambda text: msgspec.json.decode(text, type=PoolOptions), default=PoolOptions())
    parser.add_argument("--status-dir")
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-format", default="auto")
    arguments = parser.parse_args()
    main(
        arguments.shard,
        arguments.epoch,
        arguments.parent,
        arguments.runtime_dir,
        arguments.pool,
        arguments.log_level,
        arguments.log_format,
        arguments.status_dir,
    )


streams.open_standard()
signals.decide(signals.Role.SHARD)
run()
