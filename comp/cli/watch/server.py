"""A server of pages for this machine: read only, on 127.0.0.1, for those who know its token.

The standard library's server is enough: three kinds of pages, few readers, no dependency more. Whoever can open
127.0.0.1 (another user, a web page in the browser) lacks the token, and a name that an attacker's DNS points here is
refused (DNS rebinding). A page that has not changed since the browser last asked is not sent again (ETag).
"""

import hashlib
import os
import secrets
import socketserver
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote_to_bytes

from comp.runtime.errors import UserError

FIRST_PORT, _PORTS = 8765, 100  # those tried where none is given
_HOSTS = ("127.0.0.1", "localhost")
_SECONDS = 30  # after which a silent connection is closed
_HEADERS = {
    "Cache-Control": "private, no-cache",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
Answer = Callable[[tuple[str, ...]], tuple[HTTPStatus, bytes]]  # the parts of a path below the token -> an HTML page


class Server(socketserver.ThreadingTCPServer):
    """Serves pages until `serve_forever` is interrupted.

    Attributes:
        token: the first part of every path.
        answer: makes the pages; called by several threads.
    """

    allow_reuse_address = os.name == "posix"
    daemon_threads = True

    def __init__(self, port: int, make_answer: Callable[[str], Answer]) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.token = secrets.token_urlsafe(24)
        self.answer = make_answer(self.token)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """The address of the first page."""
        return f"http://127.0.0.1:{self.port}/{self.token}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say what is wrong with comp, but not that a browser has hung up."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version, timeout = "comp", "", _SECONDS

    def do_GET(self) -> None:
        """Send a page."""
        host = self.headers.get("Host", "").partition(":")[0].lower()
        parts = tuple(os.fsdecode(unquote_to_bytes(part)) for part in self.path.partition("?")[0].split("/")[1:])
        if host not in _HOSTS:
            self._send(HTTPStatus.FORBIDDEN, b"this address is only for 127.0.0.1")
        elif not secrets.compare_digest(os.fsencode(parts[0] if parts else ""), self.server.token.encode()):
            self._send(HTTPStatus.FORBIDDEN, b"open the whole address that comp watch has printed")
        else:
            self._send(*self.server.answer(parts[1:]), kind="text/html")

    def do_HEAD(self) -> None:
        """Send a page's headers; any other method is refused by the standard library."""
        self.do_GET()

    def _send(self, status: HTTPStatus, content: bytes, kind: str = "text/plain") -> None:
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        if status == HTTPStatus.OK and self.headers.get("If-None-Match") == tag:
            status, content = HTTPStatus.NOT_MODIFIED, b""
        headers = _HEADERS | {"ETag": tag}
        if status != HTTPStatus.NOT_MODIFIED:
            headers |= {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(content))}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *values: object) -> None:
        """Print nothing: the lines would hold the token."""


def listen(make_answer: Callable[[str], Answer], port: int | None = None) -> Server:
    """Return a server on a port, or on the first free one from 8765 on.

    Args:
        make_answer: takes the token, which the pages' links need, and returns what makes the pages.
        port: None: the first free one.

    Raises:
        UserError: the port is not free, or not allowed.
    """
    for each in range(FIRST_PORT, FIRST_PORT + _PORTS) if port is None else [port]:
        try:
            return Server(each, make_answer)
        except OSError as error:
            reason = error.strerror
    tried = f"port {port}" if port is not None else f"ports {FIRST_PORT} to {FIRST_PORT + _PORTS - 1}"
    raise UserError(f"{tried}: cannot be listened on ({reason}); choose a free one: --port N")
