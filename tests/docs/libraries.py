"""PeerJS and simple-peer, as npm has them, in headless Chromium: libraries.py CONFIG.

CONFIG is the answer of turnix that a backend passes on. INTEROP_NODE_MODULES is where npm put `peerjs`, `peer` and
`simple-peer`; without it, or without Chromium, says that it is skipped, unless INTEROP_REQUIRE_TOOLS=1.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HERE = Path(__file__).parent
PORT_OF_PEERJS = 9876
SECONDS = 90

config = Path(sys.argv[1]).read_bytes()
modules = os.environ.get("INTEROP_NODE_MODULES")
chromium = shutil.which("chromium")
if not modules or not chromium:
    print("SKIPPED: PeerJS and simple-peer: chromium or INTEROP_NODE_MODULES is missing")
    sys.exit(os.environ.get("INTEROP_REQUIRE_TOOLS") == "1")
modules = Path(modules)

page = (HERE / "libraries.html").read_text().replace("PORT_OF_PEERJS", str(PORT_OF_PEERJS)).encode()
served = {
    "/": ("text/html", page),
    "/config.json": ("application/json", config),
    "/simple-peer.js": ("text/javascript", (modules / "simple-peer/simplepeer.min.js").read_bytes()),
    "/peerjs.js": ("text/javascript", (modules / "peerjs/dist/peerjs.min.js").read_bytes()),
}
result, done = {}, threading.Event()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        kind, body = served.get(self.path, ("text/plain", None))
        self.send_response(200 if body is not None else 404)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body or b"")

    def do_POST(self):
        result.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()
        done.set()

    def log_message(self, *_):
        pass


site = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=site.serve_forever, daemon=True).start()
with tempfile.TemporaryDirectory() as profile:
    # In a session of its own, so that its helpers end with it.
    options = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    broker = subprocess.Popen([modules / ".bin/peerjs", "--host", "127.0.0.1", "--port", str(PORT_OF_PEERJS)], **options)
    for _ in range(10 * SECONDS):
        try:
            socket.create_connection(("127.0.0.1", PORT_OF_PEERJS)).close()
            break
        except OSError:
            time.sleep(0.1)
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update disable-sync"
    browser = subprocess.Popen(
        [
            chromium,
            *(f"--{flag}" for flag in flags.split()),
            f"--user-data-dir={profile}",
            f"http://127.0.0.1:{site.server_port}/",
        ],
        **options,
    )
    try:
        done.wait(SECONDS)
    finally:
        for process in (browser, broker):
            os.killpg(process.pid, 15)
            process.wait()

print(json.dumps(result))
assert result.get("simplePeer", {}).get("text") == "by simple-peer", result
assert result.get("peerJs", {}).get("text") == "by PeerJS", result
for library in result.values():
    assert set(library["kinds"]) == {"relay"}, result
