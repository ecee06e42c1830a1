"""Reports: every series and figure is shown or named as missing, texts are escaped, two runs stand side by side."""

import json
import re
from html.parser import HTMLParser

import pytest

from coh.arguments import ConfigError
from coh.report import main, write_report
from coh.report.pictures import VARIABLES, pictures
from coh.report.record import ReportError, read_run

NASTY = "</p><script>alert('x')</script> | a\x1b[31m b"


def figure(value, spread=5.0, n=40):
    return {"value": value, "low": value - spread, "high": value + spread, "n": n}


def measured(accuracy, gap, output="An answer."):
    entry = {
        "pair_accuracy": figure(accuracy - 3),
        "pair_accuracy_per_token": figure(accuracy),
        "pair_accuracy_by_words": figure(accuracy + 7),
        "steering_gap": figure(gap, 1.0),
        "calibration_error": {"value": 0.1, "low": None, "high": None, "n": 40},
        "reliability": {
            "predicted": [0.55, 0.65, None, None, None],
            "observed": [0.5, 0.7, None, None, None],
            "counts": [30, 10, 0, 0, 0],
            "error": 0.04,
        },
        "scores": [[0.3 + n / 100, -0.2 + n / 90] for n in range(40)],
    }
    rows = [{"prompt": NASTY, "people": "People's.", "good": output, "bad": ""}]
    figures = {words: {"length": figure(12.0, 2.0, 1)} for words in ("good", "bad")}
    written = {"figures": figures, "wins": {"good_over_bad": figure(60.0)}, "judge": "a judge", "outputs": rows}
    return {"sources": {"mine": entry}, "text_loss": figure(3.2, 0.1), "written": {"mine": written}}


@pytest.fixture
def run(tmp_path):
    def make(name, seed=0, evaluation=True, more=()):
        folder = tmp_path / name
        folder.mkdir()
        history = []
        for step in (10, 20, 30):
            loss = {"loss": 4 - step / 20, "loss_feedback": 3 - step / 30, "loss_pretrain": 3.5, "grad_norm": 1.0}
            speed = {"learning_rate": 1e-4 / step, "num_tokens_seen": step * 1000, "tokens_per_second": 900.0 + step}
            history += [
                {"step": step, **loss, **speed},
                {"step": step, "eval_loss": 3.0, "eval_mine_loss": 3.0 - step / 50},
            ]
        history.append({"step": 30, "train_runtime": 125.0})
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
        about = {
            "data": {
                "sources": {"mine": {"documents": 1200, "share": 1.0, "tokens": 90_000, "targets": 30_000}},
                "chains": {"prompt shortened": 3},
                "dropped": {"mine": {"empty output": 2}},
                "templates": {"general.p.1": 700, "general.n.1": 500},
            },
            "arguments": {"model_name": "a-model", "seed": seed, "learning_rate": 1e-4},
            "versions": {"coh": "0.1", "torch": "2.13"},
            "run": {"command": "python -m coh.coh_train --seed 0", "commit": "abc123", "device": "cpu"},
        }
        (folder / "coh.json").write_text(json.dumps(about))
        if evaluation:
            moments = {"base": measured(50.0, 0.2), "model": measured(62.0, 2.5, *more)}
            (folder / "evaluation.json").write_text(json.dumps(moments))
        return folder

    return make


class Reader(HTMLParser):
    """Collects text, tags and ids."""

    def __init__(self):
        super().__init__()
        self.text, self.tags, self.ids, self.links = "", [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.text += data


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


def test_a_report_has_everything_and_needs_nothing(run):
    folder = run("first")
    path = write_report([folder])
    page, text = read(path), path.with_suffix(".md").read_text()
    assert path == folder / "report.html"
    for words in (
        "Training loss (nats per token)",
        "Held-out loss by source",
        "Pair accuracy on held-out pairs (%)",
        "Steering gap (nats per pair)",
        "Scores of ",
        "Learning rate",
        "Gradient norm",
        "Tokens per second",
    ):
        assert words in page.text and words in text.replace("\\", ""), words
    for words in ("python -m coh.coh_train --seed 0", "abc123", "prompt shortened", "general.p.1", "69.0 (64, 74)"):
        assert words in page.text and words in text.replace("\\", ""), words
    assert "before" in page.text and "people's best" in page.text and "judged by a judge" in page.text
    assert "Not recorded" not in page.text + text
    assert all(link.startswith("#") for link in page.links)  # works offline
    assert len(page.ids) == len(set(page.ids))
    named = re.findall(r"\(([\w/]+\.png)\)", text)
    assert len(named) == 9 and all((folder / name).stat().st_size > 2000 for name in named)


def test_pictures_take_the_colours_of_the_page(run):
    for picture in pictures([read_run(run("first"))]):
        assert "var(--ink)" in picture.svg and not any(colour in picture.svg for colour in VARIABLES)


def test_texts_are_shown_and_never_obeyed(run):
    path = write_report([run("first", more=("<img src=x onerror=alert(1)>",))])
    page, html = read(path), path.read_text()
    assert "script" not in page.tags and "img" not in page.tags and "\x1b" not in html
    assert "</script>" in page.text  # as letters
    assert "<img" not in path.with_suffix(".md").read_text()


def test_what_is_missing_is_named_and_not_drawn(run):
    folder = run("first", evaluation=False)
    (folder / "coh.json").unlink()
    text = write_report([folder]).with_suffix(".md").read_text()
    assert "Not recorded, and so not shown: " in text
    page = read(folder / "report.html").text
    for words in ("figures before training", "outputs (coh.evaluate", "data, arguments and versions"):
        assert words in page
    assert "Pair accuracy on held-out" not in page and "Training loss" in page


def test_two_runs_stand_side_by_side(run, tmp_path, capsys):
    folders = [str(run("first")), str(run("second", seed=7))]
    main([*folders, "--output", str(tmp_path / "both.html")])
    assert capsys.readouterr().out.split() == [str(tmp_path / "both.html"), str(tmp_path / "both.md")]
    page = read(tmp_path / "both.html").text
    assert "Options that differ" in page and "second, after" in page and "Command of first" in page


def test_folders_of_one_name_are_told_apart(run, tmp_path):
    first, second = run("one"), run("two")
    for folder in (first, second):
        (folder / "same").mkdir()
        for name in ("trainer_state.json", "coh.json"):
            (folder / name).rename(folder / "same" / name)
    page = read(write_report([first / "same", second / "same"], tmp_path / "both.html")).text
    assert "one/same" in page and "two/same" in page


def test_what_is_no_run_says_so(tmp_path):
    with pytest.raises(ReportError, match="there is no such folder"):
        write_report([tmp_path / "nothing"])
    with pytest.raises(ReportError, match=r"has no trainer_state.json: it is no --output_dir"):
        write_report([tmp_path])
    (tmp_path / "trainer_state.json").write_text("{")
    with pytest.raises(ReportError, match=r"trainer_state.json cannot be read"):
        write_report([tmp_path])
    with pytest.raises(SystemExit, match=r"coh\.report: "):
        main([str(tmp_path)])


def test_bad_options_are_said(run):
    from coh.report.command import ReportArgs

    with pytest.raises(ConfigError, match="give the --output_dir"):
        ReportArgs([])
    with pytest.raises(ConfigError, match=r"ends in .html"):
        ReportArgs(["x"], output="x.pdf")
