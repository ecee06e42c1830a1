"""The dataset's laws: rows are pure functions of (seed, index), hold all documents once, and mask what is no target."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from toys import byte_tokenizer, pairs, write_rows

from coh.arguments import ConfigError
from coh.data.coh_data import CoHDataArgs, load_datasets
from coh.data.collator import collate
from coh.data.records import FeedbackError
from coh.data.summary import summarize, table

IGNORED = -100


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coh_data")
    write_rows(folder / "pairs.jsonl", pairs(200))
    write_rows(folder / "more.jsonl", pairs(100, length=3, start=1000))
    write_rows(folder / "text.jsonl", [{"text": f"Text {n}. " + "Words of it. " * (n % 40)} for n in range(100)])
    return folder


def load(folder, tokenizer, seed=0, prepend_bos=False, **options):
    options = {
        "seq_length": 256,
        "feedback_data": [str(folder / "pairs.jsonl"), str(folder / "more.jsonl")],
        "pretrain_data": str(folder / "text.jsonl"),
        "templates": ["marker"],
    } | options
    args = CoHDataArgs(**options)
    return load_datasets(args, tokenizer, seed=seed, prepend_bos=prepend_bos, cache_dir=str(folder / "cache"))


def documents_of(row):
    """The row's documents as (ids, target mask): position_ids restart at each, padding is no document."""
    starts = np.flatnonzero(row["position_ids"] == 0).tolist()
    spans = zip(starts, [*starts[1:], len(row["position_ids"])])
    return [
        (tuple(row["input_ids"][a:b].tolist()), tuple((row["labels"][a:b] != IGNORED).tolist()))
        for a, b in spans
        if row["source_id"][a] >= 0
    ]


@pytest.mark.parametrize("packing", ["fit", "chunk"])
def test_an_epoch_is_its_documents_concatenated(folder, tokenizer, packing):
    train = load(folder, tokenizer, packing=packing)["train"]
    for stream, source in ((train.feedback_rows, train.chains), (train.text_rows, train.texts)):
        rows = [stream.read([row], pad_id=0) for row in range(stream.rows_until(1))]
        found = [row.ids[row.source >= 0] for row in rows]
        documents = source.window(0, 0)
        expected = [documents.tokens(number)[0] for number in range(len(documents.lengths))]
        if packing == "chunk":
            assert np.array_equal(np.concatenate(found), np.concatenate(expected))
        else:
            whole = Counter(ids.tobytes() for ids in expected if len(ids) <= 256)
            starts = [np.flatnonzero(row.position[row.source >= 0] == 0) for row in rows]
            pieces = Counter(part.tobytes() for ids, own in zip(found, starts) for part in np.split(ids, own[1:]))
            assert not whole - pieces  # no document that fits a row is cut
            assert sum(map(len, found)) == sum(map(len, expected))


def test_rows_are_what_they_say(folder, tokenizer):
    train = load(folder, tokenizer)["train"]
    kinds = Counter()
    for index in range(len(train)):
        row = train[index]
        kinds[bool(row["is_pretrain"])] += 1
        assert row["row"] == index
        labels, ids, source = row["labels"], row["input_ids"], row["source_id"]
        is_target = labels != IGNORED
        assert (labels[is_target] == ids[is_target]).all()
        assert not is_target[row["position_ids"] == 0].any()  # nothing predicts a document's first token
        assert not is_target[source < 0].any() and (ids[source < 0] == tokenizer.pad_token_id).all()
        for document, targets in documents_of(row):
            assert document[-1] == tokenizer.eos_token_id or len(document) == 256
            if row["is_pretrain"]:
                assert all(targets[1:]) and not targets[0]
            else:
                text = tokenizer.decode(document)
                outputs = tokenizer.decode([token for token, target in zip(document, targets) if target])
                assert text.startswith("User: Question") and "helpful answer:" in text
                assert outputs.count("</s>") == text.count("</s>") == outputs.count("It is ") + outputs.count("Not ")
                assert "Question" not in outputs and "answer" not in outputs
        names = {train.source_names[number] for number in set(source[source >= 0].tolist())}
        assert names == {"pretrain"} if row["is_pretrain"] else names <= {"pairs", "more"}
    assert kinds[True] == kinds[False] or kinds[True] == kinds[False] - 1


