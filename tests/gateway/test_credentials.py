"""A request says who sends it once: a second credential is refused on both lanes, where keys are ours."""

import asyncio
import json

import pytest

from gateway.admission.auth import key_digest
from gateway.app import Gateway
from gateway.sources import load

SECONDS = 10.0
LISTENERS = {f"TAILRACE_SERVER__{name}": '"127.0.0.1:0"' for name in ("HTTP", "GRPC", "ADMIN")}
NOBODY = "http://127.0.0.1:1"


async def refusal(edge: str, *fields: str) -> tuple[int, dict[str, object]]:
    """The status and document of the answer to an infer request of a route with these fields."""
    keys = {
        "TAILRACE_SERVER__EDGE": edge,
        "TAILRACE_SERVER__DRAIN": "0s",
        "TAILRACE_CALLERS__A__KEY_SHA256": key_digest("ka"),
        "TAILRACE_ROUTES__R__TIERS": '[{ backend = "upstream", model = "m" }]',
    }
    gateway = Gateway(load(None, LISTENERS | keys, [NOBODY]))
    http, _ = await gateway.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(http.rpartition(":")[2]))
    try:
        head = ["POST /v2/models/r/infer HTTP/1.1", "Host: h", "Content-Length: 2", *fields, "", "{}"]
        writer.write("\r\n".join(head).encode())
        async with asyncio.timeout(SECONDS):
            answer = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readuntil(b"}")
        return int(answer.split()[1]), json.loads(body)
    finally:
        writer.close()
        await gateway.stop()


@pytest.mark.parametrize("edge", ["true", "false"])
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (("Authorization: Bearer ka", "Authorization: Bearer zz"), "duplicate-header"),
        (("Authorization: Bearer zz", "authorization: Bearer ka"), "duplicate-header"),
        (("Authorization: Bearer ka", "Authorization: Bearer ka"), "duplicate-header"),
        (("X-API-Key: ka", "x-api-key: zz"), "duplicate-header"),
        (("Authorization: Bearer ka", "X-API-Key: zz"), "conflict"),
    ],
)
async def test_a_credential_given_twice_is_refused(edge: str, fields: tuple[str, ...], reason: str) -> None:
    status, document = await refusal(edge, *fields)
    assert (status, document["reason"]) == (400, reason)


@pytest.mark.parametrize("edge", ["true", "false"])
async def test_the_same_key_in_both_ways_is_one_credential(edge: str) -> None:
    _, document = await refusal(edge, "Authorization: Bearer ka", "X-API-Key: ka")
    assert document.get("reason") not in ("duplicate-header", "conflict")
