"""Headless Chromium, driven over its DevTools protocol through a pipe: only the standard library."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


class Browser:
    """A window of so many pixels at a URL; a context manager. `said`: what the page wrote to the console."""

    def __init__(self, url, width=1000, height=800):
        with contextlib.ExitStack() as stack:
            self._open(stack, url, width, height)
            self._resources = stack.pop_all()  # nothing failed: they stay open

    def _open(self, stack, url, width, height):
        profile = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        (commands, self._commands), (received, answers) = os.pipe(), os.pipe()
        stack.callback(os.close, self._commands)
        self._answers = stack.enter_context(os.fdopen(received, "rb"))
        # Chromium reads commands from file descriptor 3 and answers on 4.
        shell = f'exec "$0" "$@" 3<&{commands} 4>&{answers}'
        flags = [*FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        try:
            process = subprocess.Popen(
                ["bash", "-c", shell, CHROMIUM, *flags, f"--window-size={width},{height}", "about:blank"],
                pass_fds=(commands, answers),
                stderr=subprocess.DEVNULL,
            )
        finally:
            os.close(commands)
            os.close(answers)
        stack.callback(process.wait)
        stack.callback(process.kill)  # the last is called first
        self._number, self._rest, self._session, self.said = 0, b"", None, []
        (page,) = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self._session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        self.call("Runtime.enable")
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._resources.close()

    def call(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                if not (received := self._answers.read1()):
                    raise RuntimeError("Chromium ended.")
                self._rest += received
            answer, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(answer)
            if answer.get("method") == "Runtime.consoleAPICalled":
                self.said.append(" ".join(str(part.get("value", "")) for part in answer["params"]["args"]))
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def evaluate(self, expression):
        """The value of a JavaScript expression, awaited if it is a promise."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"]["exception"]["description"])
        return result["result"].get("value")

    def wait(self, expression, seconds=60):
        """Wait until the expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(expression):
            if time.monotonic() > end:
                raise TimeoutError(f"{expression} did not become true; the page says: {self.said[-5:]}")
            time.sleep(0.1)

    def draw(self, strokes):
        """Draw with the mouse: lists of points (x, y) in pixels of the window."""
        for (x, y), *points in strokes:
            self._mouse("mousePressed", x, y)
            for x, y in points:
                self._mouse("mouseMoved", x, y)
            self._mouse("mouseReleased", x, y)

    def _mouse(self, kind, x, y):
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
