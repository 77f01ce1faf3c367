"""A headless Chromium spoken to over its debugging pipe: opens a file at a width and tells what it did."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
    """One page of one browser. Requests to anything are collected in `requests`."""

    def __init__(self, profile: Path) -> None:
        down, up = os.pipe(), os.pipe()  # the browser reads commands from descriptor 3 and writes answers to 4
        command = f'exec "$0" "$@" 3<&{down[0]} 4>&{up[1]}'
        words = ["bash", "-c", command, str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}"]
        self.process = subprocess.Popen(
            words, pass_fds=(down[0], up[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(down[0])
        os.close(up[1])
        self.input, self.output = os.fdopen(down[1], "wb", 0), os.fdopen(up[0], "rb")
        self.count, self.session = 0, ""
        self.requests: list[str] = []
        self.loaded = False
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Network.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.input.write(json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self.count:
            pass
        assert "error" not in answer, answer
        return dict(answer["result"])

    def open(self, path: Path, width: int, scheme: str = "light") -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.requests, self.loaded = [], False
        self.call("Page.navigate", url=path.as_uri())
        while not self.loaded:
            self._next()

    def evaluate(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def close(self) -> None:
        self.input.close()
        self.process.kill()
        self.process.wait()
        self.output.close()

    def _next(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self.output.read(1)) != b"\0":
            assert byte, "the browser went away"
            data += byte
        message: dict[str, Any] = json.loads(data)
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        self.loaded = self.loaded or message.get("method") == "Page.loadEventFired"
        return message
