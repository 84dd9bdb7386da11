"""How much a server may be given at once: an estimate from how long its answers take, and nothing else.

Rule of this file: pure numbers in, a limit out. It gives no leave and holds no queue (``degrade/gate.py`` does), and
must not know what is asked. Time and chance are arguments.

The question it answers over and over: **what does the last quarter of the limit bring?** Little's law gives throughput
as concurrency / latency, so two points (concurrency, mean latency) tell how throughput grows between them:

    elasticity = 1 - ln(latency / latency_below) / ln(concurrency / concurrency_below)

1: twice as much at once is twice as much done (nothing queues); 0: all that came on top only waits. The limit goes up
while the elasticity is above ``ELASTICITY`` and down while it is below. That is the gradient of Netflix' Gradient2 and
of Envoy's adaptive concurrency, measured over the upper quarter of the limit instead of against the latency of an idle
server: a Triton that batches is slower and *better* at a higher concurrency, and a gradient against its idle latency
would strangle it.

The traps of such estimators, and what is done here:
 - *slow start*: where the limit begins (``first``) it doubles as long as that brings more; it begins high enough that
   most servers never notice. It may be far too high all the same: the first time that anybody has to wait, some twenty
   answers later, throughput and the shortest latency known make a guess of what is enough, and from there it goes
   down by quarters while that changes nothing.
 - *a drifting baseline*: a server that is overloaded for hours teaches no estimator here that this is normal, for the
   point below is measured anew, at three quarters of the limit, every few seconds, and is forgotten when it is old.
 - *a latency cliff when it is measured*: at three quarters of the limit (in the spirit of BBRv2's ProbeRTT, and unlike
   Envoy's drop to 3) a server that is well fed stays busy, for what is missing would only have queued in it. When this
   happens is left to chance, so that processes before one server do not do it together.
 - *samples of a server that was not full* say nothing upwards: they are only taken as the point below, if they are of
   that concurrency.
 - *a crowd that is held below it* (``held``: places are kept for others): what it brings says whether the limit is far
   too high, and nothing more (``degrade/hold.py``).
 - *drops* (timeouts, a server that says it is overloaded) shrink the limit by their share, down to half of it.
 - *bounds*: never below ``least``, never above ``most``; at the floor it always looks up again.

N. Spooner, "Performance under load", Netflix 2018; Envoy, "Adaptive concurrency"; N. Cardwell et al., "BBR v2", IETF
104.
"""

from __future__ import annotations

import math
import random
from typing import Final

import msgspec

from degrade.hold import Hold
from degrade.points import APART_MAX, APART_MIN, BELOW, Point, Window, elasticity

ELASTICITY: Final = 0.25
"""Where the limit comes to rest: a third more at once is worth it for 7 % more done (4/3 ** 0.25), not for less. For a
server of k equal places this is 1.3 k."""

GAIN: Final = 0.5
"""How far a window's elasticity moves the limit: without any (0) by an eighth."""

SHRINK_MIN: Final = 0.7
GROWTH_MAX: Final = 1.6
FIRST_GROWTH: Final = 2.0
"""What one window may do to the limit at most; upwards before it first had to go down: slow start."""

DROPS_WEIGHT: Final = 2.0
DROPS_SHRINK_MIN: Final = 0.5
"""A window in which a tenth was dropped takes a fifth of the limit, and one in which all were, half of it."""

FULL: Final = 0.75
"""A window is of a full server if this share of the limit was in flight, in the mean of its time: less than all, for
what ends in a window is a matter of chance."""

SAMPLES_MIN: Final = 20
SAMPLES_MAX: Final = 100
SAMPLES_PER_PLACE: Final = 4
"""A window's samples: four rounds of the limit, within bounds that keep a small one from being guesswork and a large
one from taking long."""

WINDOW_SECONDS_MIN: Final = 0.1
"""A window lasts this long however fast its samples come: more of them are less noise, and nothing is lost by it."""

WINDOW_SECONDS_MAX: Final = 1.0
"""Drops are counted after this time at the latest: of a server that hangs nothing else comes."""

QUICK_SAMPLES: Final = 8
"""Samples whose mean may be the shortest latency known: one alone is luck."""

GUESS: Final = 3.0
"""What the first guess allows beyond throughput x shortest latency, which is what an idle server's places hold."""

PATIENCE: Final = 10.0
"""Mean latencies after which a measurement below that did not come to its samples is given up: the load has gone."""


class LimiterOptions(msgspec.Struct, frozen=True):
    """``least`` and ``most``: bounds of the limit. ``first``: where it begins, None: at ``most``. ``remeasure``:
    seconds between two measurements below the limit, give or take a half. ``adaptive`` False: ``most``, always."""

    least: int = 2
    most: int = 64
    first: int | None = None
    remeasure: float = 4.0
    adaptive: bool = True
    elasticity: float = ELASTICITY

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError("least is at least 1, and at most `most`")
        if self.remeasure <= 0.0:
            raise ValueError("remeasure is above 0 seconds")


