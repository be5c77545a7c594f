"""What the supervisor has on disk: its directories, sockets and side files, looked after as long as it serves."""

from collections.abc import Callable, Sequence
from functools import partial

from ipc.places import LOOK_SECONDS, CannotMend, Places
from ipc.rundir import RuntimeDir, RuntimeDirError
from ipc.side_files import SideFiles
from ipc.timers import Every
from supervisor.acceptor import Acceptor
from supervisor.journal import Journal
from supervisor.listeners import Listener, ListenError, open_again


class Footing:
    """The places and the side files of one supervisor: its *directories*, and what is added to *places*."""

    def __init__(self, directories: Sequence[RuntimeDir], journal: Journal) -> None:
        self.files = SideFiles()
        self.places = Places(journal.supervisor)
        self._timer = Every(LOOK_SECONDS, self.look)
        for directory in directories:
            directory.files = self.files
            self.places.add(directory.path, "the directory", partial(_made_by, directory.make_again))
            self.places.add(directory.lock_path, "the lock", partial(_made_by, directory.lock))

    @property
    def problems(self) -> list[str]:
        """What is not on disk as it should be, for people."""
        return [*self.places.problems, *self.files.problems]

    def look_after(self, listener: Listener, acceptor: Acceptor, on_replaced: Callable[[], None]) -> None:
        """Open the Unix socket of *listener* again when its file is gone, beside the old one; then *on_replaced*.

        Whoever waits in the old one's queue is accepted there, and so is who reaches it by another name.
        """
        path = listener.path
        if path is None or listener.kept.file is None:
            return
        current = listener

        def mend() -> None:
            nonlocal current
            current, old = _opened_again(current), current
            acceptor.replace(old, current)
            on_replaced()

        self.places.add(path, "the socket for agents", mend)

    def stop(self) -> None:
        """Look after nothing, and write nothing, any more."""
        self._timer.cancel()
        self.places.clear()
        self.files.close()

    def look(self) -> None:
        """Look at everything now, and mend what others have removed."""
        self.places.look()
        self.files.look()


def _made_by(make: Callable[[], object]) -> None:
    try:
        make()
    except RuntimeDirError as error:
        raise CannotMend(str(error)) from error


def _opened_again(listener: Listener) -> Listener:
    try:
        return open_again(listener)
    except ListenError as error:
        raise CannotMend(str(error)) from error
