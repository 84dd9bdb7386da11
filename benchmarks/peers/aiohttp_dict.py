"""The peer "aiohttp": what a team writes in an afternoon, with the same event loop as the gateway.

    python aiohttp_dict.py PORT UPSTREAM

An unbounded dict under the exact body; no quota, no freshness, no limits. It shows what they cost.
"""

from __future__ import annotations

import sys

import uvloop
from aiohttp import ClientSession, TCPConnector, web

HEADER = "Inference-Header-Content-Length"


def application(upstream: str) -> web.Application:
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
            if answer.status == 200:
                answers[key] = (body, kept | {"X-Cache": "HIT"})
            return web.Response(status=answer.status, body=body, headers=kept | {"X-Cache": "MISS"})

    async def life(_: web.Application):
        async with ClientSession(connector=TCPConnector(limit=256)) as session:
            sessions.append(session)
            yield

    made = web.Application(client_max_size=64 * 2**20)
    made.router.add_post("/{path:.*}", infer)
    made.cleanup_ctx.append(life)
    return made


if __name__ == "__main__":
    loop = uvloop.new_event_loop()
    port, target = int(sys.argv[1]), sys.argv[2]
    web.run_app(application(target), host="127.0.0.1", port=port, access_log=None, print=None, loop=loop)
