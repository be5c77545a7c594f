"""SIGTERM and SIGINT for the managers of one process: handlers are set once for all of them, and restored.

A handler is set with ``signal.signal``, and not with ``loop.add_signal_handler``. The loop keeps one callback for each
signal and has no way to read it. A framework's callback could never be restored.
"""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

__all__ = ["handling"]

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class _Shared:
    """The signals with a handler of this module, their former handlers, and the callbacks of the managers."""

    def __init__(self) -> None:
        self._callbacks: list[tuple[asyncio.AbstractEventLoop, Callable[[], None]]] = []
        self._before: dict[int, Any] = {}
        self._ours = self._on_signal  # One bound method, which ``is`` can compare.

    def add(self, callback: Callable[[], None], *, always: bool) -> None:
        """Add a callback for the running loop, for each signal that is free, or with ``always`` for all."""
        self._callbacks.append((asyncio.get_running_loop(), callback))
        for number in _SIGNALS:
            before = signal.getsignal(number)
            if before is not self._ours and (always or _is_default(before)):
                signal.signal(number, self._ours)
                self._before[number] = before

    def remove(self, callback: Callable[[], None]) -> None:
        """Remove a callback. After the last one, restore the former handlers, unless others were set since."""
        self._callbacks = [one for one in self._callbacks if one[1] != callback]
        if self._callbacks:
            return
        before, self._before = self._before, {}
        for number, handler in before.items():
            # None means a handler that was not set by Python, and cannot be set again.
            if signal.getsignal(number) is self._ours and handler is not None:
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        for loop, callback in self._callbacks:
            with contextlib.suppress(RuntimeError):  # The loop has ended.
                loop.call_soon_threadsafe(callback)
        before = self._before.get(number)
        if callable(before) and not _is_default(before):
            before(number, frame)  # A framework's handler that was replaced on purpose runs, too.


_shared: Final = _Shared()


@contextlib.contextmanager
def handling(callback: Callable[[], None], wanted: bool | None) -> Iterator[None]:
    """Call ``callback`` for SIGTERM and SIGINT inside the block.

    With ``wanted`` None, a signal is handled only in the main thread, and only if its handler is that of Python or
    ``asyncio.run``. A framework thus keeps its signals.
    """
    if wanted is False or threading.current_thread() is not threading.main_thread():
        yield
        return
    _shared.add(callback, always=wanted is True)
    try:
        yield
    finally:
        _shared.remove(callback)


def _is_default(handler: Any) -> bool:
    """Whether a handler is the default one, which no program has set."""
    if handler is signal.SIG_DFL or handler is signal.default_int_handler:
        return True
    # A partial of a method of asyncio.Runner, which cancels the main task at the first Ctrl-C.
    method = getattr(handler, "func", None)
    return isinstance(getattr(method, "__self__", None), asyncio.Runner)
