"""A real HTTP server on this machine that speaks Range, If-Range and ETag properly, and fails when it is told to."""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from local_server import listening


@dataclass
class Fault:
    """The faults of one answer; all that is not set goes well. Counts are of the body's bytes of this answer."""

    status: int | None = None
    cut_after: int | None = None
    stall_after: int | None = None
    corrupt_at: int | None = None
    ignore_range: bool = False
    ignore_condition: bool = False  # the part that is asked for, whatever If-Range says
    no_length: bool = False
    wrong_part: bool = False
    content_encoding: str | None = None
    location: str | None = None
    new_content: bytes | None = None
    retry_after: str | None = None
    endless: bool = False


@dataclass
class FileServer:
    """`files` maps paths to contents; `faults` are used up one an answer."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    etags: bool = True
    ranges: bool = True
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    served_bytes: int = 0
    pause_seconds: float = 0.0
    stopping: threading.Event = field(default_factory=threading.Event)
    guard: threading.Lock = field(default_factory=threading.Lock)

    def next_fault(self) -> Fault:
        with self.guard:
            return self.faults.pop(0) if self.faults else Fault()


@contextmanager
def serving(tls: ssl.SSLContext | None = None, **files: bytes) -> Iterator[FileServer]:
    """Serve `files` from a thread; with `tls` over https."""
    state = FileServer(files={f"/{name}": data for name, data in files.items()})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            fault = state.next_fault()
            with state.guard:
                state.requests.append(("GET", self.path, self.headers.get("Range")))
            self.close_connection = True
            if fault.location is not None:
                self.send_response(302)
                self.send_header("Location", fault.location)
                self.send_header("Connection", "close")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if fault.status is not None:
                self.send_response(fault.status)
                if fault.retry_after is not None:
                    self.send_header("Retry-After", fault.retry_after)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if fault.new_content is not None:
                state.files[self.path] = fault.new_content
            content = state.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            self._send(content, fault)

        def do_HEAD(self) -> None:
            content = state.files.get(self.path)
            self.send_response(200 if content is not None else 404)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()

        def _send(self, content: bytes, fault: Fault) -> None:
            etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            start = self._start(content, etag, fault) if state.ranges and not fault.ignore_range else 0
            if start > 0 and start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                shown = 0 if fault.wrong_part else start
                self.send_header("Content-Range", f"bytes {shown}-{len(content) - 1}/{len(content)}")
            if state.etags:
                self.send_header("ETag", etag)
            if fault.content_encoding:
                self.send_header("Content-Encoding", fault.content_encoding)
            if not (fault.no_length or fault.endless):
                self.send_header("Content-Length", str(len(content) - start))
            self.send_header("Connection", "close")
            self.end_headers()
            self._write(bytearray(content[start:]), fault)

        def _start(self, content: bytes, etag: str, fault: Fault) -> int:
            wanted = self.headers.get("Range", "")
            condition = None if fault.ignore_condition else self.headers.get("If-Range")
            if not wanted.startswith("bytes=") or (condition is not None and condition != etag):
                return 0
            return int(wanted.removeprefix("bytes=").partition("-")[0])

        def _write(self, body: bytearray, fault: Fault) -> None:
            while fault.endless and not state.stopping.is_set():
                try:
                    self.wfile.write(bytes(1 << 16))
                except OSError:
                    return
            if fault.corrupt_at is not None and body:
                body[fault.corrupt_at % len(body)] ^= 0x55
            end = min((n for n in (fault.cut_after, fault.stall_after, len(body)) if n is not None), default=0)
            for position in range(0, end, 4096):
                block = bytes(body[position : min(position + 4096, end)])
                try:
                    self.wfile.write(block)
                except OSError:
                    return
                with state.guard:
                    state.served_bytes += len(block)
                if state.pause_seconds:
                    state.stopping.wait(state.pause_seconds)
            self.wfile.flush()
            if fault.stall_after is not None:
                state.stopping.wait(30)

    with listening(Handler, state.stopping, tls) as state.url:
        yield state
