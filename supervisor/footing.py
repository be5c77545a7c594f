"""Watch the supervisor's directories, sockets and side files on disk, and restore them when they are removed."""

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
    """The side files of one supervisor, and its places: its *directories*, and the paths that are added to *places*."""

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
        """The problems with places and side files, as texts for people."""
        return [*self.places.problems, *self.files.problems]

    def look_after(self, listener: Listener, acceptor: Acceptor, on_replaced: Callable[[], None]) -> None:
        """Open the Unix socket of *listener* again when its file is gone, beside the old one; then call *on_replaced*.

        The old socket still accepts: connections may wait in its queue, or reach it by another name.
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
        """Stop the checks, and write no more files."""
        self._timer.cancel()
        self.places.clear()
        self.files.close()

    def look(self) -> None:
        """Check all places and side files now, and restore the missing ones."""
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
