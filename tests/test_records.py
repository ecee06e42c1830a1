"""Groups check themselves: what cannot be right is said, what cannot be used is a reason to count."""

import pytest

from coh.data.records import FeedbackError, FeedbackGroup, Message, UnusableRow, as_messages


def group(outputs=("good", "bad"), ranks=(1, 2), **other):
    return FeedbackGroup("test", as_messages("prompt"), tuple(outputs), tuple(ranks), **other)


def test_plain_prompt_is_one_user_turn():
    assert as_messages("  Why?\n") == (Message("user", "Why?"),)
    assert as_messages("  ") == ()
    turns = [Message("user", "Hi"), Message("assistant", "Hello")]
    assert as_messages(turns) == tuple(turns)


def test_ties():
    assert group(ranks=(1, 1)).is_tie and not group().is_tie
    assert not group(outputs=["one"], ranks=[1]).is_tie
    assert not group(outputs=["a", "b", "c"], ranks=[1, 1, 2]).is_tie


@pytest.mark.parametrize(
    ("outputs", "ranks", "reason"),
    [((), (), "no output"), (("good", "  "), (1, 2), "empty output"), (("same", "same"), (1, 2), "identical outputs")],
)
def test_rows_that_give_no_group(outputs, ranks, reason):
    with pytest.raises(UnusableRow, match=reason):
        group(outputs, ranks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputs": (" good", "bad")}, "without white space around them"),
        ({"ranks": (1,)}, "1 ranks for 2 outputs: give one rank per output"),
        ({"ranks": (2, 1)}, r"ranks \(2, 1\) must rise from 1"),
        ({"ranks": (2, 3)}, r"ranks \(2, 3\) must rise from 1"),
        ({"critiques": ("why",)}, "1 critiques for 2 outputs"),
        ({"task": "poem"}, "task 'poem' is not one of general, answer, summary, conversation"),
    ],
)
def test_groups_that_a_person_must_mend(changes, message):
    with pytest.raises(FeedbackError, match=message):
        group(**changes)


def test_unknown_role():
    with pytest.raises(FeedbackError, match="role 'robot' is not one of system, user, assistant"):
        Message("robot", "beep")
