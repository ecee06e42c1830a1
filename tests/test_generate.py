"""The command that steers: all kinds of words, files of prompts, stopped runs, and what it refuses."""

import json

import pytest
from toys import tiny_model_folder, write_rows

from coh.arguments import ConfigError
from coh.data.templates import load_family
from coh.generate import GenerateArgs, main
from coh.saved import Words, save_words
from coh.steered import load

ROWS = [{"prompt": "Why?" + " So?" * n, "id": n} for n in range(7)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model_folder(folder, initializer_range=0.3)
    save_words(folder, Words(load_family("marker")))
    return str(folder)


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


def run(folder, *words):
    main(["--model", folder, "--max_new_tokens", "8", *map(str, words)])


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_prompt_under_several_words(folder, model, capsys):
    run(folder, "--prompt", "Why?")
    good = model.generate("Why?", max_new_tokens=8)
    assert capsys.readouterr().out == f"{good}\n"
    run(folder, "--prompt", "Why?", "--feedback", "good", "bad", "Briefly, then:")
    bad, own = (model.generate("Why?", words, max_new_tokens=8) for words in ("bad", "Briefly, then:"))
    assert capsys.readouterr().out == f"[good]\n{good}\n\n[bad]\n{bad}\n\n[Briefly, then:]\n{own}\n"
    assert len({good, bad, own}) == 3


@pytest.mark.parametrize("batch_size", [1, 3, 20])
@pytest.mark.parametrize("more", [[], ["--guidance", "1.7"], ["--revise", "2"], ["--repetition_penalty", "1.3"]])
def test_a_file_is_answered_as_its_rows_one_by_one(tmp_path, folder, model, batch_size, more):
    path, out = write_rows(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    run(folder, "--input", path, "--output", out, "--feedback", "good", "bad", "--batch_size", batch_size, *more)
    options = {"max_new_tokens": 8}
    options |= {more[0][2:]: float(more[1])} if more and more[0] != "--revise" else {}
    expected = []
    for row in ROWS:
        for words in ("good", "bad"):
            if "--revise" in more:
                versions = model.revise(row["prompt"], 2, feedback=words, **options)
                found = {"output": versions[-1], "versions": versions}
                assert len(versions) == 3
            else:
                found = {"output": model.generate(row["prompt"], words, **options)}
            expected.append({**row, "feedback": words, **found})
    assert lines_of(out) == expected


def test_a_stopped_run_goes_on_where_it_stopped(tmp_path, folder):
    """Cut anywhere, also inside a line or a batch, with draws by chance: the same file in the end."""
    path = write_rows(tmp_path / "in.jsonl", ROWS)
    words = ["--input", path, "--do_sample", "--seed", 4, "--batch_size", 3]
    run(folder, *words, "--output", tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    assert len(ends) == len(ROWS)
    for cut in (0, 5, ends[0], ends[2], ends[3] + 9, len(whole) - 1, len(whole)):
        out = tmp_path / "cut.jsonl"
        out.write_bytes(whole[:cut])
        run(folder, *words, "--output", out)
        assert out.read_bytes() == whole, cut


def test_another_question_is_not_taken_for_the_same_run(tmp_path, folder):
    path, out = write_rows(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    run(folder, "--input", path, "--output", out)
    with pytest.raises(SystemExit, match=r"out\.jsonl, line 1: not an answer to what is asked now"):
        run(folder, "--input", path, "--output", out, "--feedback", "bad")
    with pytest.raises(SystemExit, match=r"out\.jsonl, line 1: not an answer"):
        run(folder, "--input", path, "--output", out, "--revise", 1)
    shorter = write_rows(tmp_path / "shorter.jsonl", ROWS[:5])
    with pytest.raises(SystemExit, match=r"out\.jsonl, line 6: not an answer"):
        run(folder, "--input", shorter, "--output", out)
    run(folder, "--input", shorter, "--output", out, "--feedback", "bad", "--overwrite")
    assert [line["feedback"] for line in lines_of(out)] == ["bad"] * 5


def test_a_finished_run_loads_no_model(tmp_path, folder, capsys, monkeypatch):
    path, out = write_rows(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    run(folder, "--input", path, "--output", out)
    monkeypatch.setattr("coh.generate.load", None)
    run(folder, "--input", path, "--output", out)
    assert "holds all 7 answers already" in capsys.readouterr().err


def test_best_of_writes_all_with_their_scores(tmp_path, folder, model):
    out = tmp_path / "out.jsonl"
    run(folder, "--input", write_rows(tmp_path / "in.jsonl", ROWS[:3]), "--output", out, "--best_of", 4)
    for line, row in zip(lines_of(out), ROWS):
        assert len(line["outputs"]) == 4 and line["output"] == line["outputs"][0]
        assert line["scores"] == sorted(line["scores"], reverse=True) and len(set(line["scores"])) > 1
        assert line["scores"] == pytest.approx(model.score(row["prompt"], line["outputs"]), abs=1e-4)


def test_several_outputs_and_json_in_the_terminal(tmp_path, folder, capsys):
    path = write_rows(tmp_path / "in.jsonl", ROWS[:2])
    run(folder, "--input", path, "--do_sample", "--num_return_sequences", 3)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(line["outputs"]) for line in lines] == [3, 3]
    run(folder, "--prompt", "Why?", "--num_beams", 2, "--num_outputs", 2, "--stop_strings", "e", "x,y")
    assert "\n\n" in capsys.readouterr().out


def test_prompts_that_are_conversations(tmp_path, folder, model):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    turns.append({"role": "user", "content": "Why?"})
    out = tmp_path / "out.jsonl"
    run(folder, "--input", write_rows(tmp_path / "in.jsonl", [{"prompt": turns}]), "--output", out)
    assert lines_of(out) == [{"prompt": turns, "feedback": "good", "output": model.generate(turns, max_new_tokens=8)}]


@pytest.mark.parametrize(
    ("rows", "more", "problem"),
    [
        (
            [*ROWS, {"prompt": "a" * 600}],
            [],
            r"in\.jsonl, line 8: prompt of \d+ tokens and 8 new ones: the model has 512",
        ),
        ([{"prompt": "Hi"}, {"promt": "Hi"}], [], r"in\.jsonl, line 2: field 'prompt' is missing"),
        ([{"prompt": "Hi", "output": "So."}], [], r"in\.jsonl, line 1: a field is named 'output'"),
        (ROWS, ["--feedback", "general.{}"], r"feedback 'general.{}': write good, bad"),
        (ROWS, ["--device", "abacus"], "device 'abacus'"),
        (ROWS, ["--templates", "nowhere"], "templates 'nowhere': neither"),
    ],
)
def test_what_is_wrong_with_rows_and_words_is_said(tmp_path, folder, rows, more, problem):
    path = write_rows(tmp_path / "in.jsonl", rows)
    with pytest.raises(SystemExit, match=rf"^coh\.generate: .*{problem}"):
        run(folder, "--input", path, "--output", tmp_path / "out.jsonl", *more)


def test_a_model_without_words(tmp_path, capsys):
    folder = tiny_model_folder(tmp_path)
    with pytest.raises(SystemExit, match=r"has no coh\.json, so its words are not known: name some with --templates"):
        main(["--model", folder, "--prompt", "Why?"])
    main(["--model", folder, "--prompt", "Why?", "--templates", "prose", "--task", "answer", "--max_new_tokens", "2"])


def problems_of(**options):
    with pytest.raises(ConfigError) as error:
        GenerateArgs(model="m", **options)
    return error.value.problems


def test_bad_options_are_all_said():
    found = problems_of(
        prompt=" ", input="x", max_new_tokens=0, num_outputs=2, best_of=2, temperature=0.0, guidance=-1.0, dtype="int3"
    )
    assert [problem.split(":")[0] for problem in found] == [
        "--prompt and --input",
        "--prompt is empty",
        "--num_outputs and --best_of do not go together",
        "--dtype int3",
        "--guidance -1.0",
        "--max_new_tokens 0",
        "--temperature 0.0",
    ]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "Nothing is asked: give one of --prompt, --input and --interactive."),
        ({"prompt": "Hi", "top_k": 5}, "--top_k 5 has no effect without --do_sample: give both, or neither."),
        ({"prompt": "Hi", "batch_size": 0}, "--batch_size 0: give 1 or more."),
        (
            {"prompt": "Hi", "feedback": ["good", " "]},
            "--feedback 'good' ' ': give words, with --interactive one kind.",
        ),
        ({"interactive": True, "best_of": 3}, "--best_of has no meaning with --interactive: leave it out."),
        ({"prompt": "Hi", "output": "no/where/x.jsonl"}, "--output no/where/x.jsonl: there is no such folder"),
        ({"prompt": "Hi", "guidance": 2.0, "num_beams": 4}, "--guidance 2.0 with --num_beams 4: guidance follows one"),
        ({"prompt": "Hi", "num_outputs": 2}, "--num_outputs 2: give 1, or more together with --do_sample"),
    ],
)
def test_options_that_do_not_go_together(options, problem):
    assert any(sentence.startswith(problem) for sentence in problems_of(**options))


def test_unknown_options_of_transformers_are_named(capsys):
    with pytest.raises(SystemExit):
        main(["--model", "m", "--prompt", "Hi", "--num_beems", "3"])
    assert "--num_beems is not an option: did you mean --num_beams?" in capsys.readouterr().err


def test_help_shows_ours_first_and_says_that_all_work(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Every option of transformers' GenerationConfig works." in text
    assert (
        text.index("--prompt TEXT") < text.index("--guidance, --guidance_scale") < text.index("--no_repeat_ngram_size")
    )
