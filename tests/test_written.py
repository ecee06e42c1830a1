"""What a model writes: prompts that leave room, figures that texts have, and draws that do not depend on processes."""

import builtins
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_processes import together
from toys import tiny_model_folder

from coh.data.records import FeedbackGroup, as_messages
from coh.data.templates import load_family
from coh.generation import drawing
from coh.measures import rouge
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

    def test_scripts_without_spaces_are_counted_by_letters_and_others_as_ever(self):
        found = text_figures(["\u65e5\u672c\u65e5\u672c\u3002", "It's - fine."], ["\u65e5\u672c", "fine"])
        assert found["length"].value == (4 + 3) / 2 and found["distinct1"].value == pytest.approx(5 / 7)

    def test_rouge_of_english_is_that_of_its_package(self):
        """Of texts in ASCII, the signs of other uses of it included, and with marks that type sets."""
        scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="pip install rouge-score")
        rng = np.random.default_rng(0)
        signs = [*"aAbeginrstyz019 ", " ", *"_-'.,/\n\t\x00@#", "running", "flies ", "\u2019s ", "\u201c", "\u2014"]
        texts = ["".join(rng.choice(signs, size=rng.integers(120))) for _ in range(300)]
        names = ["rouge1", "rouge2", "rougeL"]
        default = scorer.RougeScorer(names, use_stemmer=True)
        found = rouge(texts[::2], texts[1::2])
        expected = [default.score(reference, output) for output, reference in zip(texts[::2], texts[1::2])]
        for name in names:
            assert found[name].tolist() == [100 * scores[name].fmeasure for scores in expected]
            assert len(set(found[name].tolist())) > 20

    @pytest.mark.parametrize(
        "output, reference, shared",
        [
            ("Небо сегодня синее", "небо было синее", 4 / 6),  # noqa: RUF001
            ("Gießen Sie!", "gießen, bitte", 2 / 4),
            ("空は青い。", "空が青い", 6 / 8),
            ("ฟ้าสีฟ้า", "ฟ้า", 2 * 3 / 11),
            ("हिन्दी में", "हिन्दी", 2 / 3),
            ("café", "cafe\u0301", 1),
        ],
    )
    def test_rouge_knows_other_letters(self, output, reference, shared):
        pytest.importorskip("rouge_score", reason="rouge-score is not installed: pip install rouge-score")
        assert rouge([output], [reference])["rouge1"].tolist() == pytest.approx([100 * shared])

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
    assert set(found.num_not_judged.values()) == {0}


class Silent(Longest):
    """The same, but of outputs with more than one word it says nothing."""

    def prefer(self, prompts, first, second):
        is_silent = [" " in one + other for one, other in zip(first, second)]
        return np.where(is_silent, np.nan, super().prefer(prompts, first, second))


def test_what_is_not_judged_is_half_and_counted(model):
    written = write(model, groups(3, 4, 5), max_new_tokens=4)
    outputs = {"good": ("longer", "two words", "same"), "bad": ("short", "x", "same")}
    found = judged(replace(written, outputs=outputs, people=("a", "b", "c")), Silent())
    assert found.num_not_judged == {"good_over_bad": 1, "good_over_people": 1}
    assert found.wins["good_over_bad"].value == pytest.approx(100 * (1 + 0.5 + 0.5) / 3)
    assert found.wins["good_over_people"].value == pytest.approx(100 * (1 + 0.5 + 1) / 3)
    assert found.as_json()["num_not_judged"] == found.num_not_judged and found.wins["good_over_bad"].n == 3


def test_an_output_that_people_found_bad_is_nobodys_best(model):
    thumbs = [
        FeedbackGroup("mine", as_messages(f"Is {n} odd?"), (f"output {n}",), (1,), is_good=bool(n % 2))
        for n in range(4)
    ]
    assert write(model, thumbs, max_new_tokens=4).people == ("output 1", "output 3")
