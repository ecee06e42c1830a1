"""What a model writes: prompts that leave room, figures that texts have, and draws that do not depend on processes."""

import builtins

import numpy as np
import pytest
import torch
from test_processes import together
from toys import tiny_model_folder

from coh.data.records import FeedbackGroup, as_messages
from coh.data.templates import load_family
from coh.generation import drawing
from coh.modeling import ModelError
from coh.processes import warn_once
from coh.saved import Words, save_words
from coh.steered import load
from coh.written import Reader, judged, text_figures, write


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model_folder(folder, initializer_range=0.3)
    save_words(folder, Words(load_family("marker")))
    return load(str(folder), device="cpu")


@pytest.fixture(autouse=True)
def nothing_said():
    warn_once.cache_clear()


def groups(*lengths):
    """Groups whose prompts have so many letters, which are about as many tokens."""
    return [
        FeedbackGroup("mine", as_messages(f"{n} " + "x" * length), (f"good {n}", f"bad {n}"), (1, 2))
        for n, length in enumerate(lengths)
    ]


class TestRoom:
    def test_others_are_taken_in_place_of_prompts_that_are_too_long(self, model, caplog):
        rows = groups(5, 600, 5, 500, 5, 5, 900)
        found = write(model, rows, num_prompts=3, max_new_tokens=8)
        assert found.prompts == tuple(rows[n].prompt for n in (0, 2, 4)) and found.num_too_long == 2
        assert found.as_json()["num_too_long"] == 2 and len(found.as_json()["outputs"]) == 3
        assert write(model, rows, num_prompts=3, max_new_tokens=8).outputs == found.outputs
        assert [record.message for record in caplog.records] == [
            "mine: prompts passed over in writing, since an output behind them would be longer than the model reads: 2"
        ]

    def test_all_that_have_room_are_taken_and_none_else(self, model):
        """The border is where generation itself refuses."""
        rows = groups(*range(460, 520, 9))
        found = write(model, rows, max_new_tokens=4)
        assert 0 < len(found.prompts) < len(rows) == len(found.prompts) + found.num_too_long
        refused = 0
        for row in rows:
            if row.prompt not in found.prompts:
                with pytest.raises(ModelError, match=r"--max_new_tokens"):
                    model.generate(row.prompt, "bad", max_new_tokens=4)
                refused += 1
        assert refused == found.num_too_long

    def test_none_has_room(self, model, caplog):
        found = write(model, groups(600, 700), max_new_tokens=4)
        assert found.prompts == () and found.outputs == {"good": (), "bad": ()} and found.num_too_long == 2
        assert found.figures == {"good": {}, "bad": {}} and found.as_json()["outputs"] == []
        assert "nothing is written for its 2 prompts" in caplog.text
        assert judged(found, None) == found  # nobody is asked

    def test_other_models_have_room_too(self, model):
        rows = groups(5, 200, 5)
        narrow = type(model.model.config)(**model.model.config.to_dict() | {"max_position_embeddings": 128})
        found = write(model, rows, others=[Reader(model.steering, narrow)], max_new_tokens=4)
        assert found.prompts == (rows[0].prompt, rows[2].prompt) and found.num_too_long == 1


OPTIONS = {"do_sample": True, "temperature": 1.0, "max_new_tokens": 4, "batch_size": 2}


class TestDraws:
    def test_are_the_same_for_any_number_of_processes(self, model):
        rows = groups(*range(3, 8))
        alone = write(model, rows, seed=4, **OPTIONS)
        for outputs in together(lambda rank: write(model, rows, seed=4, **OPTIONS).outputs, 3):
            assert outputs == alone.outputs

    def test_depend_on_the_seed_and_on_nothing_that_was_drawn_before(self, model):
        rows = groups(3, 4, 5)
        one = write(model, rows, seed=1, **OPTIONS).outputs
        torch.rand(5)
        assert write(model, rows, seed=1, **OPTIONS).outputs == one
        assert write(model, rows, seed=2, **OPTIONS).outputs != one
        assert len({*one["good"], *one["bad"]}) == 6  # no batch draws what another drew

    def test_leave_no_trace(self, model):
        state = torch.random.get_rng_state()
        write(model, groups(3), **OPTIONS)
        assert torch.equal(torch.random.get_rng_state(), state)
        with drawing(3, torch.device("cpu")):
            first = torch.rand(2)
        assert torch.equal(torch.random.get_rng_state(), state) and not torch.equal(torch.rand(2), first)


class TestFigures:
    def test_a_text_without_pairs_of_words_has_no_variety_of_them(self):
        found = text_figures(["one"], ["two"])
        assert "distinct2" not in found and found["distinct1"].value == 1
        assert "distinct1" not in text_figures([""], ["two"]) and text_figures([], []) == {}
        assert not any(np.isnan(figure.value) for figure in text_figures(["", "a b"], ["c", "d"]).values())

    def test_rouge_that_is_not_installed_is_said_once(self, monkeypatch, caplog):
        real = builtins.__import__

        def without(name, *args, **kwargs):
            if name.startswith("rouge_score"):
                raise ImportError(name)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", without)
        for _ in range(2):
            assert text_figures(["a b"], ["a b"]).keys() == {"length", "distinct1", "distinct2"}
        assert [record.message for record in caplog.records] == [
            "rouge-score is not installed: no ROUGE (pip install rouge-score)"
        ]


class Longest:
    """Prefers the longer output, and remembers what it was asked."""

    name = "the longest"

    def __init__(self):
        self.asked = []

    def prefer(self, prompts, first, second):
        self.asked += zip(prompts, first, second, strict=True)
        return np.array([(len(a) > len(b)) + 0.5 * (len(a) == len(b)) for a, b in zip(first, second)])


def test_win_rates_and_ties_that_nobody_needs_to_judge(model):
    written = write(model, groups(3, 4), max_new_tokens=4)
    outputs = {"good": ("long enough", "same"), "bad": ("short", "same")}
    written = type(written)(written.prompts, ("x", "y"), outputs, written.figures, {})
    base = type(written)(written.prompts, ("x", "y"), {"good": ("much longer than that", "z"), "bad": ()}, {}, {})
    judge = Longest()
    found = judged(written, judge, base)
    assert {name: estimate.value for name, estimate in found.wins.items()} == {
        "good_over_bad": 75,
        "good_over_people": 100,
        "good_over_base": 50,
    }
    assert found.judge == "the longest" and len(judge.asked) == 5
    assert judged(written, judge).wins.keys() == {"good_over_bad", "good_over_people"}
