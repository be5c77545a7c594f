"""Check whether this host has everything that a configuration needs, without starting anything.

``shardgate check`` calls a file good only when ``shardgate run`` would start with it. Both use the functions of
`places`. These check with the rights of the calling process, so the result holds for its user.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from ipc.rundir import RuntimeDir, RuntimeDirError, default_runtime_dir
from supervisor import places
from supervisor.config.errors import Problem
from supervisor.config.model import BLOCK, Config, TcpAddress
from supervisor.config.paths import Objection


class Host(msgspec.Struct, frozen=True):
    """The problems that would prevent a start on this host, and notes on checks that this user cannot make."""

    problems: list[Problem]
    notes: list[str]


def look(config: Config, lines: Mapping[str, int | None]) -> Host:
    """Check everything that a start needs. *lines* maps the path of each node of the file to its line."""
    notes: list[str] = []
    problems = []
    for node, objection in _objections(config, notes):
        where = f"{BLOCK} > {node}"
        problems.append(Problem(config.source, lines.get(where, lines.get(BLOCK)), where, *objection))
    return Host(problems, notes)


def _objections(config: Config, notes: list[str]) -> Iterator[tuple[str, Objection]]:
    rundir = RuntimeDir(config.runtime_dir or default_runtime_dir())
    yield from _runtime_dir(rundir, notes)
    record = rundir.read_supervisor()
    runs = record is not None and record.is_alive()
    if config.path is not None:
        yield from _socket("path", Path(config.path), rundir, notes, runs=runs)
        for node, objection in (
            ("socket-owner", places.owner_objection(config.socket_owner)),
            ("socket-group", places.group_objection(config.socket_group)),
        ):
            if objection is not None:
                yield node, objection
    for address in config.tcp_addresses:
        yield from _address("tcp-address", address, notes, runs=runs)
    admin = config.admin_listen
    if isinstance(admin, str) and config.path is not None and _spelled_alike(admin, config.path):
        yield "admin > listen", (f"agents register at {config.path}", "choose another address for one of the two")
    if isinstance(admin, TcpAddress):
        yield from _address("admin > listen", admin, notes, runs=runs)
    elif admin is not None:
        yield from _socket("admin > listen", Path(admin), rundir, notes, runs=runs)
    if config.status_dir is not None:
        yield from _status_dir(config, notes)


def _spelled_alike(one: str, two: str) -> bool:
    return one != two and os.path.realpath(one) == os.path.realpath(two)


def _runtime_dir(rundir: RuntimeDir, notes: list[str]) -> Iterator[tuple[str, Objection]]:
    try:
        rundir.check_length()
    except RuntimeDirError as error:
        message, _, hint = str(error).partition("; ")
        yield "runtime-dir", (message, hint or None)
        return
    objection = places.private_folder_objection(rundir.path)
    if objection is None:
        return
    if _is_of_another_user(rundir.path):
        # Root checks the directory of a service that runs as another user: only a check as that user is conclusive.
        owner = rundir.path.lstat().st_uid
        notes.append(
            f"{rundir.path} belongs to uid {owner}: only a check as that user tells whether its start succeeds"
        )
        return
    yield "runtime-dir", objection


def _is_of_another_user(path: Path) -> bool:
    return os.geteuid() == 0 and path.is_dir() and path.lstat().st_uid != 0


def _socket(
    node: str, path: Path, rundir: RuntimeDir, notes: list[str], *, runs: bool
) -> Iterator[tuple[str, Objection]]:
    if places.is_listened_on(path):
        yield from _in_use(node, path, notes, runs=runs)
        return
    if rundir.is_ours(path.absolute()):
        yield node, (f"{path} is a name that shardgate itself uses", "choose another name, or another folder")
        return
    # A start creates the runtime directory before the sockets, so it need not exist now.
    if path.parent != rundir.path:
        objection = places.folder_objection(path.parent)
        if objection is not None:
            yield node, objection
            return
    objection = places.socket_objection(path)
    if objection is not None:
        yield node, (f"{path} {objection[0]}", objection[1])


def _address(node: str, address: TcpAddress, notes: list[str], *, runs: bool) -> Iterator[tuple[str, Objection]]:
    if places.is_listened_on(address):
        yield from _in_use(node, address, notes, runs=runs)
    elif (objection := places.address_objection(address)) is not None:
        yield node, (f"{address}: {objection[0]}", objection[1])


def _in_use(node: str, where: Path | TcpAddress, notes: list[str], *, runs: bool) -> Iterator[tuple[str, Objection]]:
    """Judge an address in use. The running shardgate, systemd on its behalf, or another process listens there."""
    names = [] if runs else places.listeners_at(where)
    if runs or "systemd" in names:
        return
    if not names:
        notes.append(f"another process listens at {where}: a start succeeds only if that is systemd, on its behalf")
        return
    hint = "stop it, or choose another address"
    yield node, (f"{where}: {', '.join(names)} listens there already", hint)


def _status_dir(config: Config, notes: list[str]) -> Iterator[tuple[str, Objection]]:
    folder = Path(config.status_dir or "")
    group = places.group_objection(config.status_group)
    objection = places.private_folder_objection(folder)
    if objection is not None and _is_of_another_user(folder):
        notes.append(
            f"{folder} belongs to uid {folder.lstat().st_uid}: only a check as that user tells whether it fits"
        )
    elif objection is not None:
        yield "status-dir", objection
    try:
        has_group = folder.stat().st_gid == places.group_id(config.status_group)
    except (OSError, KeyError):
        has_group = False
    if group is not None and not has_group:
        yield "status-group", group
