"""Stand-alone script, a `command` for `wasm.run`: runs `wasm_runner.mjs` in headless Chromium, on a server of its own.

python in_chromium.py RUNNER LITERT FOLDER
"""

import http.server
import pathlib
import subprocess
import sys
import tempfile
import threading

from browser import CHROMIUM, FLAGS

TYPES = {".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm"}
PAGE = b"""<!doctype html><meta charset="utf-8"><body>
<script type="importmap">{"imports": {"@litertjs/wasm-utils": "/litert/wasm-utils/dist/index.js"}}</script>
<script type="module">
import {run} from '/runner/wasm_runner.mjs';
const read = async name => new Uint8Array(await (await fetch(name)).arrayBuffer());
const write = (name, body) => fetch(name, {method: 'POST', body});
run('/litert/core/dist/index.js', '/litert/core/wasm/', read, write)
  .then(() => write('done', ''), error => write('done', `${error.name}: ${error.message}`));
</script>"""


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves RUNNER and LITERT, reads and writes FOLDER."""

    extensions_map = TYPES

    def translate_path(self, path):
        where, _, rest = path.strip("/").partition("/")
        return str(self.server.folders[where] / rest if rest else self.server.folders[""] / where)

    def do_GET(self):
        if self.path == "/":
            self.answer(PAGE, "text/html")
        else:
            super().do_GET()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/done":
            self.server.error = body.decode()
            self.server.done.set()
        else:
            pathlib.Path(self.translate_path(self.path)).write_bytes(body)
        self.answer(b"", "text/plain")

    def answer(self, content, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


def main(runner, litert, folder):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.folders = {"": folder, "runner": runner.parent, "litert": litert / "node_modules/@litertjs"}
    server.done, server.error = threading.Event(), ""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        url = f"http://127.0.0.1:{server.server_port}/"
        browser = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        done = server.done.wait(100)
        browser.terminate()
        browser.wait()
    sys.exit(server.error or None if done else "Chromium did not end")


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))
