"""The demonstration agent: what it is told, what it decides, and what it shows."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support.product import environment
from support.scripted_proxy import Peer, run, scripted_proxy
from support.waiting import until

from dialout import Decision, Dialect, RequestHeaders
from dialout.agent.demo import DemoAgent, main
from dialout.decisions import Block

COMMAND = [sys.executable, "-P", "-m", "dialout"]


def headers(uri: str) -> RequestHeaders:
    return RequestHeaders("GET", uri, {})


@pytest.mark.parametrize(
    ("uri", "blocked"),
    [("/admin", True), ("/admin/users", True), ("/x.php", True), ("/", False), ("/Admin", False), ("/x.php?", False)],
)
def test_uris_that_fit_a_pattern_are_blocked(uri: str, blocked: bool) -> None:
    decision = DemoAgent(["/admin*", "*.php"]).decide(headers(uri))

    assert isinstance(decision.verdict, Block) is blocked
    assert blocked or decision == Decision.allow()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--connect"),
        (["--connect", "nowhere"], "no address"),
        (["--connect", "/s", "--id", "a b"], "an agent id is 1 to 128"),
        (["--connect", "/s", "--connections", "0"], "no number from 1"),
        (["--connect", "/s", "--delay", "5 minutes"], "write 20ms or 1s"),
        (["--connect", "/s", "--dialect", "klingon"], "invalid choice"),
        (["--connect", "/s", "--auth-token", "open sesame"], "unrecognized arguments"),
        (["--connect", "/s", "--auth-token-file", "/nowhere/token"], "/nowhere/token: No such file"),
    ],
)
def test_what_cannot_be_run_is_said_in_a_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments)

    assert raised.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe"])
def test_token_file_without_a_token_is_refused(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(SystemExit):
        main(["--connect", "/s", "--auth-token-file", str(file)])

    error = capsys.readouterr().err
    assert "holds no token" in error or "not UTF-8" in error
    assert "Traceback" not in error


@contextmanager
def demo(*arguments: str, terminal: int | None = None) -> Iterator["subprocess.Popen[str]"]:
    """The agent in a process of its own."""
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if terminal is None else terminal,
        text=True,
        env=environment(),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def arguments_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


@pytest.mark.parametrize("dialect", [Dialect.SDK, Dialect.CORE])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_agent_registers_with_its_token_decides_and_sums_up(
    dialect: Dialect, number: signal.Signals, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("open sesame\n")
    verdicts: list[object] = []

    async def script(peer: Peer) -> None:
        await peer.accept()
        for request_id, uri in enumerate(("/admin/users", "/"), start=1):
            peer.event(headers(uri), request_id)
            answer = await peer.inbound()
            verdicts.append(answer)
        await peer.end()

    async def play() -> None:
        async with scripted_proxy(script) as proxy:
            with demo(
                "--connect", proxy.address, "--id", "waf-9", "--connections", "2", "--block-uri", "/admin*",
                "--delay", "1ms", "--dialect", dialect, "--auth-token-file", str(token),
            ) as process:  # fmt: skip
                await until(lambda: len(verdicts) == 4, "two answers on two connections")
                arguments = arguments_of(process.pid)
                process.send_signal(number)
                await until(lambda: process.poll() is not None, "its end")
                shown, log = process.communicate()
            assert process.returncode == 0
            registration = proxy.peers[0].registration
            assert registration is not None
            assert (registration.auth_token, registration.dialect) == ("open sesame", dialect)
            assert b'"features":["demo"]' in registration.metadata
            assert shown.startswith("waf-9: 4 requests in ")
            assert "2 allowed, 2 blocked, 0 failed, 0 cancelled; 2 connections, 0 lost" in shown
            assert "waf-9 connection 2: connected as waf-9-conn-" in log
            assert "sesame" not in log + shown + arguments
            assert "\x1b" not in log

    run(play())


def test_status_line_stands_on_a_terminal_only() -> None:
    ours, theirs = pty.openpty()

    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.end()

    async def play() -> None:
        async with scripted_proxy(script) as proxy:
            with demo("--connect", proxy.address, "--connections", "1", terminal=theirs) as process:
                os.set_blocking(ours, False)
                seen = b""

                def shows() -> bool:
                    nonlocal seen
                    with suppress(BlockingIOError):
                        seen += os.read(ours, 65536)
                    return b"1/1 connected, 0 requests" in seen

                await until(shows, "the status line")
                process.terminate()
                await until(lambda: process.poll() is not None, "its end")
            assert process.returncode == 0

    try:
        run(play())
    finally:
        os.close(ours)
        os.close(theirs)


def test_agent_whose_reader_has_gone_serves_on() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        if peer.number == 2:
            peer.event(headers("/"), 1)
            answered.append(await peer.inbound())
            await peer.end()

    answered: list[object] = []

    async def play() -> None:
        async with scripted_proxy(script) as proxy:
            with demo("--connect", proxy.address, "--connections", "1") as process:
                assert process.stderr is not None
                process.stderr.close()
                await until(lambda: answered, "an answer")
                assert process.poll() is None

    run(play())
