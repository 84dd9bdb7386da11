"""Two spellings of one thing in a configuration are seen."""

import pytest

from gateway.config import TierConfig
from gateway.config_backends import Backend


@pytest.mark.parametrize("version", ["01", "00", "-1", "x", "99999999999999999999"])
def test_a_version_that_no_model_can_have_is_a_fault(version: str) -> None:
    assert [key for key, _ in TierConfig("b", "m", version).faults()] == ["version"]


@pytest.mark.parametrize("again", ["http://h:80", "http://h/", "HTTP://H", "http://h:80/"])
def test_a_replica_under_another_spelling_is_a_fault(again: str) -> None:
    assert list(Backend(("http://h", again)).faults()) == [("http", "names http://h 2 times")]
    assert not list(Backend(("http://h", "https://h")).faults())
