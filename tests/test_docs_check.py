"""No command of README and docs is forgotten: each is run by `make docs-check`, or declared with a reason."""

import re
import shlex
from collections import Counter
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest
from docs_check import NOT_RUN, OF_THE_REPOSITORY, PAGES, Command, all_commands, check, commands, furnish, wanted_models
from test_docs import programs

from coh.arguments import _build_parser, _options, _split

ROOT = Path(__file__).parents[1]
ALL = all_commands()
LAUNCHERS = {"train.sh": 2, "llama_train.sh": 3}  # words before the program's own: ids, and a model
# What docs-check can run; anything else has to be declared.
RUNNABLE = re.compile(r"python: |python -m coh\.|sh (llama_)?train\.sh |python benchmarks/|export ")


@cache
def options(module):
    """The options of a program, which convert their words; None where it has other words."""
    own = (
        programs().get(module) if module not in ("coh.report", "coh.experiments") else None
    )  # a word without an option begins them
    return _options(_build_parser(own, None, None), own) if own else None


def program(words):
    """(module of ours, its words) of a command; None where it runs none."""
    if words[0] == "sh" and words[1] in LAUNCHERS:
        own = words[LAUNCHERS[words[1]] :]
        first = next((place for place, word in enumerate(own) if word.startswith("--")), len(own))
        return "coh.coh_train", own[first:]
    for place, word in enumerate(words):
        if word.startswith("coh.") and words[place - 1] in ("-m", "--module"):
            return word, words[place + 1 :]
    return None


@pytest.mark.parametrize("command", ALL, ids=lambda one: f"{one.page}: {' '.join(one.words.split())[:70]}")
def test_a_command_is_run_or_declared_and_parses(command):
    assert command.reason or RUNNABLE.match(command.words), f"{command}: nothing runs it: add it to NOT_RUN, with why"
    found = program(shlex.split(command.words, comments=True))
    if found is None:
        return
    module, words = found
    for given in _split(words) if options(module) else ():
        if given.name != "--config":
            assert given.name in options(module), f"{command}: {module} has no {given.name}"
            options(module)[given.name].convert(given)  # raises ConfigError


def test_a_reason_is_of_some_command_and_says_something():
    for pattern, reason in NOT_RUN.items():
        assert any(fnmatchcase(one.words, pattern) for one in ALL), f"{pattern}: no such command any more"
        assert len(reason) > 4
        for test in re.findall(r"tests/\w+\.py", reason):
            assert (ROOT / test).is_file(), f"{pattern}: there is no {test}"


def test_most_commands_are_run_and_every_page_is_looked_at():
    counts = Counter(one.reason is None for one in ALL)
    assert counts[True] >= 30
    assert {page for page in PAGES if "```sh" in (ROOT / page).read_text(encoding="utf-8")} <= {o.page for o in ALL}


def test_a_new_command_is_noticed():
    (new,) = commands("docs/new.md", "Words.\n```sh\nwget http://somewhere/file\n```\n")
    assert new.reason is None and not RUNNABLE.match(new.words)
    with pytest.raises(ValueError, match="not ended"):
        commands("docs/new.md", "```sh\necho 'open\n```\n")


def test_every_file_that_is_read_has_a_stand_in(tmp_path):
    """What a command that is run names, and no earlier one makes, is there before it."""
    furnish(tmp_path)
    for page in PAGES:
        own = [one for one in ALL if one.page == page]
        made = set(wanted_models(own))
        for command in own:
            words = shlex.split(command.words)
            for word in words:
                name = word.partition("=")[2] if re.match(r"\w+=", word) else word
                if command.reason is None and name.endswith((".jsonl", ".csv", ".yaml")) and name not in made:
                    is_made = words[words.index(word) - 1] in ("--output", "--html", "--json")
                    is_ours = name.startswith(OF_THE_REPOSITORY) and (ROOT / name).exists()
                    assert is_made or is_ours or (tmp_path / name).exists(), f"{command}: {name}"
                    made |= {name} if is_made else set()


def test_a_command_that_fails_is_told(tmp_path, capsys):
    (tmp_path / "furnished").mkdir()
    words = ("export A=1", "sh train.sh 0,0 --model_name gpt2", "python -m coh.generate --no_such_option")
    found = [Command("docs/new.md", one) for one in words]
    assert check("docs/new.md", found, tmp_path / "furnished", tmp_path, tmp_path) == found[1:]
    printed = capsys.readouterr().out
    assert "names a GPU twice" in printed and "--no_such_option is not an option" in printed
    assert re.search(r"^ok .* docs/new\.md: export A=1$", printed, re.M) and printed.count("FAILED") == 2
