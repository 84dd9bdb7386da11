"""How a connection of the edge lane is lent to aiohttp: what each side sees of the other.

Rule of this file: two readers share one socket, so neither may start what the other has stopped, and who
closes says so. It knows no request and no time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final, Protocol

OURS: Final = 1
THEIRS: Final = 2


class Owner(Protocol):
    """What aiohttp's side tells the connection that it works for."""

    @property
    def bounded(self) -> bool:
        """Whether aiohttp was given the bytes of one request, and none of what follows it."""

    def foreign_began(self) -> None:
        """A request's head is read, or an answer to it is being written: from here on the door bounds what happens."""

    def foreign_done(self) -> None:
        """An answer's last byte is written."""

    def pause(self, who: int) -> None:
        """``OURS`` or ``THEIRS`` can take no more bytes."""

    def resume(self, who: int) -> None:
        """It can again; reading goes on when nobody has it stopped."""

    def hang_up(self) -> None:
        """Nothing more will be written."""


class LentTransport(asyncio.Transport):
    """A connection's transport as aiohttp gets it: reading is stopped and begun, and closed, through its owner."""

    __slots__ = ("_closed", "_owner", "_transport")

    def __init__(self, transport: asyncio.Transport, owner: Owner) -> None:
        self._transport = transport
        self._owner = owner
        self._closed = False

    def pause_reading(self) -> None:
        self._owner.pause(THEIRS)

    def resume_reading(self) -> None:
        self._owner.resume(THEIRS)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._owner.hang_up()

    def give_back(self) -> None:
        """aiohttp has no more to do with it: that it closes its side means nothing."""
        self._closed = True

    def abort(self) -> None:
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._closed or self._transport.is_closing()

    def is_reading(self) -> bool:
        return self._transport.is_reading()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._owner.foreign_began()  # also where its parser refused a head: no second answer may follow
        self._transport.write(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self._owner.foreign_began()
        self._transport.writelines(list_of_data)

    def can_write_eof(self) -> bool:
        return self._transport.can_write_eof()

    def write_eof(self) -> None:
        self._transport.write_eof()

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self._transport.get_extra_info(name, default)
