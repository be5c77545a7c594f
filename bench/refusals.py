"""What a refused registration costs beside an ordinary one, whatever it holds.

    python -m bench.refusals                  some seconds
    python -m bench.refusals --check          exit code 3 when one costs more than its share
    python -m bench.refusals --json FILE      every figure, with the machine it ran on

Each kind of content is what makes JSON dear for some reader: numbers that need arithmetic with hundreds of digits, deep
nesting, many keys, escapes. All registrations of a kind are refused, most for a missing token, some for what they hold
behind a good one. They are as long as a registration may be. Ordinary registrations take turns with them on the same
product, 16 at a time. CPU is that of all processes of the product, as the kernel accounts for it: for ordinary ones
until the pool has been seen full, without their end; for refused ones until the last is closed.

Exit codes: 0 measured · 1 not measured, and why (an answer was another one than it should have been, a process was
replaced) · 2 usage · 3 a budget was missed, with --check.
"""

import contextlib
import hashlib
import json
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import click
import msgspec

from bench.accounting import cpu_ns
from bench.command import Machine, benchmark, or_exit, show
from bench.measure import NotMeasuredError
from bench.report import Budget, table
from bench.targets import Shardgate, shardgate, wait_for_connections
from dialout import Dialect, RegistrationRequest, encode_frame
from supervisor.config.model import Config

AT_A_TIME = 16
MOST_TIMES = 3.0
"""What a refused registration may cost, in ordinary ones."""

TOKEN = "bench-refusals"
PATIENCE_S = 10.0
_HEAD = b'{"protocol_version":2,"agent_id":"waf-1",'
_SIZE = Config().max_registration_bytes - 1


class Kind(msgspec.Struct, frozen=True):
    """Registrations with the same content, and the error code that all are refused with."""

    name: str
    frame_type: int
    payload: bytes
    error_code: str


class Cost(msgspec.Struct, frozen=True):
    """CPU of one refused registration of a kind, and the same in ordinary ones: medians over the rounds."""

    kind: str
    bytes: int
    cpu_us: float
    times: float


class Figures(msgspec.Struct, frozen=True):
    """All that one run found, as `--json` writes it."""

    machine: Machine
    ordinary_cpu_us: float
    costs: list[Cost]
    budgets: list[Budget]


