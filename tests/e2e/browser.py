"""Headless Chromium for tests, driven over its DevTools protocol; no driver is needed.

Everything is waited for by condition. A page that logs an error, throws, or violates its content
security policy says so in :attr:`Browser.complaints`.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

from tests.e2e.harness import DEADLINE, Child, clean_environment, until, within

PROGRAM: Final = next(
    (name for name in ("chromium", "chromium-browser", "google-chrome") if shutil.which(name)), None
)

_FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-features=Translate,OptimizationHints,MediaRouter",
    "--remote-debugging-port=0",
    # Loopback and nothing else, whatever the page or the browser may want.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost",
)


class Browser:
    """One page in a browser of its own; ``profile`` is a folder that may be thrown away."""

    def __init__(self, profile: Path) -> None:
        self._profile = profile
        self._child = Child("chromium")
        self._session: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._reader: asyncio.Task[None] | None = None
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.complaints: list[str] = []
        """What the page complained about: errors, exceptions, violations."""
        self.requests: list[str] = []
        """Every URL that was asked for."""

    async def __aenter__(self) -> Self:
        assert PROGRAM is not None
        try:
            await self._open()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close()

    async def _open(self) -> None:
        assert PROGRAM is not None
        argv = [PROGRAM, *_FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        await self._child.spawn(argv, clean_environment())
        listening = "DevTools listening on"
        line = await self._child.line(lambda each: listening in each, "chromium is up")
        port = line.rpartition("ws://")[2].partition("/")[0].rpartition(":")[2]
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=DEADLINE))
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            targets = await answer.json()
        target = next(each for each in targets if each["type"] == "page")
        self._socket = await self._session.ws_connect(
            target["webSocketDebuggerUrl"], max_msg_size=64 * 1024 * 1024
        )
        self._reader = asyncio.create_task(self._read())
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.send(f"{domain}.enable")

    async def _close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        if self._socket is not None:
            await self._socket.close()
        if self._session is not None:
            await self._session.close()
        await self._child.reap()

    async def _read(self) -> None:
        assert self._socket is not None
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                future = self._answers.pop(said["id"], None)
                if future is not None and not future.done():
                    future.set_result(said)
            else:
                self._note(said["method"], said["params"])

    def _note(self, method: str, params: Any) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", details).get("description", "?"))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in {"error", "warning"}:
            self.complaints.append(str([each.get("value") for each in params["args"]]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    async def send(self, method: str, **params: Any) -> Any:
        """One command of the protocol; its result."""
        assert self._socket is not None
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        async with within(f"chromium answers {method}", self._child.tail):
            await self._socket.send_json({"id": number, "method": method, "params": params})
            said = await answer
        assert "error" not in said, f"{method}: {said['error']}"
        return said["result"]

    async def open(self, url: str) -> None:
        result = await self.send("Page.navigate", url=url)
        assert "errorText" not in result, result

    async def js(self, expression: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        result = await self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def until(self, expression: str, what: str) -> None:
        """Wait until an expression is true in the page."""
        seen = ""

        async def holds() -> bool:
            nonlocal seen
            seen = await self.text()
            return bool(await self.js(f"Boolean({expression})"))

        await until(holds, what, lambda: f"{self.complaints}\n{seen}")

    async def text(self, selector: str = "body") -> str:
        """What a person reads in the first element that the selector finds."""
        found = f"document.querySelector({json.dumps(selector)})"
        return str(await self.js(f"{found}?.innerText ?? ''"))

    async def look(self, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Set the window's size (CSS pixels) and the colours that the user prefers."""
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.send("Emulation.setEmulatedMedia", features=[scheme])

    async def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        result = await self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(result["data"]))
