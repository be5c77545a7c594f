"""Be the service manager that passes sockets: ``python passing.py DESCRIPTORS NAMES COMMAND...`` (sd_listen_fds(3))."""

import fcntl
import os
import sys


def prefix(descriptors: list[int], names: str = "", pid: str = "") -> tuple[str, ...]:
    """What stands in front of a command that gets these descriptors, which the child must inherit."""
    return (sys.executable, "-P", __file__, ",".join(map(str, descriptors)), names, pid)


def main(descriptors: str, names: str, pid: str, *command: str) -> None:
    """Put the descriptors at 3 and above, and become the command; *pid* is named instead of our own."""
    # First out of the way: one of them may have the number that another one gets.
    high = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in descriptors.split(",") if fd]
    for number, fd in enumerate(high, 3):
        os.dup2(fd, number, inheritable=True)
        os.close(fd)
    os.environ.update(LISTEN_PID=pid or str(os.getpid()), LISTEN_FDS=str(len(high)))
    if names:
        os.environ["LISTEN_FDNAMES"] = names
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
