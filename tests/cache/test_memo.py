"""A memo holds what it was told last, within both of its bounds."""

import sys
import threading

from hypothesis import given
from hypothesis import strategies as st

from cache.memo import Memo


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12)), max_size=30))
def test_the_latest_are_remembered_within_the_bounds(puts):
    memo: Memo[int, int] = Memo(3, 10)
    model: dict[int, tuple[int, int]] = {}
    for serial, (key, size) in enumerate(puts):
        memo.put(key, serial, size)
        model.pop(key, None)
        if size <= 10:
            while model and (len(model) >= 3 or sum(each for _, each in model.values()) + size > 10):
                del model[next(iter(model))]
            model[key] = serial, size
        assert {key: memo.get(key) for key in range(6)} == {key: model.get(key, (None, 0))[0] for key in range(6)}
        assert len(memo) == len(model) <= 3
        assert memo.bytes_used == sum(each for _, each in model.values()) <= 10


def test_several_threads_may_put_at_once():
    memo: Memo[int, int] = Memo(3, 10)
    failed: list[Exception] = []

    def work(seed: int) -> None:
        try:
            for serial in range(40000):
                memo.put((serial * seed) % 7, serial, serial % 4)
        except Exception as error:
            failed.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2, 3, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert failed == []
    assert len(memo) <= 3
    assert memo.bytes_used <= 10
