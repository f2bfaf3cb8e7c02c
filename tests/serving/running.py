"""A server in a thread of the test's own process."""

import asyncio
import contextlib
import threading

from gtp_vision.serving.server import Server


class Running:
    def __init__(self, server: Server) -> None:
        self.server, self.address = server, ""
        ready = threading.Event()

        async def run() -> None:
            self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()

            def on_ready(address: str) -> None:
                self.address = address
                ready.set()

            await server.run(self.stop, on_ready)

        self.thread = threading.Thread(target=lambda: asyncio.run(run()))
        self.thread.start()
        assert ready.wait(60)

    @property
    def http(self) -> str:
        return self.address.replace("ws", "http", 1)

    def end(self) -> None:
        with contextlib.suppress(RuntimeError):  # it has ended
            self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join(30)
        assert not self.thread.is_alive()