class Limiter:
    """One estimate, for what has one queue of its own. Seconds of a monotonic clock; ``chance`` spreads
    measurements."""

    def __init__(self, options: LimiterOptions, chance: random.Random) -> None:
        self._options = options
        self._chance = chance
        first = options.most if options.first is None else options.first
        self._limit = 0.0
        self.settled = 0
        """The limit, whether a measurement below it is under way or not."""
        self._samples = 0  # of a window: four rounds of the limit
        self._set(first)
        self._rising = True  # it never had to go down
        self._lost = True  # it was never near what the server can do: it goes down as long as that changes nothing
        self._above: Point | None = None
        self._elastic: float | None = None  # smoothed: one window's noise is not the next one's
        self._below: Point | None = None
        self._window = Window(-math.inf)
        self._measuring: Window | None = None
        self._due = -math.inf
        self._lowered_at = -math.inf
        self._quick = Window(-math.inf)
        self._quickest = math.inf
        self._pressed: Window | None = None
        self._hold = Hold()
        self._latency = 0.0
        self.measurements = 0

    @property
    def limit(self) -> int:
        """How many may be in flight now."""
        return self.settled if self._measuring is None else self._place(self._limit * BELOW)

    @property
    def is_measuring(self) -> bool:
        """Whether the limit is low only to see what it brings."""
        return self._measuring is not None

    @property
    def latency(self) -> float:
        """Seconds that calls took lately, in the mean; 0 before any ended."""
        return self._latency

    def sample(self, seconds: float, in_flight: int, now: float) -> None:
        """A call was answered after ``seconds``; it began with ``in_flight`` in flight, itself included."""
        if self._window.began == -math.inf:
            self._window = Window(now)
        self._latency += (seconds - self._latency) * (0.1 if self._latency else 1.0)
        if not self._options.adaptive:
            return
        self._guess(seconds, now)
        if self._measuring is not None:
            self._measure(seconds, in_flight, now)
            return
        if self._hold.sample(seconds, now, self._samples):
            if not self._hold.dips:
                self._window = Window(now)
            return
        self._window.add(seconds, in_flight <= self.settled)
        self._close_if_due(now)

    def held(self, now: float) -> None:
        """Somebody was not let in though the limit is not reached: the last places are kept for others. Until that is
        over no measurement is made below the limit, which would measure where the crowd stands (``crowd``)."""
        if self._measuring is not None:
            self._measuring, self._window = None, Window(now)
        self._hold.begin(now, self._measure_seconds)

    @property
    def crowd(self) -> float:
        """The share of its places that a crowd that is held may have now: less than 1 to see what they bring."""
        return BELOW if self._hold.dips else 1.0

    def hint(self, places: int) -> None:
        """It is known how many the server works on at once: as long as the limit was never near that, it goes on from
        where it comes to rest anyway, a quarter above."""
        if self._options.adaptive and self._lost:
            self._set(min(self._limit, places + max(1, places // 4)))

    def pressed(self, now: float) -> None:
        """Somebody has to wait: the limit is what holds him up."""
        if self._lost and self._pressed is None and self._options.adaptive:
            self._pressed = Window(now)

    def dropped(self, began: float, now: float) -> None:
        """A call that began then was not answered in time, or the server said that it has too much to do. It says
        nothing more if the limit has been lowered for others since."""
        if self._window.began == -math.inf:
            self._window = Window(now)
        if self._options.adaptive and began >= self._lowered_at:
            self._window.drops += 1
            self._close_if_due(now)

    def tick(self, now: float) -> None:
        """Time has passed: a measurement that nobody comes to any more ends."""
        if self._measuring is not None and now - self._measuring.began > self._measure_seconds:
            self._measured(now)
        if self._hold.is_over(now, self._measure_seconds):
            self._window = Window(now)

    def _guess(self, seconds: float, now: float) -> None:
        """Keep the shortest latency; and once, when the server has been full for some answers, what that says."""
        self._quick.add(seconds)
        if self._quick.count == QUICK_SAMPLES:
            self._quickest = min(self._quickest, self._quick.seconds / QUICK_SAMPLES)
            self._quick = Window(now)
        pressed = self._pressed
        if pressed is None or not self._lost or pressed.count > SAMPLES_MIN:
            return
        pressed.add(seconds)
        if pressed.count > SAMPLES_MIN and now > pressed.since and self._quickest < math.inf:
            enough = GUESS * self._quickest * pressed.count / (now - pressed.since)
            if enough < self._limit:
                self._turn(enough / self._limit, now)
                self._window, self._measuring = Window(now), None

    # -- windows ----------------------------------------------------------------------------------

    def _close_if_due(self, now: float) -> None:
        window = self._window
        enough = window.count + window.drops >= self._samples and now - window.began >= WINDOW_SECONDS_MIN
        if enough or (window.drops and now - window.began >= WINDOW_SECONDS_MAX):
            self._window = Window(now)
            self._judge(window, now)

    def _judge(self, window: Window, now: float) -> None:
        """What a window says of the limit."""
        if window.drops:
            share = window.drops / (window.drops + window.count)
            self._turn(max(DROPS_SHRINK_MIN, 1.0 - DROPS_WEIGHT * share), now)
            return
        concurrency = window.concurrency(now)
        if self._hold.is_on(now, self._measure_seconds):
            factor = self._hold.judge(Point(concurrency, window.latency(), now), self._options.elasticity)
            if factor < 1.0:
                self._turn(factor, now)
            return
        if concurrency < FULL * self.settled:
            # Not full, so it says nothing upwards. It may be the point below, for nothing.
            if self._is_below(concurrency):
                self._keep(Point(concurrency, window.latency(), now))
            return
        point = Point(float(self.settled), window.latency(), now)
        below = self._below
        if below is None or now - below.at > 3.0 * self._options.remeasure:
            below = self._below = None
        apart = 0.0 if below is None else point.concurrency / below.concurrency
        if below is not None and APART_MIN <= apart <= APART_MAX:
            found = elasticity(below, point)
            self._elastic = found if self._rising or self._elastic is None else (found + self._elastic) / 2
            factor = _factor(self._elastic, self._options.elasticity, self._rising)
            # No further down than there is something known of: what is below that is for a measurement to say.
            known = below.concurrency * APART_MIN / self._limit
            self._turn(factor if factor >= 1.0 else max(factor, min(known, 1.0)), now)
        elif self._place(self._limit * BELOW) * APART_MIN > self.settled:
            self._turn(GROWTH_MAX, now)  # at the floor there is no place below: the only way to look is up
            self._below = point
            return
        if below is None or not APART_MIN <= apart <= APART_MAX or now >= self._due:
            self._above, self._measuring = point, Window(now)

    def _measure(self, seconds: float, in_flight: int, now: float) -> None:
        measuring = self._measuring
        assert measuring is not None
        if in_flight <= self.limit:  # what began before is of the whole limit
            if measuring.since == measuring.began:
                measuring.since = now  # the first to end: from here on they do so evenly
            else:
                measuring.add(seconds)
        seconds_past = now - measuring.began
        if (measuring.count >= self._samples and seconds_past >= WINDOW_SECONDS_MIN) or (
            seconds_past > self._measure_seconds
        ):
            self._measured(now)

    def _measured(self, now: float) -> None:
        """The measurement is over; it counts if it came to enough samples of about its concurrency."""
        measuring, self._measuring = self._measuring, None
        assert measuring is not None
        self._window = Window(now)
        self._due = now + self._options.remeasure * self._chance.uniform(0.5, 1.5)
        self.measurements += 1
        place = self._place(self._limit * BELOW)
        if 2 * measuring.count >= SAMPLES_MIN and measuring.concurrency(now) >= FULL * place:
            self._descend(Point(float(place), measuring.latency(), now), now)

    def _descend(self, point: Point, now: float) -> None:
        """Take a point below. While the ground was never seen, and the quarter above brought nothing, stay there
        and look at a quarter less."""
        above = self._above
        self._lost = self._lost and above is not None and elasticity(point, above) < self._options.elasticity
        if not self._lost or self._place(point.concurrency * BELOW) * APART_MIN > point.concurrency:
            self._lost = False
            self._keep(point)
            return
        self._turn(point.concurrency / self._limit, now)
        self._above, self._measuring = point, Window(now)

    def _keep(self, point: Point) -> None:
        """Take a new point below; one of nearly the same place is the mean of both, for a measurement has noise."""
        old = self._below
        if old is not None and 0.8 <= point.concurrency / old.concurrency <= 1.25:
            concurrency, latency = (old.concurrency + point.concurrency) / 2, (old.latency + point.latency) / 2
            point = Point(concurrency, latency, point.at)
        self._below = point

    def _turn(self, factor: float, now: float) -> None:
        if factor < 1.0:
            self._rising = False
            self._lowered_at = now
        self._set(self._limit * factor)

    # -- numbers ----------------------------------------------------------------------------------

    def _set(self, limit: float) -> None:
        """Within its bounds."""
        options = self._options
        self._limit = min(max(float(limit), float(options.least)), float(options.most))
        self.settled = self._place(self._limit)
        self._samples = min(max(SAMPLES_PER_PLACE * self.settled, SAMPLES_MIN), SAMPLES_MAX)

    @property
    def _measure_seconds(self) -> float:
        return max(WINDOW_SECONDS_MAX, PATIENCE * self._latency)

    def _is_below(self, concurrency: float) -> bool:
        return self.settled / APART_MAX <= concurrency <= self.settled / APART_MIN

    def _place(self, limit: float) -> int:
        return min(max(math.floor(limit), self._options.least), self._options.most)


def _factor(found: float, wanted: float, rising: bool) -> float:
    """What an elasticity makes of the limit."""
    factor = 1.0 + GAIN * (found - wanted)
    if rising and found >= min(2.0 * wanted, (1.0 + wanted) / 2):
        return FIRST_GROWTH
    return min(max(factor, SHRINK_MIN), GROWTH_MAX)
