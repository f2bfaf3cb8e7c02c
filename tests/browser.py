"""A real browser for the tests of pages: Debian's Chromium without a window, over the DevTools protocol.

The protocol comes over two pipes (`--remote-debugging-pipe`), so that neither a driver nor a socket is needed. One
browser serves all tests of a file: a fixture makes it, and each test opens pages in it.
"""

import base64
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
_PATIENCE = 120.0  # seconds; the machine may be busy
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-extensions"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    *("--disable-dev-shm-usage", "--remote-debugging-pipe", "--autoplay-policy=no-user-gesture-required"),
)


class Browser:
    """Chromium; a context manager that ends it."""

    def __init__(self, profile: Path) -> None:
        if not CHROMIUM.is_file():
            pytest.skip(f"there is no browser at {CHROMIUM}: apt-get install chromium")
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        command = [str(CHROMIUM), *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        joined = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'  # where Chromium looks for them
        self._process = subprocess.Popen(
            ["bash", "-c", joined, "bash", *command],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._rest, self._number = b"", 0
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.call("Browser.close")
            self._process.wait(30)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def call(self, method: str, session: str | None = None, **given: Any) -> dict[str, Any]:
        """The answer to a command; events that come before it are kept."""
        self._number += 1
        number, until = self._number, time.monotonic() + _PATIENCE
        asked = {"id": number, "method": method, "params": given} | ({"sessionId": session} if session else {})
        os.write(self._out, json.dumps(asked).encode() + b"\0")
        while True:
            message = self._read(until, method)
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return dict(message["result"])
            self.events.append(message)

    def wait_for(self, method: str, session: str) -> None:
        """Until the event has come."""
        until = time.monotonic() + _PATIENCE
        while not any(event.get("method") == method and event.get("sessionId") == session for event in self.events):
            self.events.append(self._read(until, method))

    def _read(self, until: float, what: str) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready = select.select([self._in], [], [], max(0.0, until - time.monotonic()))[0]
            assert ready, f"Chromium has not answered for {_PATIENCE:.0f} s: {what}"
            piece = os.read(self._in, 1 << 20)
            assert piece, f"Chromium has ended: {what}"
            self._rest += piece
        message, self._rest = self._rest.split(b"\0", 1)
        return dict(json.loads(message))

    @contextmanager
    def page(self, path: Path, *, width: int = 1280, dark: bool = False, scripts: bool = True) -> Iterator["Page"]:
        """A file, loaded in a tab of its own."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable", session)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", session, **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", session, features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", session, value=not scripts)
        self.events.clear()
        self.call("Page.navigate", session, url=path.as_uri())
        self.wait_for("Page.loadEventFired", session)
        yield Page(self, session, path)
        self.call("Target.closeTarget", targetId=target)


class Page:
    """A page that is open."""

    def __init__(self, browser: Browser, session: str, path: Path) -> None:
        self._browser, self._session, self._path = browser, session, path

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        given = {"expression": script, "awaitPromise": True, "returnByValue": True, "userGesture": True}
        found = self._browser.call("Runtime.evaluate", self._session, **given)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script: str, seconds: float = 60) -> None:
        """Wait until a JavaScript expression is true."""
        until = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < until, f"not so after {seconds} s: {script}"
            time.sleep(0.1)

    def spill(self) -> int:
        """Pixels by which the page is wider than its window."""
        return int(self.run("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def complaints(self) -> list[str]:
        """What the console shows: errors, warnings, exceptions, breaches of the page's policy."""
        found = []
        for event in self._events():
            kind, told = event["method"], event["params"]
            if kind == "Runtime.exceptionThrown":
                found.append(str(told["exceptionDetails"]))
            elif kind == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
                found.append(str(told["args"]))
            elif kind == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
                found.append(told["entry"]["text"])
            elif kind == "Page.javascriptDialogOpening":
                found.append(f"a dialog: {told['message']}")
        return found

    def requests(self) -> list[str]:
        """Addresses asked for, but for the page itself and what it carries."""
        asked = [event["params"]["request"]["url"] for event in self._events("Network.requestWillBeSent")]
        return [url[:200] for url in asked if not url.startswith(("data:", "blob:")) and url != self._path.as_uri()]

    def picture(self, path: Path, *, whole: bool = False) -> Path:
        """What the window shows, or the whole page, as a PNG."""
        given: dict[str, Any] = {"format": "png", "captureBeyondViewport": whole}
        if whole:
            size = self._browser.call("Page.getLayoutMetrics", self._session)["cssContentSize"]
            given["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self._browser.call("Page.captureScreenshot", self._session, **given)["data"]
        path.write_bytes(base64.b64decode(shot))
        return path

    def _events(self, method: str = "") -> list[dict[str, Any]]:
        self.run("0")  # what has happened is told before this is answered
        ours = [event for event in self._browser.events if event.get("sessionId") == self._session]
        return [event for event in ours if event["method"] == method or not method]
