"""HTTP servers on this machine that behave as badly as an MLflow server can."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def dead() -> Iterator[str]:
    """A port that nobody listens on."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{reserved.getsockname()[1]}"


@contextmanager
def silent() -> Iterator[str]:
    """Takes every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def failing() -> Iterator[str]:
    """Answers 500 to everything."""
    with _serving(lambda path, body: None) as uri:
        yield uri


@contextmanager
def slow(seconds: float = 2.0) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Answers as MLflow does, but only after so long; also gives the metrics it was sent."""
    metrics: list[dict[str, Any]] = []
    run = {"info": {"run_id": "r", "run_uuid": "r", "experiment_id": "1", "lifecycle_stage": "active"}, "data": {}}

    def answer(path: str, body: dict[str, Any]) -> dict[str, Any]:
        time.sleep(seconds)
        metrics.extend(body.get("metrics", ()))
        if path.endswith("get-by-name"):
            return {"experiment": {"experiment_id": "1", "name": "tinyllama", "lifecycle_stage": "active"}}
        return {"run": run} if path.endswith(("runs/create", "runs/get")) else {"run_info": run["info"]}

    with _serving(answer) as uri:
        yield uri, metrics


@contextmanager
def _serving(answer: Any) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            said = answer(self.path.partition("?")[0], json.loads(body) if body else {})
            text = json.dumps({"error_code": "INTERNAL_ERROR", "message": "broken"} if said is None else said).encode()
            self.send_response(500 if said is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_PUT = do_PATCH = do_POST  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

        def handle_error(self, *_: Any) -> None:
            """A client that gave up is what is tested."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A client that gave up is what is tested."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
