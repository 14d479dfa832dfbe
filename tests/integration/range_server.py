"""Servers of this machine that give the files of a folder over HTTP or HTTPS, with ranges."""

import http.server
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Whole files and ranges; HTTP/1.1 keeps connections open."""

    protocol_version = "HTTP/1.1"
    with_ranges = True
    refusal = 0  # the status for those who may not read

    def do_GET(self) -> None:
        """A whole file or a range of it."""
        path = Path(self.directory) / self.path.partition("?")[0].lstrip("/")
        if self.refusal or not path.is_file():
            self.send_error(self.refusal or 404)
            return
        content, status = path.read_bytes(), 200
        bounds = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if self.with_ranges else None
        if bounds:
            content, status = content[int(bounds[1]) : int(bounds[2]) + 1], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class SigningHandler(RangeHandler):
    """To those alone who give the right signature; to others, 401."""

    @property
    def refusal(self) -> int:
        """Whether the query lacks the signature."""
        return 0 if self.path.endswith("?signature=secret") else 401


class RangelessHandler(RangeHandler):
    """Whole files only, as python -m http.server gives them."""

    with_ranges = False


@contextmanager
def file_server(
    folder: Path, handler: type[RangeHandler] = RangeHandler, tls: ssl.SSLContext | None = None
) -> Iterator[int]:
    """The port of a server of this process that gives the files of `folder`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=folder))
    server.daemon_threads = True
    if tls:  # the handshake belongs to the connection's thread: who fails it must not hold up the others
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()
