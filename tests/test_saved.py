"""coh.json: what a trained model was taught comes back as it was."""

import json

import pytest

from coh.data.records import FeedbackError
from coh.data.templates import load_family
from coh.saved import Words, load_words, save_words


@pytest.mark.parametrize("name", ["prose", "marker", "marker_varied"])
def test_words_come_back(tmp_path, name):
    words = Words(load_family(name), prepend_bos=True, tasks=("summary", "general"))
    save_words(tmp_path, words, data={"rows": 3})
    assert load_words(tmp_path) == words
    content = json.loads((tmp_path / "coh.json").read_text())
    assert content["data"] == {"rows": 3} and content["versions"]["torch"] and content["versions"]["transformers"]


def test_other_words_can_be_named(tmp_path):
    save_words(tmp_path, Words(load_family("prose"), prepend_bos=True))
    assert load_words(tmp_path, "marker") == Words(load_family("marker"), prepend_bos=True)


def test_a_model_without_words(tmp_path):
    with pytest.raises(FeedbackError, match=r"has no coh.json, so its words are not known: name some with --templates"):
        load_words(tmp_path)
    assert load_words(tmp_path, "marker").family.name == "marker"
