"""A judge that stands in for a real one: a small server on this machine that speaks OpenAI's chat API."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = str | tuple[int, dict[str, str]]
"""The judge's words, or the status and headers of a trouble."""


@contextmanager
def judge(answer: Callable[[str], Answer]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Gives its address, and the requests that have come so far, headers under `headers`.

    Args:
        answer: To a prompt.
    """
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({**body, "path": self.path, "headers": dict(self.headers)})
            content = body["messages"][0]["content"]
            said = answer(content if isinstance(content, str) else content[0]["text"])
            status, headers = (200, {}) if isinstance(said, str) else said
            choices = [{"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]
            reply = json.dumps({"choices": choices} if status == 200 else {"error": "no"}).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(reply))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()
