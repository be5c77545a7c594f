"""The command ``shardgate``; ``python -m shardgate`` is the same.

It first checks that the packages beside it belong to shardgate. supervisord has the import name ``supervisor`` too, and
in a shared environment either may overwrite the other. The names ``ipc``, ``shards`` and ``dialout`` are as short. Then
it opens closed standard streams and, for ``run``, sets the signal handlers. Slow imports come after that.
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
    # dialout is not imported: the import takes longer than most commands.
    spec = importlib.util.find_spec("dialout")
    if spec is None:
        return "its package 'dialout' cannot be imported (there is none)"
    get_source = getattr(spec.loader, "get_source", None)
    source = get_source("dialout") if get_source is not None else ""
    # An installation of compiled files only has no source to check.
    if source is not None and 'PROJECT = "shardgate"' not in source:
        return _not_its_own(
            "dialout", spec.origin or ", ".join(spec.submodule_search_locations or ["an unknown place"])
        )
    return None


def _not_its_own(name: str, where: str) -> str:
    others = " (supervisord's has the same name)" if name == "supervisor" else ""
    return f"the Python package '{name}' in {where} is not its own{others}"


def main() -> int:
    """Run the command line and return its exit code. When a package is not ours, print one sentence and return 1."""
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
        # Ctrl-C came before the command line could handle it.
        return 130


if __name__ == "__main__":
    sys.exit(main())
