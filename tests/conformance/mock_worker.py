"""A worker of a few lines that keeps the worker contract: standard library only, no model, stated delays.

It has the same physics as the twin's table in these tests: so many seconds for each token of the prompt, so many for
each token made. Tokens are words; usage is exact. `--broken` ends at once, as a worker whose weights are bad.
"""

import argparse
import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server(ThreadingHTTPServer):
    """Counts what runs, to drain on SIGTERM."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(("127.0.0.1", options.port), Handler)
        self.options = options
        self.running = 0
        self.idle = threading.Condition()


class Handler(BaseHTTPRequestHandler):
    """The routes of the contract that the conformance body needs."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        options = self.server.options
        if self.path == "/health":
            self._json({"status": "ok", "model": options.name, "replica_id": options.replica_id, "pid": os.getpid()})
        elif self.path == "/stats":
            self._json({"running": self.server.running, "waiting": 0, "kv_usage": 0.0})
        else:
            self._json({"error": {"message": "unknown"}}, status=404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.idle:
            self.server.running += 1
        try:
            self._answer(body["prompt_tokens"], body["max_tokens"])
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with self.server.idle:
                self.server.running -= 1
                self.server.idle.notify_all()

    def _answer(self, prompt_tokens: int, max_tokens: int) -> None:
        options, never = self.server.options, threading.Event()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        never.wait(prompt_tokens * options.prefill_s)  # this is the work, not waiting for something
        for number in range(max_tokens):
            never.wait(options.token_s)
            self._event({"choices": [{"index": 0, "delta": {"content": f"word{number} "}}]})
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": max_tokens}
        self._event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, value: object) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
        self.wfile.flush()

    def _json(self, value: object, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", default="mock")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--replica-id", default="")
    parser.add_argument("--ready-file", default="")
    parser.add_argument("--prefill-s", type=float, default=0.001)
    parser.add_argument("--token-s", type=float, default=0.01)
    parser.add_argument("--broken", action="store_true")
    options, _ = parser.parse_known_args()
    if options.broken:
        sys.stderr.write("BadWeights: model.safetensors is truncated\n")
        return 1
    server = Server(options)
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    ready = json.dumps({"ready": f"http://127.0.0.1:{server.server_address[1]}"})
    if options.ready_file:
        partial = Path(f"{options.ready_file}.part")
        partial.write_text(ready)
        partial.replace(options.ready_file)
    print(ready, flush=True)
    stopped.wait()
    with server.idle:
        server.idle.wait_for(lambda: server.running == 0)
    server.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
