"""A double of Azure Monitor's ingestion endpoint, on loopback."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Ingestion:
    """Takes telemetry and keeps it."""

    def __init__(self) -> None:
        self._items: list[dict[str, Any]] = []
        self._known: set[str] = set()
        items = self._items

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                taken = json.loads(body)
                items.extend(taken)
                answer = {
                    "itemsReceived": len(taken),
                    "itemsAccepted": len(taken),
                    "errors": [],
                }
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            def log_message(self, *args: Any) -> None:
                """Be silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def take(self, kind: str) -> list[str]:
        """Return what has come of a kind, and forget all.

        An item that is sent again counts once: whoever waits too long for the answer,
        on a busy machine, sends it again.
        """
        found = {
            item["data"]["baseData"]["id"]: json.dumps(item)
            for item in self._items
            if item["data"]["baseType"] == kind
        }
        new = [text for name, text in found.items() if name not in self._known]
        self._known.update(found)
        self._items.clear()
        return new
