"""What the package offers, and what it leans on."""

import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import dialout
from dialout import errors

ROOT = Path(dialout.__file__).parents[1]


def test_package_exports_every_public_name_of_its_errors() -> None:
    assert set(errors.__all__) <= set(dialout.__all__)
    assert [name for name in dialout.__all__ if not hasattr(dialout, name)] == []


def modules_after(statement: str) -> set[str]:
    program = f"{statement}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.split()) - sys.stdlib_module_names


def test_package_imports_nothing_but_standard_library_and_msgspec() -> None:
    assert modules_after("import dialout") - modules_after("import msgspec") == {"dialout"}


def test_error_tree_in_docstring_is_the_real_one() -> None:
    drawn = {word for word in (errors.__doc__ or "").split() if word[0].isupper() and hasattr(errors, word)}
    classes = {name for name in errors.__all__ if issubclass(getattr(errors, name), Exception)}
    assert drawn == classes
    assert errors.FrameError.__subclasses__() == [
        errors.ZeroLengthFrame,
        errors.OversizedFrame,
        errors.TruncatedFrame,
    ]


def test_examples_of_readme_register_and_serve_each_other() -> None:
    readme = (Path(__file__).parents[2] / "dialout" / "README.md").read_text()
    core = readme[readme.index("## The core") :].partition("\n## ")[0]
    # One block for the agent, one for the listener, twice: to register, and to serve.
    blocks = re.findall(r"```python\n(.*?)```", core, re.DOTALL)
    agent, listener = "".join(blocks[0::2]), "".join(blocks[1::2])
    seen: dict[str, dict[str, object]] = {}

    def play(side: str, program: str, sock: socket.socket) -> None:
        names = seen[side] = {"sock": sock}
        with sock:
            sock.settimeout(10)
            exec(program, names)

    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=play, args=("listener", listener, theirs))
    thread.start()
    play("agent", agent, ours)
    thread.join(10)
    answer, registration = seen["agent"]["answer"], seen["listener"]["registration"]
    assert isinstance(answer, dialout.RegistrationResponse)
    assert isinstance(registration, dialout.Registration)
    assert answer.accepted
    assert answer.assigned_id == "waf-worker-3-conn-1"
    assert registration.auth_token == "secret-token"
    assert registration.capabilities.max_concurrent == 100
    assert seen["listener"]["decision"] == {"block": {"status": 403, "body": "no admittance"}}
