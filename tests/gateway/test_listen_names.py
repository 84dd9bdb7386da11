"""Who cannot listen says on which key's address."""

import socket

import pytest

from gateway.app import Gateway
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
