"""Queries to the supervisor and the shards. A process that does not answer becomes an error for the operator."""

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
"""Seconds until a query that changes nothing is sent again. The time doubles for each further attempt.

A supervisor that takes over opens its socket some 5 ms after its predecessor closed its own. Queries that reached the
predecessor in its last moment are lost.
"""

_Answer = TypeVar("_Answer")


class Collected(NamedTuple):
    """A status, and the state of a supervisor that is missing in it.

    *supervisor_silent* means that the supervisor listens and did not answer in time. *held_by* is the pid of a
    supervisor that runs without its sockets; None otherwise.
    """

    status: Status
    supervisor_silent: bool
    held_by: int | None = None


class Pages(NamedTuple):
    """Entries by shard, and the shards that listen but did not answer in time."""

    entries: dict[int, list[Any]]
    silent: list[int]


def nothing_runs(rundir: RuntimeDir) -> CommandError:
    """The error for a runtime directory without any running process."""
    return CommandError(
        ExitCode.NOT_REACHABLE, f"no shardgate is running in {rundir.path}; start one with 'shardgate run'"
    )


def check_access(rundir: RuntimeDir) -> None:
    """Raise `CommandError` when the directory exists but cannot be read. Its processes would seem to be down."""
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
    """Ask the supervisor. Every failure is a `CommandError` with its exit code."""
    check_access(rundir)
    deadline = time.monotonic() + timeout
    patience = timeout if method in _ACTING else _PATIENCE
    while True:
        left = max(deadline - time.monotonic(), _LOOK_AGAIN)
        try:
            result = query.ask(rundir.supervisor_query, method, arguments, timeout=min(patience, left))
        except (query.NotReachable, query.NoAnswer) as error:
            # A query that acts is sent once: a supervisor that hung up may have begun to act.
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
    """The error for a process that refused, or sent an answer that cannot be decoded."""
    code = ExitCode.REFUSED if isinstance(error, query.Refused) else ExitCode.FAILED
    lines = [safe(line, 1000) for line in str(error).splitlines()]
    return CommandError(code, lines[0] if len(lines) == 1 else "\n".join(["refused:", *lines]))


def understood(result: object, answer_type: type[_Answer]) -> _Answer:
    """Convert an answer to *answer_type*. Raises `CommandError` when its shape is another."""
    try:
        return msgspec.convert(result, answer_type)
    except msgspec.ValidationError as error:
        raise CommandError(
            ExitCode.FAILED, f"an answer that this version cannot read ({error}); is shardgate of two versions in use?"
        ) from None


def collect_status(rundir: RuntimeDir, timeout: float) -> Collected:
    """Ask the supervisor and all shards at the same time, and merge their answers."""
    check_access(rundir)
    recorded = _recorded(rundir)
    results = _ask_each(rundir, [rundir.supervisor_query, *map(rundir.shard_query, recorded)], timeout)
    supervised = None
    if rundir.supervisor_query in results:
        supervised = understood(results[rundir.supervisor_query], Status)
        # Shards that started after the records were read, and before the supervisor answered.
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

    *arguments* hold the first ``after``; *position* returns the position of an entry. The first page is asked of all
    shards at once, so all silent shards together cost one *timeout*. A shard may shorten any page. Only an empty page
    ends a list. Entries that come or go meanwhile may be in the list or not.
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
    """Return the numbers of the running shards, or of the shard *only* alone.

    Raises `CommandError` when *only* does not run, or when neither a shard nor the supervisor runs.
    """
    check_access(rundir)
    # From another pid namespace the pid of a record is useless. The socket works from there.
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
    """Raise `CommandError` when shards were silent: the printed list lacks their entries."""
    if silent:
        names = ", ".join(map(str, silent))
        raise CommandError(
            ExitCode.TIMED_OUT,
            f"incomplete: no answer within {timeout:g} s from shard {names}; see 'shardgate status'",
        )


def _ask_each(rundir: RuntimeDir, paths: list[Path], timeout: float) -> dict[Path, Any]:
    """Return the status answers within *timeout*, by path. Queries are repeated, see `_PATIENCE`."""
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
    """Return status answers by path. A process with a bad answer is left out, so that the others are shown."""
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
    # The query stays in the supervisor's socket. It is carried out when the supervisor goes on.
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
