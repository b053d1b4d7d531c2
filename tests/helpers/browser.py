"""A headless Chromium that opens a page and runs JavaScript in it, through the DevTools protocol over two pipes.

Pipes need no WebSocket, no driver program and no port. Chromium reads commands from file descriptor 3 and writes
answers to 4, JSON that ends with a null byte.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(
    PROGRAM is None or os.name != "posix", reason="no Chromium (Debian: apt-get install chromium), or no POSIX pipes"
)

# Gives the pipes their numbers, by way of others, as each may be the other's already, and becomes the browser.
_LAUNCHER = """
import os, sys
commands, answers = (os.dup(int(number)) for number in sys.argv[1:3])
spare = os.dup(commands), os.dup(answers)
while min(spare) < 5:
    spare = os.dup(spare[0]), os.dup(spare[1])
os.dup2(spare[0], 3)
os.dup2(spare[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
_PATIENCE = 60.0  # seconds until an answer, after which a test fails


# Names of files, classes and models that would do something if a page took them for more than text.
HOSTILE_NAMES = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "<!--<script>",
    "javascript:alert(3)",
    "\u2028alert(4)//\u2029",
    "'\"><svg onload=alert(5)>",
    "{{ 7 * 7 }} {% raw %}",
]


class Browser:
    """One page in one browser.

    Attributes:
        events: what happened: dialogs that opened, messages of the console, errors, files that were loaded.
    """

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._out, self._in = to_browser, from_browser
        os.set_blocking(from_browser, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(from_browser, selectors.EVENT_READ)
        self._received = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._send(f"{domain}.enable")
        self._send("Page.bringToFront")  # a page in the background draws no frames

    def open(self, page: Path) -> None:
        """Open a file and wait until it is loaded."""
        self._send("Page.navigate", url=page.resolve().as_uri())
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def run(self, expression: str) -> Any:
        """The value of an expression, of a promise what it comes to. Raises AssertionError where it throws."""
        found = self._send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Wait until an expression is true; its value."""
        end = time.monotonic() + _PATIENCE
        while not (value := self.run(expression)):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.02)
        return value

    def wait_for_file(self, path: Path) -> None:
        """Wait until a download is there."""
        end = time.monotonic() + _PATIENCE
        while not path.exists():
            assert time.monotonic() < end, f"no {path.name}"
            self.run("0")  # events come in meanwhile
            time.sleep(0.02)

    def press(self, *keys: str) -> None:
        """Press keys one after the other, by their names in JavaScript ("ArrowDown", "c")."""
        codes = {"Enter": "\r"}
        numbers = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        for key in keys:
            text = codes.get(key, key if len(key) == 1 else "")
            code = {"windowsVirtualKeyCode": numbers[key]} if key in numbers else {}
            self._send("Input.dispatchKeyEvent", type="keyDown", key=key, text=text, **code)
            self._send("Input.dispatchKeyEvent", type="keyUp", key=key, **code)

    def click(self, selector: str) -> None:
        """Click the middle of an element with the mouse."""
        box = self.run(f"(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector({json.dumps(selector)})"
                       ".getBoundingClientRect())")  # fmt: skip
        for kind in ("mousePressed", "mouseReleased"):
            self._send("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def fill(self, selector: str, value: str) -> None:
        """Give a control a value, as if it had been typed or chosen."""
        self.run(
            f"(e => {{ e.value = {json.dumps(value)}; e.dispatchEvent(new Event('input', {{bubbles: true}})); }})"
            f"(document.querySelector({json.dumps(selector)}))"
        )

    def emulate(self, scheme: str) -> None:
        """Prefer "light" or "dark"."""
        self._send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def resize(self, width: int, height: int) -> None:
        """Show pages in a window of this many CSS pixels; 0 and 0: in the window as it is."""
        self._send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=0, mobile=False)

    def download_to(self, folder: Path) -> None:
        self._send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def happened(self, method: str) -> list[dict[str, Any]]:
        """The parameters of all events of a kind."""
        return [event["params"] for event in self.events if event["method"] == method]

    def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            found = self._receive()
            if found.get("id") == self._number:
                assert "error" not in found, f"{method}: {found['error']}"
                return found["result"]  # type: ignore[no-any-return]
            if "method" in found:
                self.events.append(found)
                if found["method"] == "Page.javascriptDialogOpening":  # an open dialog would block the page
                    self._number += 1
                    answer = {"id": self._number, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
                    os.write(self._out, json.dumps(answer | {"sessionId": self._session}).encode() + b"\0")
                    self._number -= 1

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            assert self._selector.select(_PATIENCE), "the browser does not answer"
            piece = os.read(self._in, 1 << 20)
            assert piece, "the browser ended"
            self._received += piece
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)  # type: ignore[no-any-return]


@contextlib.contextmanager
def browser(profile: Path, *, size: tuple[int, int] = (1000, 700)) -> Iterator[Browser]:
    """Start a browser with a new profile; it ends with the body."""
    assert PROGRAM
    command_read, command_write = os.pipe()
    answer_read, answer_write = os.pipe()
    command = [
        sys.executable, "-S", "-E", "-c", _LAUNCHER, str(command_read), str(answer_write),
        PROGRAM, "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-extensions", "--disable-background-networking", "--disable-component-update",
        "--disable-dev-shm-usage", f"--window-size={size[0]},{size[1]}", f"--user-data-dir={profile}",
        "about:blank",
    ]  # fmt: skip
    process = subprocess.Popen(
        command,
        pass_fds=(command_read, answer_write),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(command_read)
    os.close(answer_write)
    try:
        found = Browser(command_write, answer_read)
        yield found
        with contextlib.suppress(AssertionError, OSError):
            found._send("Browser.close")
    finally:
        os.close(command_write)
        os.close(answer_read)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)
