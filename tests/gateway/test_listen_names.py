"""Who cannot listen says on which key's address."""

import contextlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.app import Gateway
from gateway.doors.listener import check_free
from gateway.sources import load


@pytest.mark.parametrize("key", ["http", "grpc", "rpc", "admin"])
async def test_an_address_that_is_taken_is_named_with_its_key(key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        listeners = {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", "admin": "127.0.0.1:0"} | {key: address}
        environ = {f"TAILRACE_SERVER__{name.upper()}": f'"{where}"' for name, where in listeners.items()}
        gateway = Gateway(load(None, environ | {"TAILRACE_SERVER__DRAIN": "0s"}, ["http://127.0.0.1:1"]))
        with pytest.raises(OSError, match=f"server.{key} {address}: .*in use"):
            await gateway.start()
        await gateway.stop()


def at(path: Path, key: str) -> Gateway:
    """A gateway with one of its listeners on a unix socket."""
    listeners = {"http": "127.0.0.1:0", "grpc": "off", "admin": "127.0.0.1:0"} | {key: f"unix:{path}"}
    environ = {f"TAILRACE_SERVER__{name.upper()}": f'"{where}"' for name, where in listeners.items()}
    return Gateway(load(None, environ | {"TAILRACE_SERVER__DRAIN": "0s"}, ["http://127.0.0.1:1"]))


def accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        try:
            asking.connect(str(path))
        except OSError:
            return False
        return True


@pytest.mark.parametrize("key", ["http", "grpc", "rpc", "admin"])
async def test_a_unix_socket_is_not_taken_from_who_listens_there(key: str, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    first, second = at(path, key), at(path, key)
    await first.start()
    inode = path.stat().st_ino
    with pytest.raises(OSError, match=f"server.{key} unix:{path}: somebody accepts connections there already"):
        await second.start()
    await second.stop()
    assert path.stat().st_ino == inode
    assert accepts(path)
    await first.stop()


@pytest.mark.parametrize("key", ["http", "grpc", "rpc", "admin"])
async def test_a_unix_socket_that_nobody_listens_on_is_taken_over(key: str, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as gone:
        gone.bind(str(path))
        gone.listen()
    assert path.is_socket()
    gateway = at(path, key)
    await gateway.start()
    assert accepts(path)
    await gateway.stop()


async def test_a_file_that_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    gateway = at(path, "http")
    with pytest.raises(OSError, match=f"server.http unix:{path}"):
        await gateway.start()
    await gateway.stop()
    assert path.read_text() == "mine"


def test_a_line_that_is_full_is_somebody_too(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as busy, contextlib.ExitStack() as opened:
        busy.bind(path)
        busy.listen(0)
        for _ in range(4):
            waiting = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(path)
        with pytest.raises(OSError, match="somebody accepts"):
            check_free(path)


def test_a_second_process_ends_and_says_why(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    listeners = ("--http", f"unix:{path}", "--admin", "127.0.0.1:0", "--grpc", "off")
    command = [sys.executable, "-m", "gateway.cli", "serve", "--upstream", "http://127.0.0.1:1", *listeners]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout is not None
            assert "tailrace ready" in next(line for line in first.stdout if "ready" in line)
            second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert (second.returncode, accepts(path)) == (1, True)
            assert f"tailrace: cannot listen: server.http unix:{path}: somebody accepts" in second.stderr
        finally:
            first.terminate()
