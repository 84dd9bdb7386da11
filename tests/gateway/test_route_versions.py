"""A route says of a version what infer does with it: ready, metadata and statistics agree."""

import asyncio
import contextlib
import json

from gateway.app import Gateway
from gateway.sources import load

SECONDS = 10.0
NOWHERE = {f"TAILRACE_SERVER__{name}": '"127.0.0.1:0"' for name in ("HTTP", "GRPC", "ADMIN")}
MODEL = {"name": "m", "versions": ["2", "1"], "inputs": [], "outputs": []}
ONE = '{ backend = "upstream", model = "m" }'
BOUND = '{ backend = "upstream", model = "m", version = "1" }'
UNSURE = '{ backend = "upstream", model = "m", accept = { output = "p", at_least = 0.5 } }'
LAST = '{ backend = "upstream", model = "n" }'


async def triton(reader, writer):
    """A model with the versions 1 and 2."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            target = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1]
            there = b"/versions/" not in target or target.split(b"/")[5] in (b"1", b"2")
            body = json.dumps(MODEL).encode()
            status = b"200 OK" if there else b"400 Bad Request"
            writer.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))
    writer.close()


@contextlib.asynccontextmanager
async def asking(tiers):
    """A function that GETs a path below a route of these tiers: (status, document)."""
    upstream = await asyncio.start_server(triton, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{upstream.sockets[0].getsockname()[1]}"
    gateway = Gateway(load(None, NOWHERE | {"TAILRACE_ROUTES__R__TIERS": f"[{tiers}]"}, [url]))
    http, _ = await gateway.start()

    async def ask(rest):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(http.rpartition(":")[2]))
        writer.write(f"GET /v2/models/r{rest} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(SECONDS):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return int(head.split()[1]), json.loads(body)

    try:
        yield ask
    finally:
        await gateway.stop()
        upstream.close()


async def test_a_version_that_the_model_has_not_is_not_ready():
    async with asking(ONE) as ask:
        assert [(await ask(f"/versions/{version}/ready"))[0] for version in (1, 2, 7)] == [200, 200, 503]
        assert (await ask(""))[1]["versions"] == ["2", "1"]


async def test_a_route_bound_to_a_version_knows_no_other():
    async with asking(BOUND) as ask:
        assert (await ask(""))[1]["versions"] == ["1"]
        for rest, status in (("1", 200), ("2", 404), ("1/ready", 200), ("2/ready", 404), ("2/stats", 404)):
            assert (await ask(f"/versions/{rest}"))[0] == status, rest


async def test_a_route_of_two_tiers_has_no_versions():
    async with asking(f"{UNSURE}, {LAST}") as ask:
        assert (await ask(""))[1]["versions"] == []
        for rest in ("1", "1/ready", "1/stats", "1/config"):
            assert (await ask(f"/versions/{rest}"))[0] == 404, rest
