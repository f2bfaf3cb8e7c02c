"""A real browser for the tests of pages: headless Chromium over the DevTools protocol.

The protocol runs over two pipes (`--remote-debugging-pipe`), which needs neither a driver nor a socket. Each test file
starts one browser in a fixture, and its tests open pages in it.
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
_TIMEOUT = 120.0  # seconds; the machine may be busy
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-extensions"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    *("--disable-dev-shm-usage", "--remote-debugging-pipe", "--autoplay-policy=no-user-gesture-required"),
)


class Browser:
    """A Chromium process; a context manager that ends it."""

    def __init__(self, profile: Path) -> None:
        if not CHROMIUM.is_file():
            pytest.skip(f"{CHROMIUM} is missing: apt-get install chromium")
        child_in, self._out = os.pipe()
        self._in, child_out = os.pipe()
        command = [str(CHROMIUM), *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        redirect = f'exec "$@" 3<&{child_in} 4>&{child_out}'  # the descriptors that Chromium uses
        self._process = subprocess.Popen(
            ["bash", "-c", redirect, "bash", *command],
            pass_fds=(child_in, child_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(child_in)
        os.close(child_out)
        self._buffer, self._number = b"", 0
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

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events that arrive before it are kept."""
        self._number += 1
        number, deadline = self._number, time.monotonic() + _TIMEOUT
        command = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._out, json.dumps(command).encode() + b"\0")
        while True:
            message = self._read(deadline, method)
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return dict(message["result"])
            self.events.append(message)

    def wait_for(self, method: str, session: str) -> None:
        """Wait for an event."""
        deadline = time.monotonic() + _TIMEOUT
        while not any(event.get("method") == method and event.get("sessionId") == session for event in self.events):
            self.events.append(self._read(deadline, method))

    def _read(self, deadline: float, what: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))[0]
            assert ready, f"Chromium has not answered within {_TIMEOUT:.0f} s: {what}"
            received = os.read(self._in, 1 << 20)
            assert received, f"Chromium has ended: {what}"
            self._buffer += received
        message, self._buffer = self._buffer.split(b"\0", 1)
        return dict(json.loads(message))

    @contextmanager
    def page(self, path: Path, *, width: int = 1280, dark: bool = False, scripts: bool = True) -> Iterator["Page"]:
        """A file, loaded in a new tab."""
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
    """An open page."""

    def __init__(self, browser: Browser, session: str, path: Path) -> None:
        self._browser, self._session, self._path = browser, session, path

    def run(self, script: str) -> Any:
        """Evaluate a JavaScript expression, waiting for promises."""
        params = {"expression": script, "awaitPromise": True, "returnByValue": True, "userGesture": True}
        result = self._browser.call("Runtime.evaluate", self._session, **params)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, script: str, seconds: float = 60) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < deadline, f"still false after {seconds} s: {script}"
            time.sleep(0.1)

    def spill(self) -> int:
        """Pixels by which the page is wider than its window."""
        return int(self.run("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def complaints(self) -> list[str]:
        """Errors, warnings and exceptions in the console, and violations of the page's policy."""
        errors = []
        for event in self._events():
            kind, params = event["method"], event["params"]
            if kind == "Runtime.exceptionThrown":
                errors.append(str(params["exceptionDetails"]))
            elif kind == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                errors.append(str(params["args"]))
            elif kind == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                errors.append(params["entry"]["text"])
            elif kind == "Page.javascriptDialogOpening":
                errors.append(f"a dialog: {params['message']}")
        return errors

    def requests(self) -> list[str]:
        """Requested addresses but for the page itself and its data URIs."""
        urls = [event["params"]["request"]["url"] for event in self._events("Network.requestWillBeSent")]
        return [url[:200] for url in urls if not url.startswith(("data:", "blob:")) and url != self._path.as_uri()]

    def picture(self, path: Path, *, whole: bool = False) -> Path:
        """Write the window, or the whole page, as a PNG."""
        params: dict[str, Any] = {"format": "png", "captureBeyondViewport": whole}
        if whole:
            size = self._browser.call("Page.getLayoutMetrics", self._session)["cssContentSize"]
            params["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self._browser.call("Page.captureScreenshot", self._session, **params)["data"]
        path.write_bytes(base64.b64decode(shot))
        return path

    def _events(self, method: str = "") -> list[dict[str, Any]]:
        self.run("0")  # earlier events arrive before this answer
        ours = [event for event in self._browser.events if event.get("sessionId") == self._session]
        return [event for event in ours if event["method"] == method or not method]
