"""The levels of log lines, by name. Separate from `ipc.logs`, because its import takes longer than most commands."""

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}

LEVEL_NAMES = ("debug", "info", "warning", "error")
"""The levels that a user may choose."""
