"""What a plain server's status means: an answer, or whose failure."""

from __future__ import annotations

import pytest

from degrade.ladder import Failure
from tiers.backends.call import Reply
from tiers.backends.erring import Erred, answered


@pytest.mark.parametrize("status", [200, 201, 204, 206, 302, 304, 400, 401, 404, 405, 408, 413, 422, 499])
def test_an_answer_is_one_whatever_it_says(status: int) -> None:
    reply = Reply(status, (), b"x")
    assert answered("http://a", reply) is reply


@pytest.mark.parametrize(
    ("status", "failure"),
    [
        (429, Failure.OVERLOADED),
        (503, Failure.OVERLOADED),
        (502, Failure.BROKEN),
        (504, Failure.BROKEN),
        (500, Failure.RAISED),
        (501, Failure.RAISED),
        (599, Failure.RAISED),
    ],
)
def test_a_failure_has_its_words_with_it(status: int, failure: Failure) -> None:
    reply = Reply(status, (("Retry-After", "7"),), b"x")
    with pytest.raises(Erred) as caught:
        answered("http://a", reply)
    assert (caught.value.failure, caught.value.status, caught.value.reply) == (failure, status, reply)
    private = Reply(status, (("set-cookie", "a=b"),), b"x")
    assert answered("http://a", private) is private
