"""The peers "aiohttp" and "aiohttp-client": what a team writes in an afternoon, with the gateway's event loop.

    python aiohttp_peer.py PORT UPSTREAM dict|pass

``dict``: an unbounded dict under the exact body; no quota, no freshness, no limits. It shows what they cost.
``pass``: every request is sent on.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import uvloop
from aiohttp import ClientSession, TCPConnector, web

HEADER = "Inference-Header-Content-Length"


def application(upstream: str, *, caches: bool) -> web.Application:
    answers: dict[tuple[str, str, bytes], tuple[bytes, dict[str, str]]] = {}
    sessions: list[ClientSession] = []

    async def infer(request: web.Request) -> web.Response:
        key = (request.path, request.headers.get(HEADER, ""), await request.read())
        found = answers.get(key)
        if found is not None:
            return web.Response(body=found[0], headers=found[1])
        headers = {HEADER: key[1], "Content-Type": request.content_type} if key[1] else {}
        async with sessions[0].post(upstream + request.path, data=key[2], headers=headers) as answer:
            body = await answer.read()
            kept = {name: answer.headers[name] for name in ("Content-Type", HEADER) if name in answer.headers}
            if caches and answer.status == 200:
                answers[key] = (body, kept | {"X-Cache": "HIT"})
            told = {"X-Cache": "MISS"} if caches else {}
            return web.Response(status=answer.status, body=body, headers=kept | told)

    async def life(_: web.Application) -> AsyncIterator[None]:
        async with ClientSession(connector=TCPConnector(limit=256)) as session:
            sessions.append(session)
            yield

    made = web.Application(client_max_size=64 * 2**20)
    made.router.add_post("/{path:.*}", infer)
    made.cleanup_ctx.append(life)
    return made


if __name__ == "__main__":
    loop = uvloop.new_event_loop()
    port, target, caches = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "dict"
    made = application(target, caches=caches)
    web.run_app(made, host="127.0.0.1", port=port, access_log=None, print=None, loop=loop)
