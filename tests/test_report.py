"""Reports: every series and figure is shown or named as missing, texts are escaped, two runs stand side by side."""

import json
import re
import shlex
from html.parser import HTMLParser
from itertools import pairwise
from urllib.parse import unquote

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from coh.arguments import ConfigError, parse_or_raise
from coh.evaluate_args import EvaluateArgs
from coh.report import main, write_report
from coh.report.answer import answer as answer_of
from coh.report.marks import block, plain
from coh.report.pictures import (
    PRINT,
    VARIABLES,
    _bars,
    _curves,
    _evaluation,
    _histogram,
    _reliability,
    _style,
    pictures,
)
from coh.report.record import ReportError, read_run
from coh.report.tables import glance, tables
from coh.report.verdict import MORE_PAIRS, verdict

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
    figures = {words: {"rouge1": figure(20.0), "length": figure(12.0, 2.0, 1)} for words in ("good", "bad")}
    written = {"figures": figures, "wins": {"good_over_bad": figure(60.0)}, "judge": "a judge", "outputs": rows}
    return {"sources": {"mine": entry}, "text_loss": figure(3.2, 0.1), "written": {"mine": written}}


def change(folder, name, how):
    """A file of a run, otherwise."""
    content = json.loads((folder / name).read_text())
    how(content)
    (folder / name).write_text(json.dumps(content))


def without(*names):
    """Leaves series out of a log."""

    def leave_out(state):
        state["log_history"] = [
            {name: value for name, value in entry.items() if name not in names} for entry in state["log_history"]
        ]

    return leave_out


def with_sources(names, text=True):
    """Puts the evaluated losses of other sources into a log."""

    def put(state):
        sources = [*names, *(["pretrain"] if text else [])]
        state["log_history"] += [
            {"step": step, **{f"eval_{name}_loss": 3.0 + place / 10 for place, name in enumerate(sources)}}
            for step in (10, 20)
        ]

    return put


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


def renamed(*names):
    """Other sources in an evaluation, each with the same figures."""

    def rename(found):
        for moment in found.values():
            for part in ("sources", "written"):
                moment[part] = dict.fromkeys(names, moment[part]["mine"])

    return rename


@pytest.mark.parametrize(
    "names", [("_a", "_b"), ("_a", "b"), ("a$x^$", "b$\\foo$"), ("$\\frac{$_x", "$1"), ("%(d)s {0}", "a\\nb")]
)
def test_names_are_drawn_as_they_are(run, tmp_path, names):
    runs = [read_run(run(f"folder-{number}"), name) for number, name in enumerate(names)]
    drawings = {picture.name: picture for picture in pictures(runs)}
    assert len(drawings) == 9
    for name in names:
        assert f">{pages_text(name)}<" in drawings["norm"].svg.replace("\u200b", "!"), name
        assert f"{name} from " in drawings["norm"].caption
    (folder,) = (one.folder for one in runs[:1])
    change(folder, "evaluation.json", renamed(*names))
    change(folder, "trainer_state.json", without("eval_mine_loss"))
    change(folder, "trainer_state.json", with_sources(names))
    alone = {picture.name: picture.svg for picture in pictures([read_run(folder)])}
    for picture, name in ((picture, name) for picture in ("evaluation", "gap") for name in names):
        assert f">{pages_text(name)}<" in alone[picture], (picture, name)
    assert write_report([folder]).exists()


def pages_text(words):
    return words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def test_pictures_have_whole_steps_and_no_control_character(run):
    folder = run("first")
    change(folder, "evaluation.json", renamed("a\x1b[31m\nb"))
    change(folder, "trainer_state.json", lambda state: state.update(log_history=state["log_history"][:3:2]))
    change(
        folder,
        "trainer_state.json",
        lambda state: [entry.update(step=n) for n, entry in enumerate(state["log_history"], 1)],
    )
    runs = [read_run(folder)]
    assert not any("\x1b" in picture.svg + picture.caption for picture in pictures(runs))
    with matplotlib.rc_context(_style(PRINT)):
        axes, _ = drawn(_curves("any", ("grad_norm",)), runs)
    assert all(tick == round(tick) for tick in axes.get_xticks())


def test_long_names_leave_room_for_what_is_drawn(run):
    folder, long = run("first"), "a_source_of_a_very_long_name_" * 4
    change(folder, "evaluation.json", renamed(f"{long}1", f"{long}2"))
    found = {p.name: p for p in pictures([read_run(folder, "r" * 100), read_run(folder, "s" * 100)])}
    shown = re.findall(r">(a_source\S*)<", found["gap"].svg)
    assert [words[-2:] for words in shown] == ["_1", "_2"] and all(len(words) <= 32 for words in shown)
    with matplotlib.rc_context(_style(PRINT)):
        axes, _ = drawn(_bars("any", ("steering_gap",), 0), [read_run(folder)])
    assert axes.get_window_extent().width > 150


