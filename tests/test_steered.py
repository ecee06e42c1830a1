"""A model that is spoken to from Python: everything by its words."""

import numpy as np
import pytest
from toys import tiny_model_folder

from coh.arguments import ConfigError
from coh.data.records import FeedbackError, Message
from coh.data.templates import load_family
from coh.modeling import ModelError
from coh.saved import Words, save_words
from coh.steered import Request, call_options, load


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model_folder(folder, initializer_range=0.3)
    save_words(folder, Words(load_family("marker")))
    return load(str(folder), device="cpu")


def test_one_output_is_a_text_and_several_are_a_list(model):
    assert isinstance(model.generate("Why?", max_new_tokens=4), str)
    outputs = model.generate("Why?", num_outputs=3, do_sample=True, max_new_tokens=4)
    assert isinstance(outputs, list) and len(outputs) == 3
    assert len(model.generate("Why?", num_return_sequences=2, num_beams=2, max_new_tokens=4)) == 2


def test_prompts_in_any_form_are_the_same(model):
    found = {
        model.generate(prompt, max_new_tokens=8)
        for prompt in ("Why?", [{"role": "user", "content": "Why?"}], (Message("user", "Why?"),))
    }
    assert len(found) == 1


def test_guidance_goes_from_bad_to_good_and_back(model):
    """The roles: the words asked for are continued, and their opposite stands on the negative side."""
    calls = []
    model.model.register_forward_pre_hook(lambda m, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)

    def read(feedback):
        calls.clear()
        model.generate("Why?", feedback, guidance=2.0, max_new_tokens=1)
        return [tuple((kwargs.get("input_ids") if not args else args[0])[0].tolist()) for args, kwargs in calls]

    good, bad, own = (tuple(model.steering.prompt_ids("Why?", words)) for words in ("good", "bad", "So:"))
    assert read("good") == [good, bad]
    assert read("bad") == [bad, good]
    assert read("So:") == [own, bad]
    model.model._forward_pre_hooks.clear()


def test_revising_shows_the_earlier_versions(model):
    versions = model.revise("Why?", 2, max_new_tokens=6)
    assert len(versions) == 3 and versions[0] == model.generate("Why?", max_new_tokens=6)
    for number in (1, 2):
        request = Request((Message("user", "Why?"),), "good", tuple(versions[:number]))
        assert model.answer([request], max_new_tokens=6, do_sample=False) == [[versions[number]]]
    assert model.revise("Why?", 1, earlier=versions[:2], max_new_tokens=6) == versions
    assert model.revise("Why?", 0, max_new_tokens=6) == versions[:1]


def test_the_oldest_versions_go_where_there_is_no_room(model):
    request = Request((Message("user", "Why?"),), "good", ("a" * 300, "b" * 300, "c"))
    text = model.tokenizer.decode(model.prompt_ids(request, {"max_new_tokens": 8}))
    assert "aaa" not in text and "bbb" in text
    with pytest.raises(ModelError, match="the model has 512 positions"):
        model.prompt_ids(Request((Message("user", "a" * 600),), "good", ("b",)), {"max_new_tokens": 8})


def test_scores_are_what_the_words_change(model):
    scores = model.score("Why?", ["So.", "Not so at all.", ""])
    assert scores.shape == (3,) and np.isfinite(scores).all() and len(set(scores)) == 3
    assert model.score("Why?", "So.") == pytest.approx(scores[:1], abs=1e-5)
    length = len(model.steering.encoder.encode([" So."])[0]) + 1
    assert model.score("Why?", "So.", per_token=True) == pytest.approx(scores[:1] / length, abs=1e-6)


def test_no_output_has_no_score(model):
    with pytest.raises(FeedbackError, match="there are no outputs: give at least one text to score"):
        model.score("Why?", [])


def test_the_best_is_the_one_with_the_highest_score(model):
    request = Request((Message("user", "Why?"),))
    options = {"do_sample": True, "num_return_sequences": 6, "max_new_tokens": 6}
    (ranked,) = model.ranked([request], **options)
    outputs, scores = zip(*ranked)
    assert list(scores) == sorted(scores, reverse=True)
    assert model.score("Why?", outputs) == pytest.approx(scores, abs=1e-4)
    (ranked,) = model.ranked([Request(request.prompt, "bad")], **options)
    assert [score for _, score in ranked] == sorted(score for _, score in ranked)
    assert isinstance(model.best_of("Why?", 3, max_new_tokens=4), str)


def test_an_output_longer_than_the_model_reads(model):
    with pytest.raises(FeedbackError, match=r"an output has .* tokens, the model has 512 positions: shorten it"):
        model.score("Why?", "a" * 600)
    assert np.isfinite(model.score("a" * 600, "So.")).all()  # a long prompt loses its beginning


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"max_new_tokns": 4}, "max_new_tokns is not an option: did you mean max_new_tokens?"),
        ({"guidance": float("nan")}, "guidance nan: give 1"),
        ({"guidance_scale": 2.0, "num_beams": 2}, "guidance 2.0 with num_beams 2"),
        ({"guidance": 2.0, "prompt_lookup_num_tokens": 3}, "guidance 2.0 with prompt_lookup_num_tokens 3"),
    ],
)
def test_options_are_checked(model, options, problem):
    with pytest.raises(ConfigError) as error:
        call_options(**options)
    assert error.value.problems[0].startswith(problem)
    with pytest.raises(ConfigError):
        model.generate("Why?", **options)


def test_what_cannot_be_loaded(tmp_path):
    with pytest.raises(FeedbackError, match=r"has no coh\.json"):
        load(tiny_model_folder(tmp_path))
    assert load(str(tmp_path), templates="prose").generate("Why?", max_new_tokens=1) is not None
    with pytest.raises(ValueError, match="task 'poem'"):
        load(str(tmp_path), templates="prose", task="poem").generate("Why?")
