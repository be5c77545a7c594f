"""All stacks of this process as log lines, for SIGQUIT: one line for each thread, and one for each asyncio task."""

import asyncio
import itertools
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

MOST_FRAMES = 25
"""Frames of one stack, the innermost ones. So a line stays below the size of an atomic write to a pipe (PIPE_BUF)."""

MOST_TASKS = 100

_ROOT = str(Path(__file__).resolve().parents[1])


def stacks(frame: FrameType | None) -> Iterator[dict[str, Any]]:
    """Yield the fields of each line. *stack* has the innermost frame first. *frame* is the one that the signal hit."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    for ident, current in sys._current_frames().items():  # noqa: SLF001 - the documented way; threading has none
        # Leave out the frames of the signal handler on top of the main thread's stack.
        top = frame if ident == main and frame is not None else current
        frames = itertools.islice(traceback.walk_stack(top), MOST_FRAMES)
        yield {"thread": names.get(ident, str(ident)), "stack": [_place(f, line) for f, line in frames]}
    for task in _tasks()[:MOST_TASKS]:
        yield {"task": task.get_name(), "stack": [_place(f, f.f_lineno) for f in _awaited(task.get_coro())]}


def _tasks() -> list["asyncio.Task[Any]"]:
    try:
        return list(asyncio.all_tasks(asyncio.get_running_loop()))
    except RuntimeError:
        return []


def _awaited(coroutine: Any) -> list[FrameType]:
    """The frames of a coroutine and of the coroutines that it awaits, the innermost first."""
    frames: deque[FrameType] = deque(maxlen=MOST_FRAMES)
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        frames.appendleft(frame)
        coroutine = coroutine.cr_await
    return list(frames)


def _place(frame: FrameType, line: int | None) -> str:
    code = frame.f_code
    return f"{code.co_filename.removeprefix(_ROOT).lstrip('/')[-80:]}:{line} {code.co_qualname}"