def test_same_rows_in_any_order_process_and_number_of_workers(folder, tokenizer):
    import torch

    train = load(folder, tokenizer, seed=3)["train"]
    expected = [train[index] for index in range(len(train))]
    again = load(folder, tokenizer, seed=3)["train"]
    for index in reversed(range(len(again))):
        assert all(np.array_equal(again[index][key], expected[index][key]) for key in expected[index])
    for workers in (0, 1, 3):
        loader = torch.utils.data.DataLoader(
            again,
            batch_size=4,
            collate_fn=collate,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
        )
        ids = torch.cat([batch["input_ids"] for batch in loader])
        assert np.array_equal(ids.numpy(), np.stack([row["input_ids"] for row in expected]))


ELSEWHERE = """
import json, pathlib, sys
from test_coh_data import byte_tokenizer, load
train = load(pathlib.Path(sys.argv[1]), byte_tokenizer(), seed=3)["train"]
print(json.dumps([train[index]["input_ids"].tolist() for index in (0, 7, len(train) - 1)]))
"""


def test_another_process_gives_the_same_rows(folder, tokenizer):
    found = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parents[1])))},
    )
    assert found.returncode == 0, found.stderr
    train = load(folder, tokenizer, seed=3)["train"]
    expected = [train[index]["input_ids"].tolist() for index in (0, 7, len(train) - 1)]
    assert json.loads(found.stdout.splitlines()[-1]) == expected


def test_seeds_and_epochs_give_other_rows(folder, tokenizer):
    one, other = (load(folder, tokenizer, seed=seed)["train"] for seed in (0, 1))
    assert not np.array_equal(one[0]["input_ids"], other[0]["input_ids"])
    epoch = one.rows_in_epochs(1)
    one.num_rows = 3 * epoch
    assert not np.array_equal(one[0]["input_ids"], one[epoch]["input_ids"])
    feedback = [one[index] for index in range(2 * epoch) if not one[index]["is_pretrain"]]
    prompts = Counter(tokenizer.decode(ids).split("?")[0] for row in feedback for ids, _ in documents_of(row))
    assert set(prompts.values()) <= {1, 2, 3} and prompts.most_common(150)[-1][1] == 2


@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0, 4.0, 1 / 3])
def test_the_ratio_of_text_is_kept_all_along(folder, tokenizer, ratio):
    train = load(folder, tokenizer, pretrain_ratio=ratio)["train"]
    train.num_rows = 400
    text = np.cumsum([train.place(index)[0] for index in range(400)])
    assert abs(text - np.arange(1, 401) * ratio / (1 + ratio)).max() <= 1.5
    places = [train.place(index) for index in range(400)]
    for kind in (True, False):  # each kind is numbered without a gap
        numbers = [number for is_text, number in places if is_text == kind]
        assert numbers == list(range(len(numbers)))


def test_epochs_are_counted_in_feedback(folder, tokenizer):
    train = load(folder, tokenizer, pretrain_ratio=0.5)["train"]
    for epochs in (1, 2, 2.5):
        rows = train.rows_in_epochs(epochs)
        feedback = sum(not train.place(index)[0] for index in range(rows))
        wanted = train.feedback_rows.rows_until(2) + (epochs % 1) * (
            train.feedback_rows.rows_until(3) - train.feedback_rows.rows_until(2)
        )
        wanted = train.feedback_rows.rows_until(1) if epochs == 1 else wanted
        assert abs(feedback - wanted) < 2


def test_evaluation_is_one_pass_and_does_not_follow_the_seed(folder, tokenizer):
    one, other = (load(folder, tokenizer, seed=seed, webgpt_dataset_test_size=0.4) for seed in (0, 1))
    for split in ("validation", "test"):
        assert len(one[split]) == len(other[split]) > 0
        for index in range(len(one[split])):
            assert np.array_equal(one[split][index]["input_ids"], other[split][index]["input_ids"])
        is_text = [bool(one[split][index]["is_pretrain"]) for index in range(len(one[split]))]
        assert is_text == sorted(is_text) and any(is_text)
        with pytest.raises(IndexError):
            one[split][len(one[split])]


def test_no_prompt_is_in_two_splits(folder, tokenizer):
    datasets = load(folder, tokenizer, webgpt_dataset_test_size=0.3)
    prompts = {
        split: {
            tokenizer.decode(ids).split("?")[0]
            for index in range(len(dataset))
            if not (row := dataset[index])["is_pretrain"]
            for ids, _ in documents_of(row)
        }
        for split, dataset in datasets.items()
    }
    assert set(prompts) == {"train", "validation", "test"}
    assert sum(map(len, prompts.values())) == len(set().union(*prompts.values())) == 300


