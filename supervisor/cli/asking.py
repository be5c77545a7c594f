"""Asking the running processes, with their silence turned into what an operator can use."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import psutil

from ipc import query
from ipc.rundir import RuntimeDir
from ipc.sockets import is_served
from ipc.status import ShardState
from supervisor.cli.errors import CommandError, ExitCode
from supervisor.merge import RecordedShard, ShardAnswer, Status, merge_status
from supervisor.words import safe

_ACTING = frozenset({"kick", "log_level", "operate", "reload"})

_LOOK_AGAIN = 0.002

_PATIENCE = 0.25
"""Seconds until a question that changes nothing is asked for the second time; twice as many for each further time.

A supervisor that takes over opens its socket some 5 ms after the one before has closed its own, and what that one was
asked in its last moment is lost.
"""

_Answer = TypeVar("_Answer")


class Collected(NamedTuple):
    """A status, and whether the supervisor is missing in it although it is there: it did not answer in time.

    *held_by* is the pid of a supervisor that runs and whose sockets are gone; None otherwise.
    """

    status: Status
    supervisor_silent: bool
    held_by: int | None = None


class Pages(NamedTuple):
    """Entries by shard, and the shards that are there but did not answer in time."""

    entries: dict[int, list[Any]]
    silent: list[int]


def nothing_runs(rundir: RuntimeDir) -> CommandError:
    """The error for a directory in which no process of ours runs."""
    return CommandError(
        ExitCode.NOT_REACHABLE, f"no shardgate is running in {rundir.path}; start one with 'shardgate run'"
    )


def check_access(rundir: RuntimeDir) -> None:
    """Raise `CommandError` when the directory is there but closed to us: what runs in it would seem to be down."""
    try:
        allowed = os.access(rundir.path, os.R_OK | os.X_OK) or not rundir.path.exists()
    except PermissionError:
        allowed = False
    if not allowed:
        raise CommandError(
            ExitCode.NOT_REACHABLE, f"{rundir.path}: permission denied; ask as the user that runs shardgate"
        )


def ask_supervisor(
    rundir: RuntimeDir,
    method: str,
    answer_type: type[_Answer],
    timeout: float,
    arguments: dict[str, Any] | None = None,
) -> _Answer:
    """Ask the supervisor; every way to get no answer is a `CommandError` with its exit code."""
    check_access(rundir)
    deadline = time.monotonic() + timeout
    patience = timeout if method in _ACTING else _PATIENCE
    while True:
        left = max(deadline - time.monotonic(), _LOOK_AGAIN)
        try:
            result = query.ask(rundir.supervisor_query, method, arguments, timeout=min(patience, left))
        except (query.NotReachable, query.NoAnswer) as error:
            # What acts is asked for once: a supervisor that hung up may have begun to act.
            is_over = isinstance(error, query.NoAnswer) and method in _ACTING
            if is_over or time.monotonic() >= deadline or not _supervisor_runs(rundir):
                raise _no_answer(rundir, error, method, timeout) from None
            patience *= 2
            time.sleep(_LOOK_AGAIN)
        except query.QueryError as error:
            raise failed(error) from None
        else:
            return understood(result, answer_type)


def failed(error: query.QueryError) -> CommandError:
    """The error for a process that said no, or answered what nobody can read."""
    code = ExitCode.REFUSED if isinstance(error, query.Refused) else ExitCode.FAILED
    lines = [safe(line, 1000) for line in str(error).splitlines()]
    return CommandError(code, lines[0] if len(lines) == 1 else "\n".join(["refused:", *lines]))


def understood(result: object, answer_type: type[_Answer]) -> _Answer:
    """Check an answer against the shape that it must have."""
    try:
        return msgspec.convert(result, answer_type)
    except msgspec.ValidationError as error:
        raise CommandError(
            ExitCode.FAILED, f"an answer that this version cannot read ({error}); is shardgate of two versions in use?"
        ) from None


def collect_status(rundir: RuntimeDir, timeout: float) -> Collected:
    """Ask the supervisor and all shards at the same time and merge what they say."""
    check_access(rundir)
    recorded = _recorded(rundir)
    results = _ask_each(rundir, [rundir.supervisor_query, *map(rundir.shard_query, recorded)], timeout)
    supervised = None
    if rundir.supervisor_query in results:
        supervised = understood(results[rundir.supervisor_query], Status)
        # Shards that were started between the look at the records and the supervisor's answer.
        new = [row.id for row in supervised.shards if row.id not in recorded]
        results |= _ask_each(rundir, list(map(rundir.shard_query, new)), timeout)
    results.pop(rundir.supervisor_query, None)
    answers = [understood(result, ShardAnswer) for result in results.values()]
    status = merge_status(supervised, {answer.shard: answer for answer in answers}, recorded)
    for row in status.shards:
        if row.pid is not None and row.state is not ShardState.DOWN and not row.rss_bytes:
            row.rss_bytes = _rss(row.pid)
    if supervised is not None:
        return Collected(status, supervisor_silent=False)
    is_there = is_served(rundir.supervisor_query)
    return Collected(status, is_there, None if is_there else rundir.holder())


def collect_pages(
    rundir: RuntimeDir,
    shards: Iterable[int],
    method: str,
    arguments: dict[str, Any],
    entry_type: type[_Answer],
    position: Callable[[_Answer], Any],
    timeout: float,
) -> Pages:
    """Read a list page by page from each of *shards*.

    *arguments* hold the first ``after``; *position* tells an entry's own. The first page is asked of all shards at
    once, so that the silent ones cost one *timeout* together. A list ends with an empty page: a shard shortens pages as
    it sees fit. Entries that come or go meanwhile may be in or out.
    """
    paths = {shard: rundir.shard_query(shard) for shard in shards}
    entries: dict[int, list[Any]] = {}
    silent: list[int] = []
    try:
        first = query.ask_many(paths.values(), method, arguments | {"limit": query.MAX_PAGE}, timeout=timeout)
        for shard, path in paths.items():
            if path not in first:
                if is_served(path):
                    silent.append(shard)
                continue
            page = understood(first[path], list[entry_type])  # type: ignore[valid-type]  # a type held in a variable
            found = entries[shard] = list(page)
            while page:
                further = {"after": position(page[-1]), "limit": query.MAX_PAGE}
                answer = query.ask_many([path], method, arguments | further, timeout=timeout).get(path)
                if answer is None:
                    silent.append(shard)
                    break
                page = understood(answer, list[entry_type])  # type: ignore[valid-type]  # same
                found += page
    except query.QueryError as error:
        raise failed(error) from None
    return Pages(entries, silent)


def living_shards(rundir: RuntimeDir, only: int | None = None) -> list[int]:
    """The numbers of the shards that run, or of the *only* one that is asked for.

    Raises `CommandError` when that one does not run, or when there is none and no supervisor either.
    """
    check_access(rundir)
    # Across pid namespaces a record says nothing, and the socket all the more.
    living = [n for n, record in _recorded(rundir).items() if record.alive or is_served(rundir.shard_query(n))]
    if not living and not is_served(rundir.supervisor_query):
        raise nothing_runs(rundir)
    if only is None:
        return living
    if only not in living:
        known = ", ".join(map(str, living)) or "none"
        raise CommandError(ExitCode.NOT_REACHABLE, f"shard {only} is not running; running shards: {known}")
    return [only]


def warn_of_silence(silent: list[int], timeout: float) -> None:
    """Raise `CommandError` when shards were silent: the list that was printed lacks what is theirs."""
    if silent:
        names = ", ".join(map(str, silent))
        raise CommandError(
            ExitCode.TIMED_OUT,
            f"incomplete: no answer within {timeout:g} s from shard {names}; see 'shardgate status'",
        )


def _ask_each(rundir: RuntimeDir, paths: list[Path], timeout: float) -> dict[Path, Any]:
    """Status answers by path, of those that answer within *timeout*; see `_PATIENCE`."""
    deadline, patience = time.monotonic() + timeout, _PATIENCE
    answers: dict[Path, Any] = {}

    def is_there(path: Path) -> bool:
        return is_served(path) or (path == rundir.supervisor_query and _supervisor_runs(rundir))

    while paths:
        left = max(deadline - time.monotonic(), _LOOK_AGAIN)
        answers |= _ask_once(paths, min(patience, left))
        if time.monotonic() >= deadline:
            break
        paths = [path for path in paths if path not in answers and is_there(path)]
        patience *= 2
        time.sleep(_LOOK_AGAIN if paths else 0)
    return answers


def _ask_once(paths: list[Path], timeout: float) -> dict[Path, Any]:
    """Status answers by path. Who cannot answer properly is left out: a status shows what there is."""
    try:
        return query.ask_many(paths, "status", timeout=timeout)
    except query.QueryError:
        answers: dict[Path, Any] = {}
        for path in paths:
            with contextlib.suppress(query.QueryError):
                answers |= query.ask_many([path], "status", timeout=timeout)
        return answers


def _recorded(rundir: RuntimeDir) -> dict[int, RecordedShard]:
    now = time.time()
    found = {}
    for number in rundir.recorded_shards():
        record = rundir.read_shard(number)
        if record is not None:
            found[number] = RecordedShard(record.pid, record.is_alive(), max(now - record.create_time, 0.0))
    return found


def _supervisor_runs(rundir: RuntimeDir) -> bool:
    record = rundir.read_supervisor()
    return record is not None and record.is_alive()


def _no_answer(rundir: RuntimeDir, error: query.QueryError, method: str, timeout: float) -> CommandError:
    if isinstance(error, query.NotReachable):
        return _supervisor_is_down(rundir)
    # It lies in its socket, and is done if the supervisor comes to itself.
    later = "; it may still do what it was told" if method in _ACTING else ""
    text = f"the supervisor in {rundir.path} did not answer within {timeout:g} s{later}"
    return CommandError(ExitCode.TIMED_OUT, text)


def _supervisor_is_down(rundir: RuntimeDir) -> CommandError:
    living = sum(record.alive for record in _recorded(rundir).values())
    if not living:
        return nothing_runs(rundir)
    return CommandError(
        ExitCode.NOT_REACHABLE,
        f"no supervisor is running in {rundir.path} ({living} of its shards still serve);"
        " start one with 'shardgate run'",
    )


def _rss(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
