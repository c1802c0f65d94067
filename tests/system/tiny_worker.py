"""A worker of a few lines for tests of the launcher: `tiny_worker.py MODE READY_FILE LEASE_FILE`.

ok: serves. crash: ends at once with code 3. gated: starts when something is written to the pipe named `gate` beside
the ready-file. stubborn: serves and ignores SIGTERM. GET /die ends it with code 4.
"""

import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    """Health and figures."""

    def do_GET(self) -> None:
        if self.path == "/die":
            print("the engine fell over", flush=True)
            os._exit(4)
        figures = {"running": 1, "waiting": 0, "kv_usage": 0.25, "prompt_tokens": 7, "completion_tokens": 9}
        body = json.dumps(figures if self.path == "/stats" else {"status": "ok"}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def main() -> None:
    mode, ready = sys.argv[1], Path(sys.argv[2])
    if mode == "crash":
        print("Traceback:\nno such model file", file=sys.stderr)
        sys.exit(3)
    stop = signal.SIG_IGN if mode == "stubborn" else lambda *_: os._exit(0)
    signal.signal(signal.SIGTERM, stop)
    if mode == "gated":
        (ready.parent / "gate").read_text()
    server = HTTPServer(("127.0.0.1", 0), Handler)
    part = ready.with_suffix(".part")
    part.write_text(json.dumps({"ready": f"http://127.0.0.1:{server.server_port}"}))
    part.rename(ready)
    server.serve_forever()


main()
