"""A real browser for the tests of pages: headless Chromium over the DevTools protocol.

Each test file starts one browser in a fixture, and its tests open pages in it.
"""

import base64
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import wait_for
from websockets.sync.client import ClientConnection, connect

CHROMIUM = Path("/usr/bin/chromium")
_TIMEOUT = 120.0  # seconds; the machine may be busy
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-extensions"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    *("--disable-dev-shm-usage", "--remote-debugging-port=0", "--autoplay-policy=no-user-gesture-required"),
)


@contextmanager
def chromium(profile: Path) -> Iterator["Browser"]:
    if not CHROMIUM.is_file():
        pytest.skip(f"{CHROMIUM} is missing: apt-get install chromium")
    nothing, port = subprocess.DEVNULL, profile / "DevToolsActivePort"
    command = [str(CHROMIUM), *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing)
    try:
        wait_for(lambda: port.exists() and port.read_text().count("\n"))
        number, path = port.read_text().split()
        with connect(f"ws://127.0.0.1:{number}{path}", max_size=None) as socket:
            yield Browser(socket)
    finally:
        process.terminate()
        process.wait(30)


class Browser:
    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._number = socket, 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events that arrive before it are kept."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": params}
        self._socket.send(json.dumps(command | ({"sessionId": session} if session else {})))
        while True:
            message = json.loads(self._socket.recv(_TIMEOUT))
            if message.get("id") == self._number:
                assert "error" not in message, f"{method}: {message['error']}"
                return dict(message["result"])
            self.events.append(message)

    @contextmanager
    def page(
        self, path: Path | str, *, width: int = 1280, dark: bool = False, scripts: bool = True
    ) -> Iterator["Page"]:
        """A file, or an address of this machine, loaded in a new tab."""
        address = path if isinstance(path, str) else path.as_uri()
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
        self.call("Page.navigate", session, url=address)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(json.loads(self._socket.recv(_TIMEOUT)))
        yield Page(self, session, address)
        self.call("Target.closeTarget", targetId=target)


class Page:
    def __init__(self, browser: Browser, session: str, address: str) -> None:
        self._browser, self._session, self._address = browser, session, address

    def run(self, script: str) -> Any:
        """Evaluate a JavaScript expression, waiting for promises."""
        params = {"expression": script, "awaitPromise": True, "returnByValue": True, "userGesture": True}
        result = self._browser.call("Runtime.evaluate", self._session, **params)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, script: str, seconds: float = 60) -> None:
        wait_for(lambda: self.run(script), seconds=seconds)

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
        return [url[:200] for url in urls if not url.startswith(("data:", "blob:")) and url != self._address]

    def picture(self, path: Path) -> Path:
        shot = self._browser.call("Page.captureScreenshot", self._session, format="png")["data"]
        path.write_bytes(base64.b64decode(shot))
        return path

    def _events(self, method: str = "") -> list[dict[str, Any]]:
        self.run("0")  # earlier events arrive before this answer
        ours = [event for event in self._browser.events if event.get("sessionId") == self._session]
        return [event for event in ours if event["method"] == method or not method]
