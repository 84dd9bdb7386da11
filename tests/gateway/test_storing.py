"""What an HTTP answer says of its own keeping, as tables."""

from __future__ import annotations

import pytest

from gateway.storing import Life, life_of, varying
from tiers.backends.call import Reply
from tiers.backends.fields import Headers

WHOLE = Life(0.0, 60.0, 30.0)
DATE = ("Date", "Thu, 01 Jan 2026 00:00:00 GMT")

LIVES: list[tuple[str, Headers, Life | None]] = [
    ("nothing", (), WHOLE),
    ("a strange directive", (("Cache-Control", "immutable, x=1"),), WHOLE),
    ("no-store among others", (("Cache-Control", "max-age=9, No-Store"),), None),
    ("on another line", (("Cache-Control", "max-age=9"), ("cache-control", "private")), None),
    ("a qualified no-cache", (("Cache-Control", 'no-cache="x"'),), None),
    ("a shorter age", (("Cache-Control", "max-age=9"),), Life(0.0, 9.0, 30.0)),
    ("a longer age", (("Cache-Control", "max-age=99"),), WHOLE),
    ("shared caches'", (("Cache-Control", "max-age=9, s-maxage=20"),), Life(0.0, 20.0, 0.0)),
    ("an age that is none", (("Cache-Control", "max-age=-1"),), None),
    ("to be asked about", (("Cache-Control", "must-revalidate"),), Life(0.0, 60.0, 0.0)),
    ("to be asked about by proxies", (("Cache-Control", "proxy-revalidate"),), Life(0.0, 60.0, 0.0)),
    ("old already", (("Age", "15"),), Life(15.0, 60.0, 30.0)),
    ("too old", (("Age", "60"),), None),
    ("an age that means nothing", (("Age", "x"),), WHOLE),
    ("until", (DATE, ("Expires", "Thu, 01 Jan 2026 00:00:20 GMT")), Life(0.0, 20.0, 30.0)),
    ("until long after", (DATE, ("Expires", "Fri, 01 Jan 2027 00:00:00 GMT")), WHOLE),
    ("until before", (DATE, ("Expires", "Wed, 31 Dec 2025 00:00:00 GMT")), None),
    ("until never", (DATE, ("Expires", "-1")), None),
    ("until, made at no time", (("Expires", "Fri, 01 Jan 2027 00:00:00 GMT"),), None),
    ("an age before a date", (DATE, ("Expires", "0"), ("Cache-Control", "max-age=9")), Life(0.0, 9.0, 30.0)),
    ("until a year of many digits", (DATE, ("Expires", "Mon, 01 Jan 99999999999 00:00:00 GMT")), None),
    ("until in a zone of many digits", (DATE, ("Expires", "Thu, 01 Jan 2026 00:00:20 +99999999999999")), None),
    ("made in a year of many digits", (("Date", "Mon, 01 Jan 99999999999 00:00:00 GMT"), ("Expires", "0")), None),
    ("two ages", (("Cache-Control", "max-age=9, max-age=100"),), Life(0.0, 9.0, 30.0)),
    ("two ages, the shorter behind", (("Cache-Control", "max-age=100, max-age=0"),), None),
    ("a cookie", (("set-cookie", "a=b"),), None),
    ("all requests", (("Vary", "*"),), None),
    ("one field", (("Vary", "Accept"),), WHOLE),
    ("who asks", (("Vary", "X-Real-IP"),), None),
    ("as what it is asked", (("Vary", "X-Forwarded-Host"),), WHOLE),
]


@pytest.mark.parametrize(("fields", "life"), [case[1:] for case in LIVES], ids=[case[0] for case in LIVES])
def test_how_long_an_answer_may_be_kept(fields: Headers, life: Life | None) -> None:
    assert life_of(Reply(200, fields, b""), 60.0, 30.0) == life


def test_only_a_whole_200_is_kept() -> None:
    for status in (201, 204, 206, 302, 304, 404, 500):
        assert life_of(Reply(status, (), b""), 60.0, 30.0) is None
    assert life_of(Reply(200, (), b"", framed=False), 60.0, 30.0) is None


def test_what_an_answer_varies_by() -> None:
    assert varying([("Vary", "Accept, X-A ,,"), ("vary", "x-b"), ("X", "y")]) == {"accept", "x-a", "x-b"}
    assert varying([]) == frozenset()
    assert varying([("Vary", "a"), ("Vary", "*")]) is None
    assert varying([("Vary", "Forwarded")]) is None
