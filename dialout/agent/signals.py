"""SIGTERM and SIGINT for the managers of one process: taken once for all of them, and given back.

A handler is set with ``signal.signal``, and not with ``loop.add_signal_handler``: the loop keeps one callback for each
signal and cannot say which, so that what a framework had set there could never be restored.
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
    """The signals that are taken now, what handled them before, and the callbacks that want them."""

    def __init__(self) -> None:
        self._callbacks: list[tuple[asyncio.AbstractEventLoop, Callable[[], None]]] = []
        self._before: dict[int, Any] = {}
        self._ours = self._on_signal  # One object, to be known again.

    def add(self, callback: Callable[[], None], *, always: bool) -> None:
        """Have a callback called in the running loop, for each signal that is free, or with ``always`` for all."""
        self._callbacks.append((asyncio.get_running_loop(), callback))
        for number in _SIGNALS:
            before = signal.getsignal(number)
            if before is not self._ours and (always or _is_default(before)):
                signal.signal(number, self._ours)
                self._before[number] = before

    def remove(self, callback: Callable[[], None]) -> None:
        """Call it no more; behind the last one the signals are as they were, unless another has taken them since."""
        self._callbacks = [one for one in self._callbacks if one[1] != callback]
        if self._callbacks:
            return
        before, self._before = self._before, {}
        for number, handler in before.items():
            # None stands for a handler that was not set by Python, and could not be set again.
            if signal.getsignal(number) is self._ours and handler is not None:
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        for loop, callback in self._callbacks:
            with contextlib.suppress(RuntimeError):  # The loop has ended.
                loop.call_soon_threadsafe(callback)
        before = self._before.get(number)
        if callable(before) and not _is_default(before):
            before(number, frame)  # A framework whose signals were taken on purpose learns of them, too.


_shared: Final = _Shared()


@contextlib.contextmanager
def handling(callback: Callable[[], None], wanted: bool | None) -> Iterator[None]:
    """Have ``callback`` called for SIGTERM and SIGINT meanwhile.

    ``wanted`` None takes a signal only where nothing else has: in the main thread, with the handler that Python or
    ``asyncio.run`` sets. So the signals of a framework stay its own.
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
    """Whether a handler is the one that a signal has when no program has asked for it."""
    if handler is signal.SIG_DFL or handler is signal.default_int_handler:
        return True
    # A partial of a method of asyncio.Runner, which cancels the main task at the first Ctrl-C.
    method = getattr(handler, "func", None)
    return isinstance(getattr(method, "__self__", None), asyncio.Runner)
