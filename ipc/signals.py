"""Sets the effect of each signal on a process of shardgate. Only signals of program errors keep a deadly default.

An entry point calls `decide` before any slow import. A tool that signals a process in the first second of its life
must not end it. For that reason this module imports neither asyncio nor logging.

`on` connects a signal to a function in the loop, once there is a loop. A signal that comes earlier is remembered, and
acts then. SIGTERM ends a process that has not connected it yet. SIGINT does the same in the supervisor.
"""

import contextlib
import faulthandler
import signal
import sys
import time
from collections.abc import Callable, Iterable
from enum import Enum
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import asyncio  # Its import takes a tenth of the start of a process.

NOTE_SECONDS = 1.0
"""Seconds between two log lines about the same signal, when it has no meaning here."""


_ROOM = 1024 * 1024
"""Bytes of stack for signal handlers. Unused pages take no memory."""


class Kind(Enum):
    """How a process handles a signal."""

    ACT = "a function of ours"
    STACKS = "all stacks go to the log"
    NOTE = "a line in the log"
    IGNORE = "ignored (SIG_IGN)"
    DEFAULT = "what the kernel does by itself (SIG_DFL)"


class Meaning(NamedTuple):
    """The effect of a signal on one kind of process, and its description for operators."""

    kind: Kind
    text: str


class Role(Enum):
    """The kind of process that gets the signals."""

    SUPERVISOR = 0
    SHARD = 1


_NOTED = Meaning(Kind.NOTE, "noted in the log, no effect")
_STACKS = Meaning(Kind.STACKS, "logs the stacks of all threads and tasks, and goes on")
_STOP = Meaning(Kind.ACT, "stops in order; a second one stops at once")
_WRITES = Meaning(Kind.IGNORE, "ignored; the write that failed says so")
_JOB = Meaning(Kind.IGNORE, "ignored; a job in the background goes on")
_HARMLESS = Meaning(Kind.DEFAULT, "no effect")
_ERROR = Meaning(Kind.DEFAULT, "an error of the program: prints its stacks and ends")
_FATAL = Meaning(Kind.DEFAULT, "an error of the program: ends")

TABLE: dict[str, tuple[Meaning, Meaning]] = {
    "SIGTERM": (_STOP, Meaning(Kind.ACT, "drains and ends; the supervisor starts it again")),
    "SIGINT": (_STOP, _NOTED),
    "SIGHUP": (Meaning(Kind.ACT, "reads the configuration and the tokens again"), _NOTED),
    "SIGUSR2": (Meaning(Kind.ACT, "starts the installed code in its place"), _NOTED),
    "SIGUSR1": (_NOTED, _NOTED),
    "SIGQUIT": (_STACKS, _STACKS),
    "SIGCHLD": (Meaning(Kind.ACT, "collects processes that have ended"), _HARMLESS),
    "SIGALRM": (_NOTED, _NOTED),
    "SIGVTALRM": (_NOTED, _NOTED),
    "SIGPROF": (_NOTED, _NOTED),
    "SIGIO": (_NOTED, _NOTED),
    "SIGPWR": (_NOTED, _NOTED),
    "SIGSTKFLT": (_NOTED, _NOTED),
    "SIGXCPU": (_NOTED, _NOTED),
    "SIGRTMIN … SIGRTMAX": (_NOTED, _NOTED),
    "SIGPIPE": (_WRITES, _WRITES),
    "SIGXFSZ": (_WRITES, _WRITES),
    "SIGTTIN": (_JOB, _JOB),
    "SIGTTOU": (_JOB, _JOB),
    "SIGTSTP": (
        Meaning(Kind.DEFAULT, "stops until SIGCONT, as SIGSTOP does; shards serve on"),
        Meaning(Kind.IGNORE, "ignored"),
    ),
    "SIGCONT": (_HARMLESS, _HARMLESS),
    "SIGURG": (_HARMLESS, _HARMLESS),
    "SIGWINCH": (_HARMLESS, _HARMLESS),
    "SIGABRT": (_ERROR, _ERROR),
    "SIGBUS": (_ERROR, _ERROR),
    "SIGFPE": (_ERROR, _ERROR),
    "SIGILL": (_ERROR, _ERROR),
    "SIGSEGV": (_ERROR, _ERROR),
    "SIGSYS": (_FATAL, _FATAL),
    "SIGTRAP": (_FATAL, _FATAL),
}
"""For the supervisor and for a shard. `deploy/SIGNALS.md` shows this table. SIGKILL and SIGSTOP cannot be handled."""

_REAL_TIME = "SIGRTMIN … SIGRTMAX"

_UNSTOPPABLE = frozenset({signal.SIGKILL, signal.SIGSTOP})

_ERRORS = frozenset(
    {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS, signal.SIGTRAP}
)

_NAMES = {member.value: member.name for member in signal.Signals}