@pytest.mark.parametrize("name", ["mine", "a_source_of_a_long_name"])
def test_figures_below_bars_do_not_run_into_each_other(run, name):
    folder = run("first")

    def put(found):
        for moment, gap, spread in (("base", -0.061, 0.06), ("model", 0.02, 0.06)):
            found[moment]["sources"] = {name: {"steering_gap": figure(gap, spread)}}

    change(folder, "evaluation.json", put)
    with matplotlib.rc_context(_style(PRINT)):
        axes, _ = drawn(_bars("any", ("steering_gap",), 0), [read_run(folder)])
    low, high = axes.get_xlim()
    boxes = [words.get_window_extent() for words in axes.get_xticklabels() if low <= words.get_position()[0] <= high]
    assert len(boxes) > 2 and all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_a_model_that_diverged_is_told_of(run):
    folder = run("first")

    def diverge(found):
        (source,) = found["model"]["sources"].values()
        for name, entry in source.items():
            if isinstance(entry, dict) and "value" in entry:
                source[name] = {"value": None, "low": None, "high": None, "n": 40}
        source["scores"] = [[None, None]] * 40

    change(folder, "evaluation.json", diverge)
    text = write_report([folder]).with_suffix(".md").read_text()
    assert "before 57, after" not in text and "sum of log p: before 47;" in text
    assert "Scores of held-out pairs" not in text and "| nan |" in text and "- steering gap" not in text


def test_what_was_written_is_ordered_for_comparing(run, tmp_path):
    folders = [run("first"), run("second")]

    def add(found):
        for moment in found.values():
            own = moment["written"]["mine"]
            alone = {"prompt": "Of one alone?", "people": "", "good": "", "bad": ""}
            moment["written"] = {"mine": {**own, "outputs": [alone, *own["outputs"]]}, "other": own}

    change(folders[0], "evaluation.json", add)
    titles = [table.title for table in tables([read_run(folders[0])]) if table.title.startswith("Written")]
    assert [title.partition("prompts of ")[2] for title in titles] == [
        "mine, before",
        "mine, after",
        "other, before",
        "other, after",
    ]
    text = write_report(folders, tmp_path / "both.html").with_suffix(".md").read_text()
    assert text.index("alert") < text.index("Of one alone?")  # for the first both models wrote


def test_a_table_of_facts_has_no_empty_head(run):
    html = write_report([run("first")]).read_text()
    facts = html[html.index("To repeat first") :]
    assert "<thead>" in html and "<thead>" not in facts[: facts.index("</table>")]


def test_what_markdown_would_obey_is_shown(run):
    nasty = "~~b~~ $a$ ![i](x) <img> &lt; `c`"
    assert plain(nasty) == "\\~\\~b\\~\\~ \\$a\\$ !\\[i\\](x) &lt;img> &amp;lt; \\`c\\`"
    folder = run("first", more=(nasty,))
    command = "python -m coh.coh_train --run_name '```\n# not a title'"
    change(folder, "coh.json", lambda about: about["run"].update(command=command))
    text = write_report([folder]).with_suffix(".md").read_text()
    assert plain(nasty) in text and "~~b~~" not in text
    assert f"````sh\n{command}\n````\n" in text and block("a", "sh") == "```sh\na\n```"


def test_pictures_are_found_whatever_the_report_is_called(run, tmp_path):
    path = write_report([run("first")], tmp_path / "my comparison (1) #2 50%.html")
    links = re.findall(r"^!\[.*\]\((\S+)\)$", path.with_suffix(".md").read_text(), re.M)
    assert len(links) == 9 and not any(sign in link for link in links for sign in "() #")
    assert all((tmp_path / unquote(link)).is_file() for link in links)


def test_benchmarks_stand_before_and_after_in_page_and_text(run, tmp_path):
    folder = run("first")

    def add(found):
        for moment, value in (("base", 0.4), ("model", 0.6)):
            values = {"acc,none": value, "acc_stderr,none": 0.1, "sample_len": 25, "alias": "piqa"}
            found[moment]["benchmarks"] = {"a_task": values}
        found["model"]["benchmarks"]["other"] = {"word_perplexity,none": 1234.5, "word_perplexity_stderr,none": None}

    assert not any("lm-eval" in table.title for table in tables([read_run(folder)]))
    change(folder, "evaluation.json", add)
    (table,) = (table for table in tables([read_run(folder)]) if "lm-eval" in table.title)
    assert table.columns == ("task", "measure", "examples", "before", "after") and table.num_words == 2
    assert table.rows == (
        ("a_task", "acc", "25", "0.400 ± 0.100", "0.600 ± 0.100"),
        ("other", "word_perplexity", "-", "-", "1234.5"),
    )
    path = write_report([folder])
    assert "Benchmarks of lm-eval" in read(path).text
    assert "| a\\_task | acc | 25 | 0.400 ± 0.100 |" in path.with_suffix(".md").read_text()
    (both,) = (table for table in tables([read_run(folder), read_run(run("second"))]) if "lm-eval" in table.title)
    assert both.columns[3:] == ("first, before", "first, after")  # of the second there are none


