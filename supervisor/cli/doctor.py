"""``shardgate doctor``: looks for problems of this host and prints a remedy for each."""

import ctypes
import importlib.metadata
import os
import resource
import stat
import time
from collections.abc import Mapping
from pathlib import Path

import click
import msgspec

from ipc import query
from ipc.capacity import default_shards
from ipc.process import descriptor_limit_of
from ipc.rundir import ProcessRecord, RuntimeDir
from ipc.schema import SCHEMA
from ipc.sockets import is_served
from ipc.version import __version__
from supervisor import words
from supervisor.cli import asking, output
from supervisor.cli.errors import CommandError, ExitCode
from supervisor.cli.options import examples, json_option, runtime_dir_option
from supervisor.config.access import access_problems
from supervisor.config.errors import ConfigError, Problem
from supervisor.config.kdl import load_config, parse_config
from supervisor.config.model import Config
from supervisor.config.show import Setting, as_kdl
from supervisor.doctor import Facts, Level, findings
from supervisor.merge import problems

_OUR_NAMES = ("supervisor", "ipc", "shards", "dialout")
_OURS = frozenset({"shardgate", "dialout"})
_COLOURS = {Level.OK: "green", Level.HINT: "yellow", Level.PROBLEM: "red"}
_WATCH_CLOCK = 0.2
_TIME_ERROR = 5
"""TIME_ERROR of adjtimex(2): the clock is not synchronised."""


@click.command(
    "doctor",
    short_help="Look for what is wrong with this host.",
    epilog=examples("shardgate doctor", "shardgate doctor --config /etc/shardgate/listener.kdl"),
)
@click.option(
    "--config",
    "file",
    envvar="SHARDGATE_CONFIG",
    show_envvar=True,
    metavar="FILE.kdl",
    help="What it is to run with [default: what the running shardgate has].",
)
@runtime_dir_option
@json_option
def command(file: str | None, rundir: RuntimeDir, as_json: bool) -> int:
    """Look for problems of this host, this installation and this runtime directory, and say how to solve them.

    Checks the limits of descriptors against the needs of the configuration, the listen queue, left over sockets and
    records, the clock, and other programs with the import names of shardgate. Run it as the user that runs shardgate.
    Exits with 1 when there is a problem. A hint is not a problem.
    """
    try:
        config = load_config(file) if file else _config_in_use(rundir) or Config()
    except ConfigError as error:
        output.note(str(error))
        return ExitCode.BAD_CONFIG
    found = list(findings(_look(config, rundir)))
    wrong = sum(finding.level is Level.PROBLEM for finding in found)
    if as_json:
        output.print_json({"schema": SCHEMA, "ok": not wrong, "findings": found})
        return ExitCode.FAILED if wrong else ExitCode.OK
    colour = output.use_colour()
    for finding in found:
        level = output.styled(f"{finding.level.value:<8}", _COLOURS[finding.level], enabled=colour)
        click.echo(f"{level} {finding.about}: {words.safe(finding.found, 1000)}")
        if finding.do:
            click.echo(f"         {words.safe(finding.do, 1000)}")
    click.echo(words.count("problem", wrong) if wrong else "no problem")
    return ExitCode.FAILED if wrong else ExitCode.OK


def _config_in_use(rundir: RuntimeDir) -> Config | None:
    """Return the running supervisor's configuration, options included, without tokens and agent-config.

    None when no supervisor answers.
    """
    try:
        answer = query.ask(rundir.supervisor_query, "config")
        found = msgspec.convert(answer["settings"], list[Setting])
    except (query.QueryError, msgspec.ValidationError):
        return None
    # Without the tokens, the rules about tokens would be reported as problems.
    left_out = ("auth", "agent-config", "require-auth", "allow-uid")
    plain = [one for one in found if one.top not in left_out or one.node == "auth > token-file"]
    config = parse_config("\n".join(as_kdl(plain, {})), "the running shardgate")
    requires = Setting("require-auth", ("true",)) in found
    limits = msgspec.structs.replace(config.limits, require_auth=requires)
    return msgspec.structs.replace(config, limits=limits, source=answer.get("source"))


def _access(config: Config) -> tuple[Problem, ...]:
    """Report the files that admit agents and that other users could change."""
    found: list[Problem] = []
    for file in (config.source, *config.token_files):
        status = None if file is None else _status(Path(file))
        if file is not None and status is not None:
            found += access_problems(file, status)
    return tuple(found)


def _look(config: Config, rundir: RuntimeDir) -> Facts:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    records = {
        name: record
        for name, record in (
            ("supervisor", rundir.read_supervisor()),
            *((f"shard-{n}", rundir.read_shard(n)) for n in rundir.recorded_shards()),
        )
        if record is not None
    }
    status = _status(rundir.path)
    return Facts(
        config=config,
        cpus=default_shards(),
        nofile_soft=soft,
        nofile_hard=1_048_576 if hard == resource.RLIM_INFINITY else hard,
        file_max=_number("/proc/sys/fs/file-max"),
        somaxconn=_number("/proc/sys/net/core/somaxconn"),
        directory=str(rundir.path),
        mode=None if status is None else stat.S_IMODE(status.st_mode),
        owner=None if status is None else status.st_uid,
        uid=os.geteuid(),
        free_bytes=_free(rundir.path),
        records={name: record.is_alive() for name, record in records.items()},
        sockets=tuple(_stale_sockets(rundir)),
        clock_offset_change=_clock_change(),
        clock_synchronised=_is_synchronised(),
        strangers=_strangers(),
        limits=_limits(records),
        problems=_problems(rundir),
        held_by=rundir.holder(),
        access=_access(config),
        running=is_served(rundir.supervisor_query),
        versions={name: record.version for name, record in records.items() if record.is_alive()},
        version=__version__,
    )


def _problems(rundir: RuntimeDir) -> tuple[str, ...]:
    try:
        status = asking.collect_status(rundir, 1.5).status
    except CommandError:
        return ()
    return tuple(problems(status))


def _limits(records: Mapping[str, ProcessRecord]) -> dict[str, int]:
    found = {name: descriptor_limit_of(record.pid) for name, record in records.items() if record.is_alive()}
    return {name: limit for name, limit in found.items() if limit is not None}


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None


def _free(path: Path) -> int | None:
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def _stale_sockets(rundir: RuntimeDir) -> list[str]:
    try:
        entries = sorted(rundir.path.iterdir())
    except OSError:
        return []
    # A handoff socket is SOCK_SEQPACKET. A stream socket cannot connect to it, even when it is served.
    return [
        entry.name for entry in entries if entry.is_socket() and entry.suffix != ".handoff" and not is_served(entry)
    ]


def _clock_change() -> float:
    """Return the seconds by which the clock was set during a short wait, beyond the time that passed."""
    before = time.time() - time.monotonic()
    time.sleep(_WATCH_CLOCK)
    return time.time() - time.monotonic() - before


def _is_synchronised() -> bool | None:
    """Whether the kernel calls the clock synchronised, adjtimex(2); None when it cannot be asked."""
    try:
        buffer = ctypes.create_string_buffer(1024)  # struct timex has 208 bytes; modes 0 only reads
        state = ctypes.CDLL(None).adjtimex(buffer)
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _TIME_ERROR


def _strangers() -> dict[str, tuple[str, ...]]:
    """Return other distributions of this environment that own one of our import names."""
    owners = importlib.metadata.packages_distributions()
    found = {name: tuple(sorted(set(owners.get(name, ())) - _OURS)) for name in _OUR_NAMES}
    return {name: others for name, others in found.items() if others}