class _State:
    """The state of this process."""

    role = Role.SUPERVISOR
    acts: dict[int, Callable[[], object]] = {}  # noqa: RUF012 - one for the process, as signals are
    early: set[int] = set()  # noqa: RUF012 - as above
    noted: dict[int, int] = {}  # noqa: RUF012 - as above
    noted_at: dict[int, float] = {}  # noqa: RUF012 - as above
    log: Any = None
    stacks: Callable[[FrameType | None], Iterable[dict[str, Any]]] | None = None
    is_over = False
    room: Any = None


def numbers() -> list[int]:
    """All signals that a process can handle: `signal.valid_signals` without SIGKILL and SIGSTOP."""
    return sorted(int(number) for number in signal.valid_signals() if number not in _UNSTOPPABLE)


def name_of(number: int) -> str:
    """The name of a signal. Real-time signals between the first and the last are numbered from SIGRTMIN."""
    return _NAMES.get(number, f"SIGRTMIN+{number - signal.SIGRTMIN}")


def meaning(number: int, role: Role) -> Meaning:
    """The meaning of a signal to a process of this *role*. An unknown signal is only noted."""
    if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
        return TABLE[_REAL_TIME][role.value]
    # Some signals have two names: SIGIO is SIGPOLL, SIGCHLD is SIGCLD, SIGABRT is SIGIOT.
    for name, meanings in TABLE.items():
        if getattr(signal, name, None) == number:
            return meanings[role.value]
    return _NOTED


def decide(role: Role) -> None:
    """Set the effect of every signal, even if the parent ignored or blocked it. Call it in the main thread."""
    _State.role = role
    for number in numbers():
        match meaning(number, role).kind:
            case Kind.IGNORE:
                signal.signal(number, signal.SIG_IGN)
            case Kind.DEFAULT:
                signal.signal(number, signal.SIG_DFL)
            case _:
                signal.signal(number, _handle)
    # Unblock them one by one. Otherwise all pending signals come at once, each on top of the handler before it.
    for number in numbers():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (number,))


@contextlib.contextmanager
def held_back() -> Any:
    """Block signals while a process is started. The child keeps the mask over exec(3), until it calls `decide`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _ERRORS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def on(loop: "asyncio.AbstractEventLoop", number: int, act: Callable[[], object]) -> None:
    """Make *loop* call *act* for a signal from now on, and soon once if the signal has come already."""

    def soon() -> None:
        # The loop is closed at the end of the process.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(act)

    _State.acts[number] = soon
    signal.signal(number, _handle)
    if number in _State.early:
        _State.early.discard(number)
        soon()


def log_to(log: Any, stacks: Callable[[FrameType | None], Iterable[dict[str, Any]]]) -> None:
    """Log signals from now on, including earlier ones. *stacks* makes the fields of the lines about all stacks.

    From now on SIGSEGV and the other program errors print the stacks.
    """
    _State.log, _State.stacks = log, stacks
    _print_stacks_of_errors()
    for number in list(_State.noted):
        _note(number)


def over() -> None:
    """Disable all signals that call a function: the process is ending."""
    _State.is_over = True
    _State.acts.clear()


def _print_stacks_of_errors() -> None:
    """Enable faulthandler, with room for all signals at once.

    faulthandler gives signal handlers a separate stack, and Python's handlers run on it as well. Its 16 KiB are enough
    for four signals at a time, with the registers of AVX-512. The fifth causes a SIGSEGV.
    """
    import ctypes
    import mmap

    class Stack(ctypes.Structure):
        """``stack_t`` of sigaltstack(2)."""

        _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))

    with contextlib.suppress(OSError, RuntimeError, ValueError):  # Standard error has no descriptor.
        faulthandler.enable()
    if _State.room is None:
        _State.room = mmap.mmap(-1, _ROOM)
        start = ctypes.addressof(ctypes.c_char.from_buffer(_State.room))
        ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(start, 0, _ROOM)), None)


def _handle(number: int, frame: FrameType | None) -> None:
    act = _State.acts.get(number)
    kind = meaning(number, _State.role).kind
    if act is not None:
        act()
    elif kind is Kind.STACKS:
        _log_stacks(frame)
    elif kind is Kind.NOTE:
        _State.noted[number] = _State.noted.get(number, 0) + 1
        _note(number)
    elif not _State.is_over:
        _came_early(number)


def _came_early(number: int) -> None:
    if number == signal.SIGTERM:
        sys.exit(0)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    _State.early.add(number)


def _note(number: int) -> None:
    now = time.monotonic()
    if _State.log is None or now < _State.noted_at.get(number, 0.0):
        return
    _State.noted_at[number] = now + NOTE_SECONDS
    _State.log.warning("signal without a meaning here", signal=name_of(number), n=_State.noted.pop(number))


def _log_stacks(frame: FrameType | None) -> None:
    if _State.log is None or _State.stacks is None:
        faulthandler.dump_traceback()
        return
    for fields in _State.stacks(frame):
        _State.log.warning("stack", **fields)
