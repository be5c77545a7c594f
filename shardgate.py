"""The command ``shardgate``; ``python -m shardgate`` is the same.

It makes sure that the packages around it are ours: the import name ``supervisor`` belongs to supervisord as well, and
in a shared environment either may lie on top of the other. The names ``ipc``, ``shards`` and ``dialout`` are as short.
Then, before anything that takes time is imported, it opens standard streams that are closed, and decides about signals.
"""

import importlib
import importlib.util
import sys

_ADVICE = "install shardgate into an environment of its own (pipx, uv tool or a venv)"


def _why_not_ours() -> str | None:
    for name in ("supervisor", "ipc", "shards"):
        try:
            package = importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - a strange package may fail in any way; the operator gets a sentence
            return f"its package '{name}' cannot be imported ({type(error).__name__}: {error})"
        if getattr(package, "PROJECT", None) != "shardgate":
            # A folder without __init__.py is a package without a file.
            where = getattr(package, "__file__", None) or ", ".join(getattr(package, "__path__", ["an unknown place"]))
            return _not_its_own(name, where)
    # Not imported, which would take longer than most commands do.
    spec = importlib.util.find_spec("dialout")
    if spec is None:
        return "its package 'dialout' cannot be imported (there is none)"
    get_source = getattr(spec.loader, "get_source", None)
    source = get_source("dialout") if get_source is not None else ""
    # Where only compiled files are installed there is no source to look at.
    if source is not None and 'PROJECT = "shardgate"' not in source:
        return _not_its_own(
            "dialout", spec.origin or ", ".join(spec.submodule_search_locations or ["an unknown place"])
        )
    return None


def _not_its_own(name: str, where: str) -> str:
    others = " (supervisord's has the same name)" if name == "supervisor" else ""
    return f"the Python package '{name}' in {where} is not its own{others}"


def main() -> int:
    """Run the command line and return its exit code; 1 with one sentence when a package is not ours."""
    try:
        reason = _why_not_ours()
        if reason is not None:
            print(f"shardgate cannot start: {reason}; {_ADVICE}", file=sys.stderr)
            return 1
        from ipc import streams

        streams.open_standard()
        if sys.argv[1:2] == ["run"]:
            from ipc import signals

            signals.decide(signals.Role.SUPERVISOR)
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
