"""openai/summarize_from_feedback, comparisons: two summaries of a post, and which one people chose."""

from __future__ import annotations

from coh.data.records import FeedbackError, FeedbackGroup, UnusableRow, as_messages
from coh.data.sources.fields import as_text, describe, text_at, value_at


def read_summarize(row: dict) -> FeedbackGroup:
    r"""The post under its title as the prompt, the summaries as outputs.

    The title stays because posts refer to it; the subreddit is a label that no summary needs.

    >>> info = {"title": "My cat", "post": "She sleeps all day."}
    >>> row = {"info": info, "summaries": [{"text": " A dog."}, {"text": " A sleepy cat."}], "choice": 1}
    >>> group = read_summarize(row)
    >>> group.prompt[0].content, group.outputs
    ('My cat\n\nShe sleeps all day.', ('A sleepy cat.', 'A dog.'))
    """
    info, summaries, choice = value_at(row, "info"), value_at(row, "summaries"), value_at(row, "choice")
    if isinstance(info, dict) and info.get("post") is None and ("post" in info or "article" in info):
        raise UnusableRow("null post")  # the news articles among the validation rows
    post = text_at(row, "info.post")
    if not post:
        raise UnusableRow("empty post")
    title = text_at(row, "info.title") if info.get("title") is not None else ""
    if not isinstance(summaries, list) or len(summaries) != 2 or not all(isinstance(one, dict) for one in summaries):
        raise FeedbackError(
            f"field 'summaries' is {describe(summaries)}, but must be a list of two objects with 'text'"
        )
    if type(choice) is not int or choice not in (0, 1):  # True is an int elsewhere
        raise FeedbackError(
            f"field 'choice' is {describe(choice)}, but must be 0 or 1, the index of the better summary"
        )
    texts = [
        as_text(value_at(one, "text", f"summaries[{n}]."), f"summaries[{n}].text") for n, one in enumerate(summaries)
    ]
    prompt = as_messages(f"{title}\n\n{post}")
    return FeedbackGroup("summarize", prompt, (texts[choice], texts[1 - choice]), (1, 2), task="summary")
