"""Notes of what is in work, as they are read by whoever survives."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from gateway.notes import NOTES_MAX, Notebook, Notes
from gateway.suspects import SUSPECTS_MAX, Suspect

ONE, TWO = b"1" * 16, b"2" * 16


@pytest.fixture
def notebook() -> Iterator[Notebook]:
    found = Notebook(2)
    yield found
    found.close()


def test_a_note_is_read_while_it_stands_and_by_worker(notebook: Notebook) -> None:
    first, second = Notes(notebook.file, 0), Notes(notebook.file, 1)
    with first.note(ONE), second.note(TWO):
        assert notebook.taken(0) == (ONE,)
        assert notebook.taken(0) == ()  # a new worker begins with nothing
        assert notebook.taken(1) == (TWO,)
    with first.note(ONE):
        pass
    assert notebook.taken(0) == ()


def test_a_note_stands_until_the_last_who_works_on_it_has_left(notebook: Notebook) -> None:
    notes = Notes(notebook.file, 0)
    note = notes.note(ONE)
    with note, note:
        pass
    assert notebook.taken(0) == ()
    note = notes.note(TWO)
    note.__enter__()  # a refresh behind the caller's back
    with note:
        pass
    assert notebook.taken(0) == (TWO,)


async def test_a_worker_shows_that_it_lives(notebook: Notebook) -> None:
    first, second = Notes(notebook.file, 0), Notes(notebook.file, 1)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        await second.beat(0.5, sleep)
    assert (notebook.beats(0), notebook.beats(1), slept) == (0, 3, [0.5] * 3)
    with first.note(ONE):
        assert notebook.taken(0) == (ONE,)
    assert notebook.beats(1) == 3


def test_a_note_of_a_process_that_is_killed_is_read(notebook: Notebook) -> None:
    pid = os.fork()
    if not pid:
        Notes(notebook.file, 1).note(ONE)
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    assert notebook.taken(1) == (ONE,)


def test_what_is_published_is_known_at_once_and_ends_by_the_clock(notebook: Notebook) -> None:
    notes = Notes(notebook.file, 0)
    assert notes.refused(ONE, 0.0) == 0.0
    notebook.publish([Suspect(TWO), Suspect(ONE, 10.0)])
    assert notes.refused(ONE, 4.0) == 6.0
    assert notes.refused(ONE, 10.0) == 0.0
    assert notes.refused(TWO, 4.0) == 0.0
    notebook.publish([])
    assert notes.refused(ONE, 4.0) == 0.0


def test_a_list_that_is_being_written_is_not_believed(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = Notes(notebook.file, 0)
    notebook.publish([Suspect(ONE, 10.0)])
    assert notes.refused(ONE, 0.0) == 10.0

    def asked_meanwhile() -> Iterator[Suspect]:
        yield Suspect(TWO, 10.0)
        assert notes.refused(TWO, 0.0) == 0.0
        assert notes.refused(ONE, 0.0) == 10.0

    class Suspected(list[Suspect]):
        def __iter__(self) -> Iterator[Suspect]:
            return asked_meanwhile()

    notebook.publish(Suspected([Suspect(TWO, 10.0)]))
    assert notes.refused(TWO, 0.0) == 10.0


@pytest.mark.parametrize("fails", [False, True])
def test_an_answer_to_a_suspect_is_told_and_a_failure_is_not(notebook: Notebook, fails: bool) -> None:
    notes = Notes(notebook.file, 1)
    before = notes.note(ONE)  # in work already when it becomes one
    before.__enter__()
    notebook.publish([Suspect(TWO), Suspect(ONE)])
    if fails:
        before.__exit__(ValueError, ValueError(), None)
    else:
        before.__exit__(None, None, None)
        with notes.note(b"3" * 16):
            pass  # nobody suspects it
    assert notebook.answered() == (() if fails else (ONE,))
    assert notebook.answered() == ()


def test_beyond_the_room_for_notes_work_goes_on_and_is_counted(notebook: Notebook) -> None:
    notes = Notes(notebook.file, 0)
    held = [notes.note(number.to_bytes(16, "big")) for number in range(1, NOTES_MAX + 1)]
    for note in held:
        note.__enter__()
    with notes.note(ONE):
        assert notes.missed == 1
    for note in held:
        note.__exit__(None, None, None)
    with notes.note(TWO):
        assert notebook.taken(0) == (TWO,)
    assert notes.missed == 1


def test_there_is_room_for_every_suspect(notebook: Notebook) -> None:
    notes = Notes(notebook.file, 1)
    everyone = [number.to_bytes(16, "big") for number in range(1, SUSPECTS_MAX + 1)]
    notebook.publish([Suspect(digest, 1.0) for digest in everyone])
    assert notes.refused(everyone[-1], 0.0) == 1.0
    for digest in everyone:
        with notes.note(digest):
            pass
    assert notebook.answered() == tuple(everyone)
    assert notebook.taken(0) == ()
