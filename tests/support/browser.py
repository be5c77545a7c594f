"""A real headless Chromium, driven over a pipe by the DevTools protocol: no driver, no port, no package."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from support.waiting import PATIENCE, wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--disable-extensions",
    "--hide-scrollbars", "--no-proxy-server", "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
    """One page of a browser."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._buffer = b""
        self._next = 1
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, *, seconds: float = PATIENCE, **parameters: Any) -> Any:
        """Call a method of the protocol and return its result; AssertionError when it fails or takes too long."""
        number, self._next = self._next, self._next + 1
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + seconds
        while True:
            answer = self._read(deadline)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def open(self, url: str) -> None:
        """Go to *url* and wait until it is loaded."""
        self.events.clear()
        failed = self.call("Page.navigate", url=url).get("errorText")
        assert failed is None, failed
        wait_for(lambda: self.evaluate("document.readyState") == "complete", f"{url} to load")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited; AssertionError with what it threw."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def text(self, selector: str) -> str:
        """The text that the first element of *selector* shows; empty when there is none, or it is hidden."""
        element = f"document.querySelector({json.dumps(selector)})"
        return str(self.evaluate(f"{element}?.checkVisibility() ? {element}.innerText : ''"))

    def show_as(self, scheme: Literal["light", "dark"], width: int, height: int, *, scale: float = 1.0) -> None:
        """Show the page in a colour scheme and a size."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=width < 700,
        )  # fmt: skip

    def screenshot(self, path: Path) -> None:
        """Write a picture of what is shown."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def complaints(self) -> list[str]:
        """What the browser or the page has complained about since it was opened: errors, breaches of the policy."""
        self.evaluate("0")
        found = [event["params"]["entry"]["text"] for event in self.events if event["method"] == "Log.entryAdded"]
        thrown = [event["params"]["exceptionDetails"] for event in self.events if "exceptionThrown" in event["method"]]
        return found + [json.dumps(details) for details in thrown]

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            assert left > 0, "the browser does not answer"
            if select.select([self._from], [], [], left)[0]:
                data = os.read(self._from, 1 << 20)
                assert data, "the browser has ended"
                self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with an empty profile below *folder*; its words are printed when the test fails."""
    assert CHROMIUM is not None
    low_in, ours_out = os.pipe()
    ours_in, low_out = os.pipe()
    log = folder / "chromium.log"
    # The protocol wants descriptors 3 and 4; so ours must be no such ones.
    theirs_in, theirs_out = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (low_in, low_out))
    command = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out} {theirs_in}<&- {theirs_out}>&-'
    home = folder / "home"
    home.mkdir()
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", command, "-", CHROMIUM, *_OPTIONS, f"--user-data-dir={folder / 'profile'}"],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=(theirs_in, theirs_out),
            env=os.environ | {"HOME": str(home)}, start_new_session=True,
        )  # fmt: skip
    for fd in (low_in, low_out, theirs_in, theirs_out):
        os.close(fd)
    try:
        one = Browser(ours_out, ours_in)
        yield one
        one.call("Browser.close")
    except BaseException:
        print(f"---- log of chromium ----\n{log.read_text(errors='replace')[-4000:]}")
        raise
    finally:
        os.close(ours_out)
        os.close(ours_in)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
