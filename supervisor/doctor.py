"""Check a host and an installation for problems, before they do harm. Pure: facts go in, findings come out."""

from collections.abc import Iterator, Mapping
from enum import StrEnum

import msgspec

from supervisor.config.errors import Problem
from supervisor.config.model import Config

RESERVE = 256
"""Descriptors that a process needs beside its agents' connections: sockets, ZeroMQ, a reserve."""

NOFILE_WANTED = 16_384
"""Descriptors that a shard should have at least, with any configuration."""

SOMAXCONN_WANTED = 1024
"""Length of the listen queue. After a network failure all agents reconnect at once: listen(2), net.core.somaxconn."""

CLOCK_JUMP = 1.0
"""Change of the clock's offset, in seconds between two readings, above which the clock was set."""


class Level(StrEnum):
    """The severity of a finding. Only a problem makes the exit code 1."""

    OK = "ok"
    HINT = "hint"
    PROBLEM = "problem"


class Finding(msgspec.Struct, frozen=True):
    """The result of one check: its subject, the finding, and the remedy where it is not ok."""

    about: str
    level: Level
    found: str
    do: str = ""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """The facts about this host that the checks need. A fact that could not be read is None.

    *directory* is the runtime directory. *mode* and *owner* are its own, None when it does not exist. *records* maps
    the name of each recorded process to whether it runs. *sockets* are the sockets in it that no process serves.
    *strangers* maps each of our import names to the other distributions that own it. *limits* are the numbers of
    descriptors that the running processes may have open. *problems* are the problems on disk that these processes
    report. *held_by* is the pid that has locked the directory. *access* is why other users could change the
    configuration or a token file.
    """

    config: Config
    cpus: int
    nofile_soft: int
    nofile_hard: int
    file_max: int | None
    somaxconn: int | None
    directory: str
    mode: int | None
    owner: int | None
    uid: int
    free_bytes: int | None
    records: Mapping[str, bool]
    sockets: tuple[str, ...]
    clock_offset_change: float
    clock_synchronised: bool | None
    strangers: Mapping[str, tuple[str, ...]]
    running: bool
    limits: Mapping[str, int]
    problems: tuple[str, ...] = ()
    held_by: int | None = None
    access: tuple[Problem, ...] = ()
    versions: Mapping[str, str]
    version: str


def findings(facts: Facts) -> Iterator[Finding]:
    """The result of every check, the most harmful first."""
    yield from _names(facts)
    yield from _directory(facts)
    yield from _on_disk(facts)
    yield from _leftovers(facts)
    yield from _descriptors(facts)
    yield _backlog(facts)
    yield from _clock(facts)
    yield from _security(facts)


def _names(facts: Facts) -> Iterator[Finding]:
    for name, owners in sorted(facts.strangers.items()):
        yield Finding(
            "import names",
            Level.PROBLEM,
            f"the import name {name} also belongs to {', '.join(owners)} in this environment",
            "install shardgate into an environment of its own (pipx, uv tool or a venv)",
        )
    if not facts.strangers:
        yield Finding("import names", Level.OK, "ours alone")
    others = {name: version for name, version in facts.versions.items() if version != facts.version}
    if others:
        told = ", ".join(f"{name} {version}" for name, version in sorted(others.items()))
        yield Finding(
            "versions",
            Level.HINT,
            f"running: {told}; installed: {facts.version}",
            "replace the supervisor, and the shards with 'shardgate restart --rolling'; agents do not notice",
        )


def _directory(facts: Facts) -> Iterator[Finding]:
    about = "runtime directory"
    if facts.mode is None:
        yield Finding(about, Level.OK, f"{facts.directory} is not there yet; 'shardgate run' makes it")
        return
    if facts.owner != facts.uid:
        yield Finding(
            about,
            Level.PROBLEM,
            f"{facts.directory} belongs to uid {facts.owner}, and this is uid {facts.uid}",
            "run shardgate, and this, as the user it belongs to, or choose another --runtime-dir",
        )
    elif facts.mode & 0o077:
        yield Finding(
            about,
            Level.PROBLEM,
            f"{facts.directory} has mode {facts.mode:04o}: others could reach the sockets in it",
            f"run: chmod 700 {facts.directory}",
        )
    else:
        yield Finding(about, Level.OK, f"{facts.directory}, mode {facts.mode:04o}, yours")
    if facts.free_bytes is not None and facts.free_bytes < 1 << 20:
        yield Finding(
            about,
            Level.PROBLEM,
            f"{facts.free_bytes} bytes are free where {facts.directory} is",
            "make room: records and sockets cannot be made on a full file system",
        )


def _on_disk(facts: Facts) -> Iterator[Finding]:
    about = "on disk"
    if facts.held_by is not None and not facts.running:
        yield Finding(
            about,
            Level.PROBLEM,
            f"pid {facts.held_by} has {facts.directory}, and cannot be asked there: somebody has removed its sockets",
            "it makes them again within seconds; when it does not, its log says why",
        )
    for problem in facts.problems:
        yield Finding(
            about,
            Level.PROBLEM,
            problem,
            "mend that; shardgate tries again by itself, and its log says when it is well",
        )
    if facts.running and not facts.problems:
        yield Finding(about, Level.OK, "every socket and every file is where it should be")


