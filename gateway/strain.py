"""Whether there is too much to do: looks at every backend's queues and at the event loop, and turns brownout levels.

Rule of this file: it reads what the gates count and how late it is woken, asks ``degrade/brownout.py`` what that means,
sets each backend's level, and tells of every change. One backend that has too much to do takes nothing from routes of
others; a late event loop is everybody's. What a level means for a request is the pipeline's.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import structlog

from degrade.brownout import Brownout, BrownoutOptions, Signals, Turned
from degrade.deadline import Ticker
from gateway.background import Sleep
from tiers.gates import Gates

if TYPE_CHECKING:
    from gateway.learning import Home

LOOK_SECONDS: Final = 0.1
"""Between two looks: twice within the shortest time that a level takes to rise."""

LOOKS: Final = 10
"""Looks over which the share of requests that found no place is taken: a second."""

ASKED_MIN: Final = 10
"""Requests of which a share says something."""

PROCESS: Final = "(process)"
"""What the event loop's level is called among backends; parentheses cannot be in a configured name's way."""


_log = structlog.get_logger("tailrace")


class _Watched:
    """The level of one backend, or of the event loop, and what its gates had counted at the last looks."""

    def __init__(self, options: BrownoutOptions) -> None:
        self.options = options
        self.machine = Brownout(options)
        self.counted: deque[tuple[int, int]] = deque(maxlen=LOOKS + 1)


class Strain:
    """The levels of one process. ``options`` None: there are none. ``backends``: those that are asked now."""

    def __init__(
        self,
        backends: Callable[[], Mapping[str, Home]],
        options: Callable[[], BrownoutOptions | None],
        ticker: Ticker,
    ) -> None:
        self._backends = backends
        self._options = options
        self._ticker = ticker
        self._watched: dict[str, _Watched] = {}
        self.lag = 0.0
        """Seconds by which the event loop was late at the last look."""
        self.late_seconds = 0.0
        """Of all looks together."""
        self.turns: Counter[tuple[str, str, str]] = Counter()
        """Changes, by backend, level and reason."""

    @property
    def levels(self) -> dict[str, int]:
        """Of each backend, and of the event loop."""
        return {name: watched.machine.level for name, watched in self._watched.items()}

    async def run(self, interval: float, sleep: Sleep) -> None:
        """Look for ever, ``interval`` seconds apart; cancel it to stop."""
        while True:
            began = self._ticker()
            await sleep(interval)
            self.look(max(0.0, self._ticker() - began - interval))

    def look(self, lag: float) -> None:
        """Look once; ``lag``: seconds by which the event loop was late."""
        self.lag = lag
        self.late_seconds += lag
        options, backends, now = self._options(), self._backends(), self._ticker()
        if options is None:
            for home in backends.values() if self._watched else ():
                home.pool.gates.level = 0
            self._watched = {}
            return
        self._watched = {name: self._kept(name, options) for name in (PROCESS, *backends)}
        of_all = self._turned(PROCESS, Signals(lag=lag), now)
        for name, home in backends.items():
            gates, watched = home.pool.gates, self._watched[name]
            queue = max([gate.pressure(now) for _, gate in gates], default=0.0)
            level = self._turned(name, Signals(queue, _shed(gates, watched)), now)
            gates.level = max(level, of_all)

    def _kept(self, name: str, options: BrownoutOptions) -> _Watched:
        held = self._watched.get(name)
        return held if held is not None and held.options == options else _Watched(options)

    def _turned(self, name: str, signals: Signals, now: float) -> int:
        """The level after these signals."""
        machine = self._watched[name].machine
        turned = machine.observe(signals, now)
        if turned is not None:
            self.turns[name, str(turned.after), turned.reason] += 1
            _tell(name, turned)
        return machine.level


def _shed(gates: Gates, watched: _Watched) -> float:
    """The share of a second's requests that found no place. What a level itself sheds is not counted, for it has the
    lowest priority, which never counts: it would keep the level up for ever. Nor does a crowd's: it is refused so that
    others are served as always, and must not take that from them."""
    asked = sum([gate.asked - gate.asked_apart for _, gate in gates])
    shed = sum([gate.shed.total() - gate.shed_apart for _, gate in gates])
    watched.counted.append((asked, shed))
    asked, shed = asked - watched.counted[0][0], shed - watched.counted[0][1]
    return shed / asked if asked >= ASKED_MIN and shed > 0 else 0.0


def _tell(name: str, turned: Turned) -> None:
    words = {"before": turned.before, "level": turned.after, "reason": turned.reason, "value": round(turned.value, 3)}
    _log.warning("brownout", backend=name, **words)
