"""512 MiB through the gateway, up, down and both at once: every byte arrives, and none of it is kept.

Rule of this file: the upstream is no Triton, for none takes or gives so much; it echoes, swallows or gives, one piece
at a time, and so does the caller, who stops reading for a while in the middle.
"""

from __future__ import annotations

import socket
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from examples.gatewayprocess import GatewayProcess

BYTES = 512 * 2**20
PIECE = bytes(range(256)) * 1024
GROWTH_BYTES_MAX = 32 * 2**20
"""What the gateway may have more in memory at its peak: buffers of four connections, whatever passes through them."""
PAUSE_SECONDS = 0.5
SECONDS = 60.0


class Upstream:
    """POST /echo gives back what it gets; POST /take says the checksum of it; GET /give gives BYTES."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                own, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(own,), daemon=True).start()

    def _serve(self, own: socket.socket) -> None:
        with own, own.makefile("rb") as reader:
            while line := reader.readline():
                head = line
                while (line := reader.readline()) not in (b"\r\n", b""):
                    head += line
                self._answer(own, reader, head.lower())

    def _answer(self, own: socket.socket, reader: Any, head: bytes) -> None:
        path = head.split(b" ")[1]
        length = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
        if path == b"/give":
            own.sendall(length % BYTES)
            for _ in range(BYTES // len(PIECE)):
                own.sendall(PIECE)
        elif path == b"/echo":
            own.sendall(length % BYTES)
            for piece in pieces(reader, head):
                own.sendall(piece)
        elif path == b"/take":
            checksum = 0
            for piece in pieces(reader, head):
                checksum = zlib.crc32(piece, checksum)
            own.sendall(length % 8 + b"%08x" % checksum)
        else:
            own.sendall(length % 2 + b"{}")


def pieces(reader: Any, head: bytes) -> Iterator[bytes]:
    """A body by its framing."""
    if b"transfer-encoding: chunked" in head:
        while size := int(reader.readline(), 16):
            left = size
            while left:
                piece = reader.read1(min(left, len(PIECE)))
                left -= len(piece)
                yield piece
            reader.readline()
        reader.readline()
        return
    left = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
    while left:
        piece = reader.read1(min(left, len(PIECE)))
        if not piece:
            raise ConnectionResetError
        left -= len(piece)
        yield piece


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayProcess]:
    with closing(Upstream()) as upstream, GatewayProcess(None, ("--upstream", upstream.url)) as process:
        yield process


def expected() -> int:
    checksum = 0
    for _ in range(BYTES // len(PIECE)):
        checksum = zlib.crc32(PIECE, checksum)
    return checksum


def peak_bytes(pid: int) -> int:
    """The most that was resident since the peak was last forgotten."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


@pytest.mark.parametrize(
    ("path", "framing"),
    [("/take", "length"), ("/take", "chunked"), ("/give", ""), ("/echo", "length"), ("/echo", "chunked")],
)
def test_half_a_gibibyte_passes_and_is_not_kept(gateway: GatewayProcess, path: str, framing: str) -> None:
    host, _, port = gateway.http_address.rpartition(":")
    pid = gateway.process.pid
    forget_peak(pid)
    before = peak_bytes(pid)
    with socket.create_connection((host, int(port)), timeout=SECONDS) as own, own.makefile("rb") as reader:
        upload = threading.Thread(target=send, args=(own, path, framing), daemon=True)
        upload.start()
        head = b""
        while (line := reader.readline()) not in (b"\r\n", b""):
            head += line
        assert head.startswith(b"HTTP/1.1 200 "), head
        checksum, got, has_paused = 0, 0, path == "/take"
        answer = b""
        for piece in pieces(reader, head.lower()):
            got += len(piece)
            if path == "/take":
                answer += piece
                continue
            checksum = zlib.crc32(piece, checksum)
            if got > BYTES // 2 and not has_paused:
                has_paused = True
                time.sleep(PAUSE_SECONDS)
        upload.join(SECONDS)
    assert (int(answer, 16) if path == "/take" else checksum) == expected()
    assert has_paused
    grown = peak_bytes(pid) - before
    assert grown < GROWTH_BYTES_MAX, f"{grown / 2**20:.1f} MiB more for {BYTES / 2**20:.0f} MiB that passed"


def send(own: socket.socket, path: str, framing: str) -> None:
    """The whole request."""
    if path == "/give":
        own.sendall(b"GET /give HTTP/1.1\r\nHost: h\r\n\r\n")
        return
    told = b"Content-Length: %d" % BYTES if framing == "length" else b"Transfer-Encoding: chunked"
    own.sendall(b"POST %b HTTP/1.1\r\nHost: h\r\n%b\r\n\r\n" % (path.encode(), told))
    for _ in range(BYTES // len(PIECE)):
        own.sendall(PIECE if framing == "length" else b"%x\r\n%b\r\n" % (len(PIECE), PIECE))
    if framing == "chunked":
        own.sendall(b"0\r\n\r\n")
