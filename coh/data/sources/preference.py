"""Preference pairs as TRL takes them: `chosen` and `rejected`, plain or as message lists, with or without `prompt`.

Binarized data sets add a score to each side; there the scores decide which is better, and whether it is a tie.
"""

from __future__ import annotations

from os.path import commonprefix

from coh.data.records import FeedbackGroup, Message, UnusableRow, as_messages
from coh.data.sources.fields import number_at, text_at, value_at
from coh.data.sources.scores import SCORING, Scoring, ranked_group
from coh.data.sources.turns import check_no_messages, pair_of_conversations, prompt_from, turns_from, with_reply


def read_preference(row: dict) -> FeedbackGroup:
    """An explicit prompt as it is; an implicit one from what both sides begin with.

    >>> read_preference({"chosen": "The sky is blue.", "rejected": "The sky is green."}).outputs
    ('blue.', 'green.')
    >>> read_preference({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}).prompt
    (Message(role='user', content='The sky is'),)
    """
    chosen, rejected = value_at(row, "chosen"), value_at(row, "rejected")
    if row.get("prompt") is not None:
        prompt = prompt_from(row)
        better, worse = with_reply(prompt, chosen, "chosen"), with_reply(prompt, rejected, "rejected")
    elif isinstance(chosen, str) and isinstance(rejected, str):
        better, worse = _split_at_shared_words(text_at(row, "chosen"), text_at(row, "rejected"))
    else:
        better, worse = (turns_from(row[side], side, role=None) for side in ("chosen", "rejected"))
    return pair_of_conversations("preference", better, worse)


def read_scored_preference(row: dict, scoring: Scoring = SCORING) -> FeedbackGroup:
    """As `read_preference`, in the order of the scores: a rejected side with the higher one is the better one.

    >>> row = {"prompt": "2 + 2?", "chosen": "5", "rejected": "4", "score_chosen": 1, "score_rejected": 9}
    >>> read_scored_preference(row).outputs
    ('4', '5')
    """
    pair = read_preference(row)
    levels = scoring.levels([number_at(row, "score_chosen"), number_at(row, "score_rejected")])
    return ranked_group("scored_preference", pair.prompt, pair.outputs, levels)


def _split_at_shared_words(chosen: str, rejected: str) -> list[tuple[Message, ...]]:
    """Two texts as conversations: the words that both begin with (whole words only) are the prompt."""
    for text, side in ((chosen, "chosen"), (rejected, "rejected")):
        check_no_messages(text, side)
    if chosen == rejected:
        raise UnusableRow("identical outputs")
    length = len(commonprefix([chosen, rejected]))  # noqa: RUF071 (letter by letter is what is wanted)
    while length and not chosen[length - 1].isspace():
        length -= 1
    prompt = as_messages(chosen[:length])
    return [(*prompt, Message("assistant", text[length:].strip())) for text in (chosen, rejected)]
