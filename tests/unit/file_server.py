"""An HTTP server of a folder on the loopback interface, with byte ranges and with the faults that servers have."""

from __future__ import annotations

import re
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Fault = Callable[["Handler", bytes], bool]


class FileServer:
    """`faults` are used up one a GET for a path that holds `only`, `head_faults` one a HEAD; then all is well again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: list[Fault] = []
        self.head_faults: list[Fault] = []
        self.only = ""
        self.honours_ranges = True
        self.delay_s = 0.0
        self.requests: list[tuple[str, str | None]] = []
        self.lock = threading.Lock()
        self.url = ""

    def asked(self, part: str) -> int:
        """How often a path that holds `part` was asked for by GET."""
        return sum(part in path for path, _ in self.requests)


class Handler(BaseHTTPRequestHandler):
    server_version = "files"
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave together, or each request waits for the network's timers
    files: FileServer
    etag = ""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        files = self.files
        path = files.folder / self.path.lstrip("/")
        if not path.is_file():
            self.refuse(404)
            return
        content = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if body:
            time.sleep(files.delay_s if files.only in self.path else 0.0)
            with files.lock:
                files.requests.append((self.path, self.headers.get("Range")))
                faulty = files.faults and files.only in self.path
                fault = files.faults.pop(0) if faulty else None
            if fault is not None and fault(self, content):
                return
        elif files.head_faults and files.head_faults.pop(0)(self, content):
            return
        self.etag = f'"{zlib.crc32(content):08x}"'
        if asked and files.honours_ranges and body:
            start, end = int(asked[1]), int(asked[2]) + 1
            if start >= len(content):
                self.refuse(416)
                return
            self.send(content[start:end], status=206)
        else:
            self.send(content, body=body)

    def send(self, content: bytes, *, status: int = 200, length: int | None = None, body: bool = True) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.send_header("Accept-Ranges", "bytes")
        if self.etag:
            self.send_header("ETag", self.etag)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def refuse(self, status: int) -> None:
        self.send(b"", status=status)

    def log_message(self, *_: object) -> None:
        pass


def status(code: int) -> Fault:
    """Answer with this status."""

    def fault(handler: Handler, _: bytes) -> bool:
        handler.refuse(code)
        return True

    return fault


def hang_up(handler: Handler, _: bytes) -> bool:
    """Close the connection without an answer."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)
    return True


def _range(handler: Handler, content: bytes) -> bytes:
    asked = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
    return content[int(asked[1]) : int(asked[2]) + 1] if asked else content


def cut_body(handler: Handler, content: bytes) -> bool:
    """Promise the whole body and send half of it."""
    whole = _range(handler, content)
    handler.send(whole[: len(whole) // 2], status=206, length=len(whole))
    handler.close_connection = True
    return True


def short_body(handler: Handler, content: bytes) -> bool:
    """Send half of the body as if it were all, as some proxies do."""
    whole = _range(handler, content)
    handler.send(whole[: len(whole) // 2], status=206)
    return True


def flipped_bit(position: int) -> Fault:
    """Send the body with one bit changed."""

    def fault(handler: Handler, content: bytes) -> bool:
        wrong = bytearray(_range(handler, content))
        wrong[position] ^= 1
        handler.send(bytes(wrong), status=206)
        return True

    return fault


@contextmanager
def serving(folder: Path) -> Iterator[FileServer]:
    """Serve a folder until the body ends."""
    files = FileServer(folder)
    handler = type("BoundHandler", (Handler,), {"files": files})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02), daemon=True)
    thread.start()
    files.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
