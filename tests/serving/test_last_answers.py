"""The last answer about an entity is repeated while it is young enough; the oldest are forgotten first."""

from sameworld.serving.last_answers import LastAnswers


def test_an_answer_is_there_up_to_its_age_and_not_before_its_moment() -> None:
    answers = LastAnswers(10)
    answers.note("u1", 0.5, 100)
    assert answers.of("u1", 100, 20) == (0.5, 0)
    assert answers.of("u1", 120, 20) == (0.5, 20)
    assert answers.of("u1", 121, 20) is None
    assert answers.of("u1", 99, 20) is None
    assert answers.of("u2", 100, 20) is None


def test_a_later_answer_takes_the_place_of_an_earlier_one_and_not_the_reverse() -> None:
    answers = LastAnswers(10)
    for t, value in ((100, 0.5), (110, 0.7), (105, 0.1)):
        answers.note("u1", value, t)
    assert answers.of("u1", 110, 20) == (0.7, 0)


def test_memory_is_bounded_and_the_oldest_answer_goes_first() -> None:
    answers = LastAnswers(2)
    for t, entity in enumerate(["a", "b", "a", "c"]):
        answers.note(entity, float(t), t)
    assert answers.of("b", 9, 99) is None
    assert answers.of("a", 9, 99) == (2.0, 7)
    assert answers.of("c", 9, 99) == (3.0, 6)
