"""Scores: log-probabilities of outputs under words, equal to a plain computation, for any batch."""

import json

import pytest
from toys import byte_tokenizer, pairs, plain_log_p, tiny_model_folder, write_rows

from coh.arguments import ConfigError
from coh.data.records import FeedbackGroup, as_messages
from coh.data.templates import load_family
from coh.rows import JudgedRow
from coh.saved import Words, save_words
from coh.score import ScoreArgs, agreement, judge, main, ranks_of
from coh.steering import Steering

GROUPS = [
    FeedbackGroup("test", as_messages(f"What is {n}?"), (f"It is {n}." + " Yes." * n, "No."), (1, 2)) for n in range(6)
]


@pytest.fixture(scope="module")
def steering():
    return Steering.of(Words(load_family("marker")), byte_tokenizer())


@pytest.fixture(scope="module")
def model(steering, tiny_llama):
    return tiny_llama(len(steering.encoder.tokenizer), initializer_range=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model_folder(folder, initializer_range=0.3)
    save_words(folder, Words(load_family("marker")))
    return str(folder)


@pytest.mark.parametrize("per_token", [False, True])
def test_a_judgement_is_good_less_bad(model, steering, per_token):
    rows = [JudgedRow("row", group.prompt, group.outputs[: 1 + n % 2], {}) for n, group in enumerate(GROUPS)]
    found = judge(model, steering, rows, per_token=per_token)
    for row, scores in zip(rows, found):
        made = [steering.output_documents(row.prompt, row.outputs, words) for words in ("good", "bad")]
        for place, score in enumerate(scores):
            good, bad = (plain_log_p(model, documents[place]) for documents in made)
            length = sum(made[0][place].target_mask) if per_token else 1
            assert score == pytest.approx((good - bad) / length, abs=1e-4)


def test_agreement_of_an_oracle_its_opposite_and_one_who_does_not_care():
    ranks = (1, 2, 2, 3)
    assert agreement(ranks, [3.0, 2.0, 2.0, 1.0]) == (5.0, 5)
    assert agreement(ranks, [1.0, 2.0, 2.0, 3.0]) == (0.0, 5)
    assert agreement(ranks, [1.0] * 4) == (2.5, 5)
    assert agreement((1, 1), [1.0, 2.0]) == agreement((), [1.0]) == (0.0, 0)
    assert ranks_of([1.0, 3.0, 3.0]) == [2, 1, 1]


def run(folder, tmp_path, rows, *more):
    path, out = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    main(["--model", folder, "--input", path, "--output", str(out), "--cache_dir", str(tmp_path / "cache"), *more])
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def test_pairs_are_judged_and_compared_with_people(folder, tmp_path, capsys):
    lines = run(folder, tmp_path, pairs(9))
    assert [line["outputs"] for line in lines] == [[row["chosen"], row["rejected"]] for row in pairs(9)]
    assert [line["row"] for line in lines] == list(range(1, 10))
    for line in lines:
        assert line["human_ranks"] == [1, 2] and line["ranks"] == ranks_of(line["scores"])
    num_agreed = sum(line["ranks"] == [1, 2] for line in lines)
    assert f"pair agreement with people: {100 * num_agreed / 9:.1f} % of 9 pairs" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--tokens_per_batch", "1"], ["--tokens_per_batch", "300"]])
def test_batches_change_no_score(folder, tmp_path, options, monkeypatch):
    whole = run(folder, tmp_path, pairs(9))
    monkeypatch.setattr("coh.score.ROWS_AT_ONCE", 2)
    parts = run(folder, tmp_path, pairs(9), *options)
    for one, other in zip(whole, parts, strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-4)


def test_lists_keep_their_order_and_their_row(folder, tmp_path, capsys):
    rows = [{"prompt": "2+2", "outputs": ["5", "4", "5", ""], "id": 9}, {"prompt": "Hi", "outputs": ["Ho"], "id": 10}]
    lines = run(folder, tmp_path, rows, "--per_token")
    assert [{name: line[name] for name in row} for line, row in zip(lines, rows)] == rows
    assert lines[0]["scores"][0] == pytest.approx(lines[0]["scores"][2], abs=1e-5) and len(lines[0]["ranks"]) == 4
    assert "human_ranks" not in lines[0] and lines[1]["ranks"] == [1]
    assert "agreement" not in capsys.readouterr().err


def test_what_was_generated_can_be_judged(folder, tmp_path):
    from coh import generate

    path, out = write_rows(tmp_path / "asked.jsonl", [{"prompt": "Why?"}]), tmp_path / "generated.jsonl"
    words = ["--model", folder, "--max_new_tokens", "6", "--input", path, "--output", str(out)]
    generate.main([*words, "--feedback", "good", "bad", "--revise", "1"])
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    lines = run(folder, tmp_path, rows)
    assert [len(line["scores"]) for line in lines] == [2, 2]  # both versions


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (
            [{"prompt": "Hi", "outputs": ["a"]}, {"prompt": "Hi", "outputs": [4]}],
            r"in\.jsonl, line 2: field 'outputs\[0\]'",
        ),
        ([{"prompt": "Hi", "outputs": ["a" * 600]}], r"in\.jsonl, line 1: an output has \d+ tokens, the model has 512"),
        ([{"prompt": "Hi", "outputs": ["a"], "scores": 3}], r"in\.jsonl, line 1: a field is named 'scores'"),
        ([{"question": "Hi"}], "no format has the columns 'question'"),
        (["Hi"], r"in\.jsonl, line 1: a row is text"),
    ],
)
def test_what_is_wrong_with_rows_is_said(folder, tmp_path, rows, problem):
    with pytest.raises(SystemExit, match=rf"^coh\.score: .*{problem}"):
        run(folder, tmp_path, rows)


def test_what_is_wrong_with_options_is_said(folder, tmp_path):
    with pytest.raises(ConfigError) as error:
        ScoreArgs("m", "x", feedback_format="thums", tokens_per_batch=0, dtype="int3")
    assert [problem.split(":")[0] for problem in error.value.problems] == [
        *("--feedback_format", "--tokens_per_batch 0", "--dtype int3")
    ]
    with pytest.raises(SystemExit, match=r"coh\.score: --output .*: there is no such folder"):
        main(["--model", folder, "--input", "x.jsonl", "--output", str(tmp_path / "no" / "x.jsonl")])
    with pytest.raises(SystemExit, match=r"coh\.score: .*there is no file 'x\.jsonl'"):
        main(["--model", folder, "--input", "x.jsonl"])
