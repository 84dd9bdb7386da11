"""While the notice of draining lasts, callers are served and readiness says what is coming."""

import asyncio
import json

from gateway.app import Gateway
from gateway.sources import load

SECONDS = 10.0
LISTENERS = {f"TAILRACE_SERVER__{name}": '"127.0.0.1:0"' for name in ("HTTP", "GRPC", "ADMIN")}


async def test_draining_is_seen_on_new_connections_before_the_listener_closes() -> None:
    slept: list[float] = []
    begun, over = asyncio.Event(), asyncio.Event()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        begun.set()
        await over.wait()

    environ = LISTENERS | {"TAILRACE_SERVER__DRAIN": "1s", "TAILRACE_SERVER__DRAIN_NOTICE": "7s"}
    gateway = Gateway(load(None, environ, ["http://127.0.0.1:1"]), sleep=sleep)
    http, _ = await gateway.start()
    port = int(http.rpartition(":")[2])
    stopping = asyncio.create_task(gateway.stop())
    async with asyncio.timeout(SECONDS):
        await begun.wait()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for path, status in (("ready", b"503"), ("live", b"200")):
            writer.write(f"GET /v2/health/{path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.split()[1] == status
            document = json.loads(await reader.readuntil(b"}"))
            assert path == "live" or "draining" in document["error"]
        over.set()
        await stopping
        writer.close()
    assert slept == [7.0]
