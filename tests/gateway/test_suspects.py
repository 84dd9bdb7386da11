"""Who is suspected of a worker's death, who is refused for it, and for how long."""

from __future__ import annotations

from gateway.suspects import REFUSED_MAX, REFUSED_SECONDS, SUSPECTS_MAX, Suspect, Suspects

DEADLY, BESIDE, OTHER = b"d" * 16, b"b" * 16, b"o" * 16


def numbered(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_the_second_death_condemns_and_the_first_does_not() -> None:
    suspects = Suspects()
    assert suspects.died([DEADLY], 0.0) == ()
    assert suspects.known() == (Suspect(DEADLY),)
    assert suspects.refused(0.0) == 0
    assert suspects.died([DEADLY], 1.0) == (DEADLY,)
    assert suspects.known() == (Suspect(DEADLY, 1.0 + REFUSED_SECONDS),)
    assert suspects.refused(1.0) == 1


def test_callers_of_the_same_who_wait_together_are_one_death() -> None:
    assert Suspects().died([DEADLY, DEADLY, DEADLY], 0.0) == ()


def test_who_is_answered_in_between_begins_from_nothing() -> None:
    suspects = Suspects()
    suspects.died([DEADLY, BESIDE], 0.0)
    suspects.acquitted([BESIDE], 0.5)
    assert suspects.died([DEADLY, BESIDE], 1.0) == (DEADLY,)
    assert Suspect(BESIDE) in suspects.known()
    suspects.acquitted([BESIDE, DEADLY, OTHER], 1.0)  # an answer to what was begun before the sentence does not end it
    assert suspects.known() == (Suspect(DEADLY, 1.0 + REFUSED_SECONDS),)


def test_after_a_sentence_one_death_more_is_enough() -> None:
    suspects = Suspects()
    suspects.died([DEADLY], 0.0)
    suspects.died([DEADLY], 0.0)
    suspects.forgive(REFUSED_SECONDS - 0.001)
    assert suspects.refused(REFUSED_SECONDS - 0.001) == 1
    assert suspects.refused(REFUSED_SECONDS) == 0
    assert suspects.died([DEADLY], REFUSED_SECONDS) == (DEADLY,)
    suspects.forgive(2 * REFUSED_SECONDS)
    assert suspects.known() == (Suspect(DEADLY),)


def test_after_a_sentence_an_answer_clears_it_all() -> None:
    suspects = Suspects()
    suspects.died([DEADLY], 0.0)
    suspects.died([DEADLY], 0.0)
    suspects.acquitted([DEADLY], REFUSED_SECONDS)
    assert suspects.known() == ()
    assert suspects.died([DEADLY], REFUSED_SECONDS) == ()


def test_what_was_begun_before_the_sentence_does_not_lengthen_it() -> None:
    suspects = Suspects()
    suspects.died([DEADLY], 0.0)
    suspects.died([DEADLY], 0.0)
    assert suspects.died([DEADLY], 5.0) == ()
    assert suspects.known() == (Suspect(DEADLY, REFUSED_SECONDS),)


def test_as_many_are_known_as_there_is_room_for_and_the_condemned_stay() -> None:
    suspects = Suspects()
    for _ in range(2):
        suspects.died([DEADLY], 0.0)
    suspects.died([numbered(number) for number in range(SUSPECTS_MAX + 5)], 1.0)
    known = suspects.known()
    assert len(known) == SUSPECTS_MAX
    assert known[0].digest == DEADLY
    assert known[-1].digest == numbered(SUSPECTS_MAX + 4)


def test_the_oldest_sentence_ends_for_a_new_one() -> None:
    suspects = Suspects()
    all_of_them = [numbered(number) for number in range(REFUSED_MAX + 1)]
    suspects.died(all_of_them, 0.0)
    assert suspects.died(all_of_them, 1.0) == tuple(all_of_them[1:])
    assert suspects.refused(1.0) == REFUSED_MAX
    assert all_of_them[0] not in {each.digest for each in suspects.known()}
