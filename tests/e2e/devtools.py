"""A headless Chromium driven by its DevTools protocol over a pipe: open a page, wait for what it shows, take a picture.

https://chromedevtools.github.io/devtools-protocol/: JSON messages with a NUL behind each, to the browser on its
descriptor 3, from it on 4.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAM = shutil.which("chromium")
_FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe", "--disable-sync"]
_FLAGS += ["--disable-dev-shm-usage", "--disable-quic", "--disable-background-networking", "--disable-component-update"]
_FLAGS += ["--hide-scrollbars", "--window-size=1400,1000"]
_LOOK_AGAIN = 0.3  # seconds


class Browser:
    """One browser with one page; a context manager that ends it."""

    def __init__(self, profile: Path, program: str | None = PROGRAM) -> None:
        assert program, "there is no chromium"
        commands, self._in = os.pipe()
        self._out, answers = os.pipe()
        # What the shell below overwrites must not be one of these.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (commands, answers)]
        call = [program, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        shell = ["bash", "-c", f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}', "bash", *call]
        self._log = (profile.parent / "chromium.log").open("wb")
        self._process = subprocess.Popen(
            shell, pass_fds=ends, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )
        for end in (commands, answers, *ends):
            os.close(end)
        self._number, self._rest, self._session = 0, b"", ""
        target = self._page()
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._log.close()
        os.close(self._in)
        os.close(self._out)

    def open(self, address: str) -> None:
        self._call("Page.navigate", url="about:blank")  # another # alone would not load the page again
        self._call("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, as JSON has it."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str, is_right: Callable[[Any], bool], seconds: float) -> Any:
        """The value of an expression as soon as it is right; the last one where it never is."""
        deadline = time.monotonic() + seconds
        while not is_right(value := self.run(script)) and time.monotonic() < deadline:
            time.sleep(_LOOK_AGAIN)
        return value

    def picture(self, path: Path) -> None:
        """What the window shows, as a PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _page(self) -> str:
        """The id of the page, which may not be there at once."""
        for _ in range(100):
            targets = self._call("Target.getTargets")["targetInfos"]
            for target in targets:
                if target["type"] == "page":
                    return str(target["targetId"])
            time.sleep(_LOOK_AGAIN)
        raise AssertionError("chromium has no page")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a method; what the browser tells between is left out."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._in, json.dumps(message).encode() + b"\0")
        while (answer := self._next())["id"] != self._number:
            pass
        assert "error" not in answer, answer
        return dict(answer["result"])

    def _next(self, seconds: float = 120) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._out], [], [], seconds)
            read = os.read(self._out, 1 << 16) if ready else b""
            assert read, f"chromium says nothing: {Path(self._log.name).read_text(errors='replace')[-2000:]}"
            self._rest += read
        first, _, self._rest = self._rest.partition(b"\0")
        return {"id": 0, **json.loads(first)}
