"""Exit codes, and the error that carries one."""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the commands. Scripts rely on the numbers."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_HEALTHY = 3
    NOT_REACHABLE = 4
    REFUSED = 5
    TIMED_OUT = 6
    BAD_CONFIG = 78


class CommandError(Exception):
    """Ends a command with an exit code and a message that tells the operator how to go on."""

    def __init__(self, exit_code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code
