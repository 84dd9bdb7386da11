"""Hanging up below grpc: the one connection that leads to a peer, and no other."""

import asyncio

import pytest

from gateway.doors.hangup import hang_up


@pytest.mark.parametrize(
    ("host", "written"), [("127.0.0.1", "ipv4:127.0.0.1:{}"), ("::1", "ipv6:%5B::1%5D:{}"), ("::1", "ipv6:[::1]:{}")]
)
async def test_the_connection_to_a_peer_is_shut_and_no_other(host: str, written: str) -> None:
    ended = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b""
        ended.append(writer.get_extra_info("peername")[1])
        writer.close()

    server = await asyncio.start_server(serve, host, 0)
    port = server.sockets[0].getsockname()[1]
    callers = [await asyncio.open_connection(host, port) for _ in range(3)]
    ports = [writer.get_extra_info("sockname")[1] for _, writer in callers]
    await asyncio.sleep(0.05)
    assert hang_up(written.format(ports[1]))
    async with asyncio.timeout(10.0):
        assert await callers[1][0].read() == b""
        while not ended:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
    assert ended == [ports[1]]
    for _, writer in callers:
        writer.close()
    server.close()


@pytest.mark.parametrize("peer", ["", "unix:", "unix:/tmp/x", "ipv4:127.0.0.1", "ipv4:127.0.0.1:1", "nonsense:1"])
def test_who_has_no_connection_here_has_none_to_shut(peer: str) -> None:
    assert not hang_up(peer)
