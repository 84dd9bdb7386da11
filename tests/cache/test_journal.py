"""A journal has each key once, in the order in which it was written last, and forgets what is too much."""

from cache.journal import Journal


def test_each_key_is_there_once_the_last_written_behind() -> None:
    journal: Journal[bytes] = Journal(10)
    journal.note_all([b"a", b"b", b"a", b"c"])
    assert len(journal) == 3
    assert journal.take(2) == [b"b", b"a"]
    assert journal.take(5) == [b"c"]
    assert journal.take(5) == []
    assert journal.forgotten == 0


def test_what_is_of_no_interest_any_more_is_dropped() -> None:
    journal: Journal[bytes] = Journal(10)
    journal.note_all([b"a", b"b"])
    journal.drop([b"a", b"c"])
    assert (b"a" in journal, b"b" in journal) == (False, True)
    assert journal.take(5) == [b"b"]


def test_the_oldest_are_forgotten_and_counted() -> None:
    journal: Journal[int] = Journal(3)
    journal.note_all(range(10))
    assert (journal.take(10), journal.forgotten) == ([7, 8, 9], 7)