def test_evaluation_data_of_its_own(folder, tokenizer):
    datasets = load(
        folder,
        tokenizer,
        feedback_data=[f"a={folder / 'pairs.jsonl'}"],
        eval_feedback_data=[f"b={folder / 'more.jsonl'}"],
    )
    assert datasets["train"].source_names == ["a", "pretrain"]
    assert datasets["validation"].source_names == datasets["test"].source_names == ["b", "pretrain"]
    assert summarize(datasets["train"])["sources"]["a"]["documents"] == 200


def test_documents_see_each_other_only_when_asked(folder, tokenizer):
    row = load(folder, tokenizer, isolate_documents=False)["train"][0]
    assert np.array_equal(row["position_ids"], np.arange(256))
    isolated = load(folder, tokenizer)["train"][0]
    assert np.array_equal(row["input_ids"], isolated["input_ids"]) and np.array_equal(row["labels"], isolated["labels"])
    assert (isolated["position_ids"] == 0).sum() > 1


def test_bos_at_every_document_when_asked(folder, tokenizer):
    row = load(folder, tokenizer, prepend_bos=True)["train"][0]
    assert documents_of(row) and all(ids[0] == tokenizer.bos_token_id for ids, _ in documents_of(row))
    assert (row["input_ids"] == tokenizer.bos_token_id).sum() == len(documents_of(row))


def test_no_text(folder, tokenizer):
    datasets = load(folder, tokenizer, pretrain_data="none")
    assert not any(datasets["train"][index]["is_pretrain"] for index in range(len(datasets["train"])))


def test_the_table_tells_shares_padding_and_losses(folder, tokenizer):
    rows = [*pairs(50), {"prompt": "Empty?", "chosen": "x", "rejected": " "}]
    path = write_rows(folder / "holes.jsonl", rows)
    train = load(folder, tokenizer, feedback_data=[path, str(folder / "pairs.jsonl")], feedback_weights=[1.0, 1.0])[
        "train"
    ]
    summary = summarize(train)
    assert summary["sources"]["holes"]["share"] == pytest.approx(0.5, abs=0.01)
    assert list(summary["dropped"]["holes"].values()) == [1]
    assert sum(summary["templates"].values()) == sum(found["documents"] for found in summary["sources"].values())
    assert summary["tasks"] == {"general": sum(summary["templates"].values())}
    tokens = targets = 0
    for index in range(len(train)):
        if not (row := train[index])["is_pretrain"]:
            tokens += int((row["source_id"] >= 0).sum())
            targets += int((row["labels"] != IGNORED).sum())
    assert sum(found["tokens"] for found in summary["sources"].values()) == tokens
    assert sum(found["targets"] for found in summary["sources"].values()) == targets
    assert summary["padding"] == pytest.approx(1 - tokens / (summary["feedback_rows"] * 256))
    text = table(summary)
    assert "holes, dropped, empty last reply: 1" in text and "feedback rows an epoch" in text


def test_the_bundled_sample_loads(tokenizer, tmp_path):
    args = CoHDataArgs(feedback_data=["sample"], pretrain_data="sample", seq_length=1024)
    datasets = load_datasets(args, tokenizer, cache_dir=str(tmp_path))
    assert datasets["train"].source_names == [
        "sample_webgpt",
        "sample_hh_rlhf",
        "sample_summarize",
        "sample_pairs",
        "pretrain",
    ]
    assert len(datasets["train"]) > 100 and len(datasets["test"]) > 5


