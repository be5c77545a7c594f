"""The command ``shardgate``; ``python -m shardgate`` is the same.

It only makes sure that the packages around it are ours: the import name ``supervisor`` belongs to supervisord as well,
and in a shared environment either may lie on top of the other.
"""

import sys

_ADVICE = "install shardgate into an environment of its own (pipx, uv tool or a venv)"


def _why_not_ours() -> str | None:
    try:
        import supervisor
    except Exception as error:  # noqa: BLE001 - a strange package may fail in any way; the operator gets a sentence
        return f"its package 'supervisor' cannot be imported ({type(error).__name__}: {error})"
    if getattr(supervisor, "PROJECT", None) == "shardgate":
        return None
    # A folder without __init__.py is a package without a file.
    where = getattr(supervisor, "__file__", None) or ", ".join(getattr(supervisor, "__path__", ["an unknown place"]))
    return f"the Python package 'supervisor' in {where} is not its own (supervisord's has the same name)"


def main() -> int:
    """Run the command line and return its exit code; 1 with one sentence when ``supervisor`` is not ours."""
    try:
        reason = _why_not_ours()
        if reason is not None:
            print(f"shardgate cannot start: {reason}; {_ADVICE}", file=sys.stderr)
            return 1
        from supervisor.cli.main import main as run_command_line

        return run_command_line()
    except ImportError as error:
        print(f"shardgate cannot start: {error}; install it again, with what it depends on", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        # Before the command line was there to take it.
        return 130


if __name__ == "__main__":
    sys.exit(main())
