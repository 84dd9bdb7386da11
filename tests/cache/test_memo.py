"""A memo holds what it was told last, within both of its bounds."""

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