@pytest.mark.parametrize(
    ("options", "problems"),
    [
        ({"seq_length": 8}, ["--seq_length 8: a row needs 16 tokens or more."]),
        ({"feedback_data": []}, ["--feedback_data is empty: name at least one source."]),
        ({"feedback_data": ["webgtp"]}, ["--feedback_data: unknown source 'webgtp': did you mean 'webgpt'?"]),
        ({"eval_feedback_data": ["no.jsonl"]}, ["--eval_feedback_data: source 'no.jsonl': there is no file"]),
        ({"feedback_weights": [1.0]}, ["--feedback_weights 1: 1 numbers for 3 sources"]),
        ({"feedback_weights": [0.0, 0.0, 0.0]}, ["--feedback_weights 0,0,0: give numbers of 0 or more"]),
        (
            {"feedback_format": "webgtp"},
            ["--feedback_format: unknown feedback format 'webgtp': did you mean 'webgpt'?"],
        ),
        ({"webgpt_dataset_test_size": 1.0}, ["--webgpt_dataset_test_size 1.0: give a share from 0 to below 1."]),
        ({"pretrain_docs": 0}, ["--pretrain_docs 0: give 1 or more, or --pretrain_data none."]),
        ({"feedback_weights": [1.0, float("inf"), 1.0]}, ["--feedback_weights 1,inf,1: give numbers of 0 or more"]),
        ({"pretrain_ratio": -1.0}, ["--pretrain_ratio -1.0: give 0.001 or more"]),
        ({"pretrain_ratio": 0.0004}, ["--pretrain_ratio 0.0004: give 0.001 or more"]),
        ({"pretrain_ratio": float("nan")}, ["--pretrain_ratio nan: give 0.001 or more"]),
        ({"pretrain_ratio": float("inf")}, ["--pretrain_ratio inf: give 0.001 or more"]),
        ({"chains": ["pp"]}, ["--chains pp: give some of p, n, pn, np, question, critique, refine, revision."]),
        ({"chains": ["p", "p"]}, ["--chains p,p: give one or more kinds, each once."]),
        ({"templates": "proze"}, ["--templates: templates 'proze': neither marker, marker_varied, prose nor a file"]),
        ({"templates": ["marker"], "chains": ["question"]}, ["--chains question: templates marker have none of these"]),
        ({"packing": "tight"}, ["--packing tight: give one of fit, chunk."]),
        (
            {"seq_length": 1, "pretrain_docs": -1, "chains": []},
            ["--seq_length 1", "--pretrain_docs -1", "--chains (empty)"],
        ),
    ],
)
def test_bad_options_are_all_said(options, problems):
    with pytest.raises(ConfigError) as error:
        CoHDataArgs(**options)
    assert len(error.value.problems) == len(problems)
    for found, expected in zip(error.value.problems, problems):
        assert found.startswith(expected)


def test_nothing_to_train_on(folder, tokenizer, tmp_path):
    path = write_rows(tmp_path / "one.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "b"}])
    with pytest.raises(FeedbackError, match="none of its rows gives a group"):
        load(folder, tokenizer, feedback_data=[path])


def test_one_format_is_that_of_the_evaluation_sources_too():
    assert CoHDataArgs(feedback_format="ranked").eval_formats(2) == ["ranked", "ranked"]
    several = CoHDataArgs(feedback_data=["webgpt", "hh_rlhf"], feedback_format=["webgpt", "hh_rlhf"])
    assert several.eval_formats(1) == ["auto"]


def test_a_split_of_which_nothing_fits_a_row_is_left_out_and_named(folder, tokenizer, tmp_path, caplog):
    """Of rows whose prompts are held out for validation, each output is longer than a row."""
    path = write_rows(tmp_path / "some.jsonl", pairs(60))
    splits = load(folder, tokenizer, feedback_data=[path])
    held_out = {
        splits["validation"].chains.sources[0].store.group(int(n)).prompt[0].content
        for n in splits["validation"].chains.sources[0].indices
    }
    rows = [
        row | {"chosen": row["chosen"] * 99, "rejected": row["rejected"] * 99} if row["prompt"] in held_out else row
        for row in pairs(60)
    ]
    with caplog.at_level("WARNING", "coh"):
        found = load(folder, tokenizer, feedback_data=[write_rows(tmp_path / "long.jsonl", rows)])
    assert {*found} == {*splits} - {"validation"}
    assert "validation is left out: no feedback fits a row of 256 tokens: raise --seq_length" in caplog.text


def test_why_there_is_nothing_to_train_on_is_said(folder, tokenizer, tmp_path):
    path = write_rows(tmp_path / "same.jsonl", pairs(5))
    with pytest.raises(FeedbackError, match=r"no feedback to train on in same \(prompt is in evaluation: 5\)"):
        load(folder, tokenizer, feedback_data=[path], eval_feedback_data=[f"other={path}"])
    for number in range(100):
        one = write_rows(tmp_path / f"one{number}.jsonl", pairs(1, start=number))
        try:
            load(folder, tokenizer, feedback_data=[one], webgpt_dataset_test_size=0.5)
        except FeedbackError as error:
            assert "(held out for evaluation: 1)" in str(error)
            break
    else:
        raise AssertionError("half of the prompts are held out")
