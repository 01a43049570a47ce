"""A stand-in for a process of the platform: /readyz and /metrics on the HTTP port it is given, nothing else.

Keeps the tests of starting and stopping apart from what the services do. `FAIL=<name>` in the environment
makes that process end at once, `STUBBORN=<name>` makes it deaf to SIGTERM.
"""

import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    name, port = sys.argv[1], int(sys.argv[2])
    stubborn = os.environ.get("STUBBORN") == name
    signal.signal(signal.SIGTERM, signal.SIG_IGN if stubborn else lambda *_: sys.exit(0))
    if os.environ.get("FAIL") == name:
        sys.exit(f"{name} was told to fail")
    print(name, os.environ["MONGO_URI"], os.environ["AMQP_URI"], flush=True)
    HTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