def _leftovers(facts: Facts) -> Iterator[Finding]:
    dead = sorted(name for name, alive in facts.records.items() if not alive)
    if dead and not facts.running:
        yield Finding(
            "left over",
            Level.HINT,
            f"records of processes that are gone: {', '.join(dead)}",
            "nothing needs to be done: 'shardgate run' removes them",
        )
    if facts.sockets:
        yield Finding(
            "left over",
            Level.HINT,
            f"sockets that nobody serves: {', '.join(facts.sockets)}",
            "nothing needs to be done: 'shardgate run' takes their places",
        )
    orphans = [name for name, alive in facts.records.items() if alive and name != "supervisor"]
    if orphans and not facts.running:
        yield Finding(
            "left over",
            Level.PROBLEM,
            f"no supervisor runs, and {len(orphans)} shards serve on without one, until the orphan-timeout",
            "start one with 'shardgate run', which adopts them, or end them with 'shardgate stop'",
        )
    if not dead and not facts.sockets and (facts.running or not orphans):
        yield Finding("left over", Level.OK, "nothing")


def _descriptors(facts: Facts) -> Iterator[Finding]:
    about = "descriptors"
    # A process raises its soft limit to the hard one as it starts. A running process keeps its limit.
    limit, whose = facts.nofile_hard, ""
    if facts.limits:
        name, limit = min(facts.limits.items(), key=lambda item: item[1])
        whose = f" of {name}, which runs"
    room = limit - RESERVE
    handshakes = facts.config.max_handshakes
    if handshakes > room:
        yield Finding(
            about,
            Level.PROBLEM,
            f"max-handshakes is {handshakes:,}, and the limit{whose} is {limit:,} open descriptors,"
            f" {RESERVE} of them for the process itself",
            f"raise the open files limit to {handshakes + RESERVE:,} or more (LimitNOFILE= in a unit of systemd, ulimit"
            " -Hn in a shell), or lower max-handshakes",
        )
    elif limit < NOFILE_WANTED:
        yield Finding(
            about,
            Level.HINT,
            f"each shard can hold some {room:,} connections (limit {limit:,}{whose})",
            f"raise the open files limit to {NOFILE_WANTED:,} or more where more agents than that may come",
        )
    else:
        yield Finding(about, Level.OK, f"each shard can hold {room:,} connections (limit {limit:,}{whose})")
    shards = facts.config.shards or facts.cpus
    if facts.file_max is not None and facts.file_max < limit * (shards + 1):
        yield Finding(
            about,
            Level.HINT,
            f"fs.file-max is {facts.file_max:,}, less than {shards + 1} processes may open together",
            f"run: sysctl fs.file-max={limit * (shards + 1)}",
        )


def _backlog(facts: Facts) -> Finding:
    about = "listen queue"
    if facts.somaxconn is None:
        return Finding(
            about, Level.HINT, "net.core.somaxconn cannot be read", "look at it by hand: sysctl net.core.somaxconn"
        )
    if facts.somaxconn < SOMAXCONN_WANTED:
        return Finding(
            about,
            Level.PROBLEM,
            f"net.core.somaxconn is {facts.somaxconn}: more agents that connect at once are turned away by the kernel",
            f"run: sysctl net.core.somaxconn={4 * SOMAXCONN_WANTED}",
        )
    return Finding(about, Level.OK, f"net.core.somaxconn is {facts.somaxconn:,}")


def _clock(facts: Facts) -> Iterator[Finding]:
    if abs(facts.clock_offset_change) > CLOCK_JUMP:
        yield Finding(
            "clock",
            Level.PROBLEM,
            f"the clock was set by {facts.clock_offset_change:+.1f} s while it was watched",
            "have one service set it, and slowly (chrony, systemd-timesyncd): times in logs and events jump with it",
        )
    elif facts.clock_synchronised is False:
        yield Finding(
            "clock",
            Level.HINT,
            "the kernel says that nobody keeps the clock right",
            "start a time service (chrony, systemd-timesyncd), or times in logs will not match those of other hosts",
        )
    else:
        yield Finding("clock", Level.OK, "steady")


def _security(facts: Facts) -> Iterator[Finding]:
    config = facts.config
    for problem in facts.access:
        yield Finding("files", Level.PROBLEM, f"{problem.file}: {problem.message}", problem.hint or "")
    if not facts.access:
        yield Finding("files", Level.OK, "configuration and token files are closed to other users")
    faces_a_network = [
        str(address)
        for address in config.tcp_addresses
        if not (address.host.startswith("127.") or address.host in ("::1", "localhost"))
    ]
    if faces_a_network and not config.limits.require_auth:
        yield Finding(
            "registration",
            Level.PROBLEM,
            f"{', '.join(faces_a_network)} can be reached over the network, and no token is required",
            "set require-auth and make tokens with 'shardgate token new', or listen on a loopback address",
        )
    else:
        yield Finding("registration", Level.OK, "tokens are required" if config.limits.require_auth else "local only")