def _filled(before: bytes, unit: bytes, after: bytes, *, separator: bytes = b",") -> bytes:
    """As many units between two texts as a registration may hold."""
    room = _SIZE - len(_HEAD) - len(before) - len(after)
    return _HEAD + before + separator.join([unit] * (room // (len(unit) + len(separator)))) + after


def kinds() -> list[Kind]:
    """All kinds of content."""
    bare = {
        "large floats": _filled(b'"metadata":{"a":[', b"1e308", b"]}}"),
        "long floats": _filled(b'"metadata":{"a":[', b"1.7976931348623157e308", b"]}}"),
        "floats between two": _filled(b'"metadata":{"a":[', b"9007199254740993e22", b"]}}"),
        "floats as capabilities": _filled(b'"capabilities":{"a":[', b"1e308", b"]}}"),
        "floats as ids": _filled(b"", b'"agent_id":1e308', b',"protocol_version":2,"agent_id":"waf-1"}'),
        "floats as tokens": _filled(b"", b'"auth_token":1e308', b',"auth_token":"wrong"}'),
        "long integers": _filled(b'"metadata":{"a":[', b"9" * 4000, b"]}}"),
        "one long number": _filled(b'"metadata":{"a":', b"9", b"}}", separator=b""),
        "nested arrays": _filled(b'"metadata":{"a":[', b"[" * 800 + b"]" * 800, b"]}}"),
        "empty objects": _filled(b'"metadata":{"a":[', b"{}", b"]}}"),
        "many keys": _filled(b'"metadata":{', b'"a":1', b"}}"),
        "many fields": _filled(b"", b'"a":1e308', b"}"),
        "escapes": _filled(b'"metadata":{"a":"', b"\\u00e9", b'"}}', separator=b""),
        "text": _filled(b'"metadata":{"a":"', "é".encode(), b'"}}', separator=b""),
        "a long token": _filled(b'"auth_token":"', b"x", b'"}', separator=b""),
        "an ordinary one": _HEAD + b'"capabilities":{"handles_request_headers":true},"metadata":{"zone":"eu"}}',
    }
    deep = b"[" * 70 + b"]" * 70
    good = b'"auth_token":"%b",' % TOKEN.encode()
    behind_a_token = {
        "with a token, floats": _filled(good + b'"metadata":{"a":[', b"1e308", b"]}}"),
        "with a token, nested": _filled(good + b'"metadata":{"a":[', b"[[]]", b"]," + b'"b":' + deep + b"}}"),
        "with a token, events": _filled(good + b'"capabilities":{"supported_events":[', b"1", b"]}}"),
        "with a token, features": _filled(good + b'"capabilities":{', b'"features":{}', b',"limits":1}}'),
        "with a token, long integers": _filled(good + b'"capabilities":{"supported_events":[', b"9" * 400, b"]}}"),
    }
    found = [Kind(name, 0x03, payload, "auth_failed") for name, payload in bare.items()]
    found.append(
        Kind("nested without end", 0x03, _filled(b'"metadata":', b"[", b"", separator=b""), "bad_registration")
    )
    found += [Kind(name, 0x01, payload, "bad_registration") for name, payload in behind_a_token.items()]
    return found


@contextlib.contextmanager
def _answered(address: str, frames: Sequence[bytes]) -> Iterator[list[dict[str, object]]]:
    """Send each frame over a connection of its own, 16 under way at a time; the answers, with all connections open."""
    with contextlib.ExitStack() as stack:
        answers = []
        for begin in range(0, len(frames), AT_A_TIME):
            batch = []
            for frame in frames[begin : begin + AT_A_TIME]:
                sock = stack.enter_context(socket.socket(socket.AF_UNIX))
                sock.settimeout(PATIENCE_S)
                sock.connect(address)
                sock.sendall(frame)
                batch.append(sock)
            answers += [_read_answer(sock) for sock in batch]
        yield answers


def _read_answer(sock: socket.socket) -> dict[str, object]:
    with sock.makefile("rb") as file:
        length = int.from_bytes(file.read(4))
        frame = file.read(length)
    if not length or len(frame) != length:
        raise NotMeasuredError("a registration was not answered")
    answer: dict[str, object] = json.loads(frame[1:])
    return answer


def measure_ordinary(target: Shardgate, registrations: int, first: int) -> float:
    """CPU in µs of an ordinary registration, until the pool has been seen full. Raises `NotMeasuredError`."""
    before = wait_for_connections(target, 0)
    frames = [
        RegistrationRequest(agent_id=f"waf-{first + n}", auth_token=TOKEN, metadata={"zone": "eu"}).encode(Dialect.SDK)
        for n in range(registrations)
    ]
    spent = cpu_ns(before.pids)
    with _answered(target.address, frames) as answers:
        after = wait_for_connections(target, registrations)
        spent = cpu_ns(before.pids) - spent
    accepted = sum(answer.get("accepted") is True for answer in answers)
    if (accepted, after.connections) != (registrations, registrations) or after.pids != before.pids:
        raise NotMeasuredError(f"{accepted} of {registrations} accepted, {after.connections} in the pool")
    return spent / 1e3 / registrations


def measure_refused(target: Shardgate, all_kinds: Sequence[Kind], registrations: int) -> dict[str, float]:
    """CPU in µs of a refused registration of each kind. Raises `NotMeasuredError` when one had another outcome."""
    before = wait_for_connections(target, 0)
    found = {}
    for kind in all_kinds:
        frame = encode_frame(kind.frame_type, kind.payload)
        spent = cpu_ns(before.pids)
        with _answered(target.address, [frame] * registrations) as answers:
            pass
        found[kind.name] = (cpu_ns(before.pids) - spent) / 1e3 / registrations
        codes = {str(answer.get("error_code")) for answer in answers}
        if codes != {kind.error_code}:
            raise NotMeasuredError(f"{kind.name}: refused with {sorted(codes)}, not with {kind.error_code}")
    after = target.pool()
    expected = Counter({kind.error_code: 0 for kind in all_kinds})
    for kind in all_kinds:
        expected[kind.error_code] += registrations
    refused = {code: after.rejected_total[code] - before.rejected_total[code] for code in expected}
    if refused != expected or after.pids != before.pids:
        raise NotMeasuredError(f"{refused} counted as refused, where {dict(expected)} were sent")
    return found


def run(rounds: int, registrations: int) -> tuple[float, list[Cost]]:
    """CPU of an ordinary registration, and what each kind of refused one costs."""
    all_kinds = kinds()
    ordinary: list[float] = []
    refused: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="shardgate-bench-") as folder:
        directory = Path(folder)
        tokens = directory / "tokens"
        tokens.write_text(f"waf-* sha256:{hashlib.sha256(TOKEN.encode()).hexdigest()}\n")
        with shardgate(directory, 1, options=("--require-auth", "--token-file", str(tokens))) as target:
            measure_ordinary(target, registrations, 0)
            for number in range(1, rounds + 1):
                ordinary.append(measure_ordinary(target, registrations, number * registrations))
                refused.append(measure_refused(target, all_kinds, registrations))
    costs = [
        Cost(
            kind.name,
            len(kind.payload),
            median(of_round[kind.name] for of_round in refused),
            median(of_round[kind.name] / beside for of_round, beside in zip(refused, ordinary, strict=True)),
        )
        for kind in all_kinds
    ]
    return median(ordinary), costs


def as_text(figures: Figures) -> str:
    """The table, ready for a README."""
    rows = [["ordinary, accepted", "", f"{figures.ordinary_cpu_us:.0f} µs", "1.0"]]
    rows += [[c.kind, f"{c.bytes:,}", f"{c.cpu_us:.0f} µs", f"{c.times:.1f}"] for c in figures.costs]
    kept = [[b.what, b.bound, b.measured, "ok" if b.kept else "missed"] for b in figures.budgets]
    costs = table(["registration", "bytes", "CPU each", "times"], rows)
    return f"{costs}\n\n{table(['budget', 'bound', 'measured', ''], kept)}"


@benchmark(__doc__)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Rounds of each kind.")
@click.option("--registrations", type=click.IntRange(1), default=192, show_default=True, help="Of a kind in a round.")
def main(rounds: int, registrations: int, json_file: Path | None, check: bool) -> None:
    """Runs the benchmark."""
    machine = Machine.this()
    with or_exit():
        ordinary, costs = run(rounds, registrations)
    dearest = max(costs, key=lambda cost: cost.times)
    budget = Budget.at_most(f"the dearest refusal ({dearest.kind})", MOST_TIMES, dearest.times, "ordinary ones")
    figures = Figures(machine, ordinary, costs, [budget])
    show(as_text(figures), figures, json_file, check=check)


if __name__ == "__main__":
    main()
