"""What a reader may paste: every command in README and docs names real modules, files and options."""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from coh.arguments import _build_parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = {"train.sh": "coh.coh_train", "llama_train.sh": "coh.coh_train"}


def commands(page: Path) -> list[list[str]]:
    """The words of every command in the page's sh blocks; a line may go on behind a backslash."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    return [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]


@cache
def programs() -> dict[str, list[type]]:
    """The dataclasses that hold the options of each program."""
    from coh.coh_train import CoHDataArgs, CoHTrainArgs, ExperimentArgs
    from coh.demo import DemoArgs
    from coh.evaluate_args import EvaluateArgs
    from coh.experiments.command import ExperimentsArgs
    from coh.generate_args import GenerateArgs
    from coh.merge import MergeArgs
    from coh.preview.command import PreviewArgs
    from coh.report.command import ReportArgs
    from coh.score import ScoreArgs

    training = [ExperimentArgs, CoHDataArgs, CoHTrainArgs]
    return {
        "coh.coh_train": training,
        "coh.preview": [*training, PreviewArgs],
        "coh.generate": [GenerateArgs],
        "coh.score": [ScoreArgs],
        "coh.evaluate": [EvaluateArgs],
        "coh.demo": [DemoArgs],
        "coh.experiments": [ExperimentsArgs],
        "coh.merge": [MergeArgs],
        "coh.report": [ReportArgs],
    }


@cache
def options(module: str) -> set[str]:
    return set(_build_parser(programs()[module], None, None)._option_string_actions)


def ours(words: list[str]) -> tuple[str, list[str]] | None:
    """The module of ours that a command runs, and the words behind it."""
    if words[0] == "sh" and words[1] in SCRIPTS:
        return SCRIPTS[words[1]], words[2:]
    if "-m" in words and words[words.index("-m") + 1].startswith("coh."):
        place = words.index("-m") + 1
        return words[place], words[place + 1 :]
    return None


ALL = [(page, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(
    ("page", "words"), ALL, ids=lambda value: value.name if isinstance(value, Path) else " ".join(value)[:60]
)
def test_commands_have_real_options(page, words):
    found = ours(words)
    if found is None:
        assert words[0] in {"make", ".", "pip", "conda", "git", "python", "export"}, f"{page.name}: {words}"
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), words
        return
    module, arguments = found
    for word in arguments:
        if word.startswith("--"):
            assert word.split("=")[0] in options(module), f"{page.name}: {module} has no {word}"


def test_the_pages_are_not_empty_of_commands():
    assert sum(ours(words) is not None for _, words in ALL) >= 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_named_in_the_text_exist(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    if page.name == "migration.md":
        text = re.sub(r"^\|[^|]*\|", "|", text, flags=re.M)  # the first column names other programs' options
    known = set().union(
        *map(options, ("coh.preview", "coh.generate", "coh.score", "coh.evaluate", "coh.demo", "coh.merge"))
    )
    for name in re.findall(r"`(--[a-z_0-9]+)", text):
        assert name in known | {"--no-deps", "--help"}, name


def test_the_design_lists_the_rooms_that_the_house_has():
    from test_house import FLOORS

    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    listed = {}
    for floor, rooms in re.findall(r"^\| (\d+) \| (.+) \|$", text, re.M):
        listed |= {room.strip("`").replace("/", "."): int(floor) for room in rooms.split(", ")}
    assert listed == FLOORS