def test_what_no_judge_judged_is_said(run):
    folder = run("first")
    change(
        folder,
        "evaluation.json",
        lambda found: found["model"]["written"]["mine"].update(num_not_judged={"good_over_bad": 3}),
    )
    before, after = (table for table in tables([read_run(folder)]) if table.title.startswith("Won on"))
    assert before.rows[0][0] == "good words against bad ones"
    assert after.rows[0][0] == "good words against bad ones (3 not judged: ties)"


def thumbs(folder, *kinds, num_chains=30, **arguments):
    """Makes a run one whose feedback gave these kinds of chain."""

    def tell(about):
        about["templates"] = {"tasks": {"general": {"p": ["..."], "n": ["..."], "pn": ["..."]}}}
        about["data"]["templates"] = {f"general.{kind}.1": num_chains for kind in kinds}
        about["arguments"].update({"chains": ["p", "n", "pn", "np"], "feedback_data": ["mine.jsonl"], **arguments})

    change(folder, "coh.json", tell)
    return answer_of(read_run(folder))


def test_feedback_without_pairs_is_said_with_what_to_do(run, tmp_path, monkeypatch):
    folder = run("first", evaluation=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").touch()
    found = thumbs(folder, "p", "n", feedback_format=["thumbs"], seq_length=64)
    assert found.answer.startswith("Not measured") and "Nothing in its feedback is compared" in found.evidence
    assert "--eval_feedback_data" in found.remark
    args = evaluate_args(found.command)
    assert (args.feedback_data, args.split, args.max_length) == (["rows.jsonl"], "all", 64)
    assert (args.model, args.base, args.feedback_format) == (str(folder), "a-model", "auto")
    path = write_report([folder])
    for words in (read(path).text, path.with_suffix(".md").read_text()):
        assert "Nothing in its feedback is compared" in words
    for kind in ("tie", "verbatim", "critique"):
        assert "Nothing in its" in thumbs(folder, "p", kind).evidence


def test_feedback_of_which_nothing_is_known_gets_the_old_answer(run):
    folder = run("first", evaluation=False)
    for kinds, more in (
        *(((kind, "p"), {}) for kind in ("pn", "np", "question", "refine", "best_first", "worst_first")),
        (("p", "n"), {"chains": ["p", "n"]}),  # pairs would have given the same
        (("p", "n"), {"num_chains": 4}),
        (("p", "n"), {"eval_feedback_data": ["pairs.jsonl"], "eval_pairs": 0}),
    ):
        assert thumbs(folder, *kinds, **more) == verdict(read_run(folder)), (kinds, more)
    assert "Nothing in its" in thumbs(folder, "p", "n", eval_feedback_data=["x.jsonl"], eval_pairs=20).evidence
    found = thumbs(run("measured"), "p", "n")  # by other feedback
    assert "Over 40 held-out pairs" in found.evidence


def test_what_was_written_for_no_prompt_lacks_no_figure(run):
    folder = run("first")
    nothing = {"figures": {"good": {}, "bad": {}}, "wins": {}, "judge": None, "outputs": []}
    change(folder, "evaluation.json", lambda found: found["model"]["written"].update(other=nothing))
    assert read_run(folder).missing == ()


def test_words_of_a_command_are_not_broken(run):
    html = write_report([run("first")]).read_text()
    assert "<pre><span>python</span> <span>-m</span> <span>coh.coh_train</span> <span>--seed</span>" in html


def test_what_is_missing_is_named_and_not_drawn(run):
    folder = run("first", evaluation=False)
    (folder / "coh.json").unlink()
    text = write_report([folder]).with_suffix(".md").read_text()
    assert text.rstrip().splitlines()[-1].startswith("*Not recorded, and so not shown: ")
    page = read(folder / "report.html").text
    for words in ("figures before training", "outputs (coh.evaluate", "data, arguments and versions"):
        assert words in page
    assert "Pair accuracy on held-out" not in page and "Training loss" in page
    assert page.index("Not recorded") > page.index("To repeat first")


def test_two_runs_stand_side_by_side(run, tmp_path, capsys):
    folders = [str(run("first")), str(run("second", seed=7))]
    main([*folders, "--output", str(tmp_path / "both.html")])
    assert capsys.readouterr().out.split() == [str(tmp_path / "both.html"), str(tmp_path / "both.md")]
    page = read(tmp_path / "both.html").text
    assert "Options that differ" in page and "second, after" in page and "Command of first" in page


def test_folders_may_stand_behind_an_option(run, tmp_path, capsys):
    folders = [str(run("first")), str(run("second", seed=7))]
    main(["--output", str(tmp_path / "both.html"), *folders])
    assert capsys.readouterr().out.split() == [str(tmp_path / "both.html"), str(tmp_path / "both.md")]
    assert "second, after" in read(tmp_path / "both.html").text
    main([folders[0], "--output", str(tmp_path / "other.html"), folders[1]])
    assert "first, after" in read(tmp_path / "other.html").text


def test_folders_of_one_name_are_told_apart(run, tmp_path):
    first, second = run("one"), run("two")
    for folder in (first, second):
        (folder / "same").mkdir()
        for name in ("trainer_state.json", "coh.json"):
            (folder / name).rename(folder / "same" / name)
    page = read(write_report([first / "same", second / "same"], tmp_path / "both.html")).text
    assert "one/same" in page and "two/same" in page


def test_several_runs_leave_each_its_own_report(run, tmp_path, monkeypatch, capsys):
    folders = [run("first"), run("second", seed=7)]
    own = write_report(folders[:1])
    before = {path: path.read_bytes() for path in (own, *own.parent.rglob("*.png"))}
    monkeypatch.chdir(tmp_path)
    main([str(folder) for folder in folders])
    assert capsys.readouterr().out.split() == ["comparison.html", "comparison.md"]
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(list((tmp_path / "comparison_pictures").glob("*.png"))) == 9
    assert not (folders[1] / "report.html").exists()


def test_tables_of_many_columns_take_the_whole_width(run, tmp_path):
    path = write_report([run("first"), run("second", seed=7)], tmp_path / "both.html")
    tables = re.findall(
        r'<section class="(table[^"]*)"><h2>([^<]*)</h2>\n<div class="scroll"><table([^>]*)>', path.read_text()
    )
    found = {title.split(",")[0]: (look, classes) for look, title, classes in tables}
    assert found["Measured on mine"] == ("table across", ' class="wide"')  # five columns
    assert found["Options that differ"] == ("table", ' class="wide"')  # three: half a page is enough, a phone is not
    assert found["To repeat first"] == ("table", "")


def test_options_are_written_as_on_the_command_line(run, tmp_path):
    folders = [run("first"), run("second", seed=7)]
    for folder, chains, flag in zip(folders, (["p", "n", "two words"], ["p"]), (True, False)):
        more = {"chains": chains, "bf16": flag, "model_name": "one" if flag else None}
        change(folder, "coh.json", lambda about, more=more: about["arguments"].update(more))
    text = write_report(folders, tmp_path / "both.html").with_suffix(".md").read_text()
    assert "| chains | p n 'two words' | p |" in text and "| bf16 | true | false |" in text
    assert "| model\\_name | one | - |" in text


def with_pairs(gaps, num_pairs=60, spread=0.5, sources=("mine",), has_scores=True):
    """Figures before and after training of sources whose pairs differ much from each other, and change alike."""
    apart = np.linspace(-2, 2, num_pairs)

    def of(gap):
        better = apart + gap / 20 + np.linspace(-0.01, 0.01, num_pairs)
        scores = {"scores": [[value, 0.0] for value in better]} if has_scores else {}
        return {"steering_gap": figure(gap, spread, num_pairs), **scores}

    def put(found):
        for moment, gap in zip(("base", "model"), gaps):
            found[moment]["sources"] = {name: of(gap) for name in sources}

    return put


def judged(folder, how):
    change(folder, "evaluation.json", how)
    return verdict(read_run(folder))


@pytest.mark.parametrize("has_scores", [True, False])
def test_a_verdict_says_what_its_intervals_say(run, has_scores):
    folder = run("first")
    for gaps, spread, look, answer in (
        ((0.1, 3.0), 0.5, "good", "Yes: the words came to mean something"),
        ((1.0, 3.0), 0.5, "good", "Yes: the words came to mean more"),
        ((3.0, 1.0), 0.5, "problem", "Less than before: "),
        ((3.0, 0.2), 0.5, "problem", "No: "),
        ((3.0, -1.0), 0.5, "problem", "No: "),
        ((1.0, 1.0), 0.5, "warning", "Not told: by 60 held-out pairs"),
        ((-5.0, 0.2), 0.5, "warning", "Not told: "),  # better than before, and yet nothing
    ):
        found = judged(folder, with_pairs(gaps, spread=spread, has_scores=has_scores))
        assert (found.look, found.answer.startswith(answer)) == (look, True), (gaps, found)
        assert bool(found.command) == (look == "warning")
        for gap in gaps:
            assert f"{gap:.3f} ({gap - spread:.3f}, {gap + spread:.3f})" in found.evidence
        assert ("the change pair by pair" in found.evidence) == has_scores


def test_a_verdict_by_pairs_tells_what_two_intervals_cannot(run):
    folder = run("first")
    gaps = (1.0, 1.6)  # their intervals meet, and each of the pairs moved the same way
    assert judged(folder, with_pairs(gaps)).look == "good"
    assert judged(folder, with_pairs(gaps, has_scores=False)).look == "warning"
    change(folder, "evaluation.json", with_pairs(gaps))
    found = judged(folder, lambda found: found["base"]["sources"]["mine"].update(num_too_long=2))  # other pairs
    assert found.look == "warning" and "the change pair by pair" not in found.evidence
    # Where the gap itself went down, the change per token alone is no answer.
    against = with_pairs((1.0, 1.6))
    change(folder, "evaluation.json", against)
    found = judged(folder, lambda found: found["model"]["sources"]["mine"].update(steering_gap=figure(0.9, 0.5, 60)))
    assert found.look == "warning"


def test_a_verdict_is_over_all_pairs_of_what_was_measured_twice(run):
    folder = run("first")
    found = judged(folder, with_pairs((0.0, 2.0), 30, 1.0, ("a", "b")))
    # Two sources apart: half of the root of two squares.
    assert "Over 60 held-out pairs" in found.evidence and "2.000 (1.293, 2.707) after" in found.evidence
    found = judged(folder, lambda found: found["base"]["sources"].pop("b"))
    assert "Over 30 held-out pairs" in found.evidence
    found = judged(folder, lambda found: found["base"]["sources"].update(c=found["base"]["sources"].pop("a")))
    assert found.answer.startswith("Not measured") and "both before training and after" in found.evidence


def test_a_source_of_one_pair_counts_in_the_mean_and_not_in_the_spread(run):
    folder = run("first")
    change(folder, "evaluation.json", with_pairs((0.0, 3.0), 30))

    def add_one(found):
        for moment, gap in (("base", 0.0), ("model", 34.0)):
            alone = {"value": gap, "low": None, "high": None, "n": 1}
            found[moment]["sources"]["alone"] = {"steering_gap": alone, "scores": [[gap / 20, 0.0]]}

    found = judged(folder, add_one)
    assert found.look == "good" and "Over 31 held-out pairs" in found.evidence
    low, high = (4 + 30 / 31 * side for side in (-0.5, 0.5))
    assert f"4.000 ({low:.3f}, {high:.3f}) after" in found.evidence

    def leave_singles(found):
        for moment, gap in (("base", 0.0), ("model", 3.0)):
            alone = {"steering_gap": {"value": gap, "low": None, "high": None, "n": 1}, "scores": [[gap / 20, 0.0]]}
            found[moment]["sources"] = {f"source {n}": alone for n in range(25)}

    found = judged(folder, leave_singles)
    assert found.answer.startswith("Not told: by 25") and "3.000 after" in found.evidence


def test_pairs_of_one_prompt_are_one_voice_and_others_are_not_compared(run):
    folder = run("first")

    def put(prompts, others=None):
        def of(gap, keys):
            changes = gap / 20 * np.array([1.0] * 30 + [-1.0] * 14)
            scores = [[float(value), 0.0] for value in changes]
            return {"steering_gap": figure(gap, 0.5, 44), "scores": scores, "prompts": keys}

        def how(found):
            for moment, gap, keys in (("base", 0.0, others or prompts), ("model", 1.0, prompts)):
                found[moment]["sources"] = {"mine": of(gap, keys)}

        return how

    apart, few = [f"{n}" for n in range(44)], [f"{n // 10}" for n in range(44)]
    assert judged(folder, put(apart)).look == "good"
    assert judged(folder, put(few)).look == "warning"  # three prompts of five went up
    assert "which pair is which was not kept" in judged(folder, put(apart, apart[::-1])).evidence


@pytest.mark.parametrize(("num_pairs", "words"), [(1, "1 held-out pair is"), (2, "2 held-out pairs are"), (19, "19 h")])
def test_few_pairs_give_no_verdict_and_no_interval(run, num_pairs, words):
    folder = run("first")
    found = judged(folder, with_pairs((0.0, 9.0), num_pairs))
    assert found.look == "warning" and found.answer.startswith(words) and "too few to say" in found.answer
    assert "9.000" in found.evidence and "(" not in found.evidence
    assert judged(folder, with_pairs((0.0, 9.0), 20)).look == "good"
    alone = {"value": 9.0, "low": None, "high": None, "n": 1}  # no interval at all
    found = judged(folder, lambda found: found["model"]["sources"]["mine"].update(steering_gap=alone))
    assert found.answer.startswith("1 held-out pair is")


def test_no_figures_are_said_with_how_to_have_them(run):
    folder = run("first", evaluation=False)
    found = verdict(read_run(folder))
    assert found.answer.startswith("Not measured") and "coh.evaluate" in found.command
    (folder / "evaluation.json").write_text(json.dumps({"model": measured(62.0, 2.5)}))
    found = verdict(read_run(folder))
    assert found.answer.startswith("Not measured") and "2.500 (1.500, 3.500)" in found.evidence
    (folder / "evaluation.json").write_text(json.dumps({"base": measured(62.0, 2.5)}))
    assert "after training" in verdict(read_run(folder)).evidence


def evaluate_args(command):
    """The options of a command, as the program itself reads them."""
    first, second = command.splitlines()
    words = shlex.split(first)
    assert words[:3] == ["python", "-m", "coh.evaluate"] and second.startswith("python -m coh.report ")
    (args,) = parse_or_raise([EvaluateArgs], words[3:])
    return args


def test_the_command_that_measures_more_is_one_of_the_runs_own_data(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("two words.jsonl", "other.jsonl", "rows.jsonl"):
        (tmp_path / name).touch()
    folder = run("a folder")
    change(folder, "evaluation.json", with_pairs((0.0, 9.0), 2))
    given = {
        "feedback_data": ["mine=two words.jsonl"],
        "feedback_format": ["pairs"],
        "feedback_columns": ["prompt=the question"],
        "tie_margin": 0.5,
        "attributes": ["helpfulness"],
        "webgpt_dataset_test_size": 0.2,
        "pretrain_data": "none",
        "seq_length": 64,
        "trust_remote_code": True,
    }
    change(folder, "coh.json", lambda about: about["arguments"].update(given))
    args = evaluate_args(verdict(read_run(folder)).command)
    assert (args.model, args.base, args.json) == (str(folder), "a-model", str(folder / "evaluation.json"))
    assert (args.feedback_data, args.split, args.max_pairs) == (given["feedback_data"], "held_out", MORE_PAIRS)
    assert (args.feedback_format, args.feedback_columns) == ("pairs", given["feedback_columns"])
    assert (args.tie_margin, args.webgpt_dataset_test_size, args.max_length) == (0.5, 0.2, 64)
    assert args.trust_remote_code and "--attributes" not in verdict(read_run(folder)).command

    def command(**more):
        change(folder, "coh.json", lambda about: about["arguments"].update(more))
        return verdict(read_run(folder))

    args = evaluate_args(command(eval_feedback_data=["other.jsonl"]).command)
    assert (args.feedback_data, args.split) == (["other.jsonl"], "all")
    args = evaluate_args(command(eval_feedback_data=["mine=two words.jsonl"]).command)
    assert args.split == "held_out"  # what was trained on is never measured
    found = command(eval_feedback_data=None, feedback_data=["/tmp/coh-rows-a/rows_0.jsonl"])
    args = evaluate_args(found.command)
    assert (args.feedback_data, args.split) == (["rows.jsonl"], "all") and "rows.jsonl: feedback" in found.remark


def test_the_answer_comes_first_then_tiles_outputs_pictures_and_figures(run, tmp_path):
    folders = [run("first"), run("second")]
    change(folders[0], "evaluation.json", with_pairs((0.1, 3.0)))
    change(folders[1], "evaluation.json", with_pairs((3.0, 1.0)))
    for folder in folders:
        change(folder, "trainer_state.json", without("grad_norm"))
    path = write_report(folders[:1])
    order = ("Yes: the words", "steering gap: ", "What it writes", "report_pictures/", "Figures", "Not recorded")
    text = path.with_suffix(".md").read_text()
    assert [text.index(words) for words in order] == sorted(text.index(words) for words in order)
    html = path.read_text()
    order = (
        'class="verdict good"',
        'class="glance"',
        "What it writes",
        'class="pictures"',
        ">Figures<",
        'class="quiet"',
    )
    places = [html.index(words, html.index("<body>")) for words in order]
    assert places == sorted(places) and "verdict warning" not in html
    both = write_report(folders, tmp_path / "both.html")
    for words in (read(both).text, both.with_suffix(".md").read_text()):
        assert words.index("first: Yes: ") < words.index("second: Less than before: ") < words.index("feedback loss")
        assert words.index("first: ", words.index("To repeat it")) > words.index("To repeat second")


def test_tiles_of_pairs_say_how_many(run):
    folder = run("first")
    tiles = {what: more for what, _, more in glance(read_run(folder))}
    assert tiles["pair accuracy, by words"].startswith("of 40 held-out pairs; 57.0 % before")
    assert tiles["steering gap"] == "nats per pair, over 40 held-out pairs; 0.200 before"
    change(folder, "evaluation.json", lambda found: found.pop("base"))
    assert {what: more for what, _, more in glance(read_run(folder))}[
        "steering gap"
    ] == "nats per pair, over 40 held-out pairs"


def test_steps_and_tokens_are_those_of_the_run(run):
    folder = run("first")
    tile = ("tokens read", "30,000", "in 30 steps")
    assert tile in glance(read_run(folder))
    change(folder, "trainer_state.json", lambda state: state.update(global_step=34, num_input_tokens_seen=34567))
    assert ("tokens read", "34,567", "in 34 steps") in glance(read_run(folder))
    change(folder, "trainer_state.json", lambda state: state.update(num_input_tokens_seen=0))  # not counted
    assert ("tokens read", "30,000", "in 34 steps") in glance(read_run(folder))
    change(folder, "trainer_state.json", without("num_tokens_seen", "loss"))
    change(folder, "trainer_state.json", lambda state: state.update(num_input_tokens_seen=900))  # ended before a log
    assert ("tokens read", "900", "in 34 steps") in glance(read_run(folder))
    assert "the number of tokens read" not in read_run(folder).missing


SERIES = {
    "loss": "the loss of training",
    "loss_feedback": "the loss on feedback",
    "loss_pretrain": "the loss on pretraining text",
    "learning_rate": "the learning rate",
    "grad_norm": "the gradient norm",
    "tokens_per_second": "tokens per second",
    "num_tokens_seen": "the number of tokens read",
    "train_runtime": "the time of training",
}


def with_text(about):
    about["arguments"] |= {"pretrain_data": "c4", "pretrain_ratio": 1.0}


@pytest.mark.parametrize(("series", "words"), SERIES.items(), ids=SERIES)
def test_each_series_that_is_missing_is_named(run, series, words):
    folder = run("first")
    change(folder, "coh.json", with_text)
    change(folder, "trainer_state.json", with_sources(["mine"]))
    assert read_run(folder).missing == ()
    change(folder, "trainer_state.json", without(series))
    assert read_run(folder).missing == (words,)


def test_text_is_missing_only_where_there_was_some(run):
    folder = run("first")
    change(folder, "trainer_state.json", without("loss_pretrain"))
    change(folder, "evaluation.json", lambda found: [moment.pop("text_loss") for moment in found.values()])
    assert read_run(folder).missing == ()
    change(folder, "coh.json", lambda about: about["arguments"].update(pretrain_data="none", pretrain_ratio=1.0))
    assert read_run(folder).missing == ()
    change(folder, "coh.json", with_text)
    assert read_run(folder).missing == (
        "the loss on pretraining text",
        "the loss on held-out text in evaluations",
        "the loss on held-out text before training (coh.evaluate --pretrain_data)",
        "the loss on held-out text after training (coh.evaluate --pretrain_data)",
    )


def test_other_facts_that_are_missing_are_named(run):
    folder = run("first")
    change(folder, "coh.json", lambda about: about["run"].pop("commit"))
    change(folder, "evaluation.json", lambda found: found["base"]["written"]["mine"]["figures"]["bad"].pop("rouge1"))
    commit, rouge = read_run(folder).missing
    assert commit.startswith("coh's commit") and rouge.startswith("ROUGE") and "rouge-score" in rouge
    change(folder, "coh.json", lambda about: about.pop("run"))
    assert read_run(folder).missing[0] == "how it was started: command, commit, device"


def test_a_run_from_python_gives_its_call(run):
    folder = run("first", seed=7)
    change(folder, "coh.json", lambda about: about["run"].pop("command"))
    more = {"chains": ["p"], "lora_r": 16, "report_to": [], "hub_token": "<HUB_TOKEN>", "learning_rate": 1e-4}
    change(folder, "coh.json", lambda about: about["arguments"].update(more))
    path = write_report([folder])
    for words in (read(path).text, path.with_suffix(".md").read_text()):
        assert "It was called from Python, so there is no command." in words
        call = words[words.index("coh.train(") :].split("\n)")[0]
        lines = {line.strip() for line in call.splitlines()[1:]}
        assert lines == {"model_name='a-model',", "chains=['p'],", "learning_rate=0.0001,", "seed=7,"}
    assert read_run(folder).missing == ()  # there never was a command
    change(folder, "coh.json", lambda about: about["arguments"].update(feedback_data=["/tmp/coh-rows-a/rows_0.jsonl"]))
    assert "rows were given in memory" in write_report([folder]).with_suffix(".md").read_text()
    change(folder, "coh.json", lambda about: about.update(arguments={}))
    assert "coh.json has no arguments" in write_report([folder]).with_suffix(".md").read_text()


def drawn(draw, runs):
    """The axes after a drawing, as it is laid out, and the sentence that tells of it."""
    figure = Figure(figsize=(6.2, 3.1), layout="constrained")
    axes = figure.add_subplot()
    told = draw(runs, axes, PRINT)
    FigureCanvasAgg(figure).draw()
    return axes, told


@pytest.mark.parametrize(("num_runs", "num_sources"), [(1, 1), (1, 3), (1, 7), (1, 16), (2, 7), (6, 9)])
def test_no_two_curves_look_alike(run, num_runs, num_sources):
    folders = [run(f"run-{number}") for number in range(num_runs)]
    for folder in folders:
        change(folder, "trainer_state.json", without("eval_mine_loss"))
        change(folder, "trainer_state.json", with_sources([f"source-{place}" for place in range(num_sources)]))
    runs = [read_run(folder) for folder in folders]
    streams = _curves("any", ("loss_feedback", "loss_pretrain"))
    text = set()
    for draw, num_curves in (
        (_evaluation, num_runs * (num_sources + 1)),
        (streams, 2 * num_runs),
        (_curves("any", ("grad_norm",)), num_runs),
    ):
        axes, _ = drawn(draw, runs)
        # Dashes as they are drawn: linestyle says "--" of each that is no plain line.
        looks = {
            (line.get_color(), line.get_marker(), str(line._unscaled_dash_pattern)): line for line in axes.get_lines()
        }
        assert len(axes.get_lines()) == len(looks) == num_curves
        text |= {line.get_color() for line in axes.get_lines() if "pretraining text" in line.get_label()}
        feedback = {line.get_color() for line in axes.get_lines() if "pretraining text" not in line.get_label()}
        assert not text & feedback and len(text) == 1


def test_a_source_has_one_colour_in_all_runs(run):
    folders = [run("first"), run("second")]
    for folder, names in zip(folders, (["a", "b"], ["b"])):
        change(folder, "trainer_state.json", without("eval_mine_loss"))
        change(folder, "trainer_state.json", with_sources(names, text=False))
    axes, _ = drawn(_evaluation, [read_run(folder) for folder in folders])
    colours = {line.get_label(): line.get_color() for line in axes.get_lines()}
    assert colours["first, b"] == colours["second, b"] != colours["first, a"]


@pytest.mark.parametrize("num_sources", [1, 7])
def test_a_legend_lies_below_the_axes(run, num_sources):
    folder = run("first")
    change(folder, "trainer_state.json", with_sources([f"a_source_of_long_name_{n}" for n in range(num_sources)]))
    axes, _ = drawn(_evaluation, [read_run(folder)])
    (legend,) = axes.figure.legends
    box, (width, _) = legend.get_window_extent(), axes.figure.canvas.get_width_height()
    assert axes.get_legend() is None and box.y1 < axes.get_window_extent().y0
    assert box.x0 >= 0 and box.x1 <= width and axes.get_window_extent().height > 120


@pytest.mark.parametrize("draw", [_histogram, _reliability])
def test_scores_are_drawn_of_each_run_by_name(run, draw):
    runs = [read_run(run("first")), read_run(run("second")), read_run(run("unmeasured", evaluation=False))]
    axes, told = drawn(draw, runs)
    labels = {words.split(",")[0] for words in axes.get_legend_handles_labels()[1]}
    assert labels == {"first", "second"} and "first, " in told and "second, " in told
    one, told = drawn(draw, runs[:1])
    assert "first" not in told and all("first" not in words for words in one.get_legend_handles_labels()[1])
    assert draw(runs[2:], Figure().add_subplot(), PRINT) is None


def test_bars_before_training_tell_their_run(run):
    axes, _ = drawn(_bars("any", ("steering_gap",), 0), [read_run(run("first")), read_run(run("second"))])
    looks = [bars[0].get_facecolor() for bars in axes.containers if hasattr(bars[0], "get_facecolor")]
    assert len(looks) == len(set(looks)) == 4


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
