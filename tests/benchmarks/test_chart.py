"""The pictures are whole SVG documents, to scale, and say what was given them."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from benchmarks.chart import Bar, Curve, Group, bars, curves

NAMESPACE = "{http://www.w3.org/2000/svg}"


def parsed(text: str) -> tuple[ElementTree.Element, list[str]]:
    root = ElementTree.fromstring(text)
    return root, [element.text or "" for element in root.iter(f"{NAMESPACE}text")]


def test_bars_are_to_scale_within_their_group() -> None:
    one = Group("one & <two>", (Bar("a", 100.0, 90.0, 110.0), Bar("b", 50.0, 50.0, 50.0)))
    other = Group("other", (Bar("c", 7.0, 7.0, 7.0),))
    root, texts = parsed(bars("title", [one, other]))
    widths = [float(rect.get("width", "")) for rect in root.iter(f"{NAMESPACE}rect")]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.2)
    assert widths[2] == pytest.approx(widths[0] * 1.1, abs=0.2)  # the group's longest is its whole width
    assert {"title", "one & <two>", "a", "b", "c", "100", "50", "7"} <= {*texts}


def test_bars_fit_into_the_picture() -> None:
    root, _ = parsed(bars("t", [Group(str(n), (Bar("a", 1e6, 1, 2e6),) * 9) for n in range(30)]))
    bottom = max(float(rect.get("y", "")) + float(rect.get("height", "")) for rect in root.iter(f"{NAMESPACE}rect"))
    assert bottom < float(root.get("height", ""))


def test_bars_of_a_peer_that_answered_nothing() -> None:
    _, texts = parsed(bars("t", [Group("g", (Bar("a", 0.0, 0.0, 0.0),))]))
    assert "0" in texts


def test_curves_go_by_powers_of_ten() -> None:
    points = ((1.0, 1.0, 0.9, 1.1), (10.0, 1.2, 1.1, 1.3), (1000.0, 2.0, 1.9, 2.5))
    root, texts = parsed(curves("title", "times", [Curve("entries", points), Curve("one", points[:1])]))
    marks = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in root.iter(f"{NAMESPACE}circle")]
    assert len(marks) == 4
    left, middle, right = (x for x, _ in marks[:3])
    assert middle - left == pytest.approx((right - left) / 3, abs=0.2)
    assert marks[0][1] > marks[1][1] > marks[2][1]
    assert {"title", "entries (times)", "1,000", "1.20", "1.0"} <= {*texts}
