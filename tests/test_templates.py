"""Laws of the words: what holds for every built-in template, and what a faulty file is told, with its line."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from coh.data.records import TASKS, FeedbackError
from coh.data.templates import (
    BUILT_IN,
    NOT_OUTPUTS,
    POLARITIES,
    RANKINGS,
    Family,
    Template,
    load_family,
    read_family,
)

NAMES = ("marker", "marker_varied", "prose")
CRITIQUED = ("critique", "refine", "revision")  # polarities that show what people said
RANKED = tuple(RANKINGS.values())
COUNTS = {
    "marker": {"p": 1, "n": 1, "pn": 1, "np": 1, "tie": 1, **dict.fromkeys((*CRITIQUED, *RANKED), 1)},
    "marker_varied": {"p": 16, "n": 16, "pn": 20, "np": 20, "tie": 8, **dict.fromkeys((*CRITIQUED, *RANKED), 8)},
    "prose": {
        **dict.fromkeys(("p", "n"), 14),
        **dict.fromkeys(("pn", "np"), 16),
        **dict.fromkeys((*CRITIQUED, *RANKED), 6),
        "tie": 8,
        "question": 12,
    },
}
WORDED = {"marker": ("general", "conversation"), "marker_varied": ("general", "conversation"), "prose": TASKS}

# Words that say that an output is good, or bad. "Not" and "less" turn a good word round, so they are bad words.
GOOD = re.compile(
    r"\b(good|helpful|helpfully|helps|useful|clear|clearer|accurate|preferred|prefer|chosen|chose|better|strong|stronger"
    r"|liked?|liking|praised?|approval|approved?|recommend(ed)?|well|wiser|finer?|sound|superior|satisf(y|ying|ied|actory)"
    r"|convincing|convince|trust(ed)?|reliable|rely|informative|glad|pleased|pleasing|happy|happier|wanted|won|winner"
    r"|winning|picked|accept(ed)?|higher|high|highly|worth|favou?red|favorable|endorsed|upvote|selected|ahead|justice"
    r"|capable|thumbs up|step up|closer|improve\w+|impressed|confidence|kept|positive|decided on|gain more)\b",
    re.IGNORECASE,
)
BAD = re.compile(
    r"\b(bad|badly|unhelpful|unhelpfully|poor|poorly|poorer|weak|weaker|feeble|worse|less|lower|low|not|cannot|little"
    r"|rejected|disliked|disapproval|disapproved|unsatisf\w+|disappoint\w*|inferior|flawed|mediocre|second-rate|hardly"
    r"|let down|letdown|falls short|lacking|wanting|passed over|lost|loser|losing|failed|fails|fault|against|aside|ill"
    r"|turn(ed)? (it |this summary )?down|thumbs down|discarded|behind|drop|dropped|avoid|unwise|unhappy|unreliable"
    r"|unconvincing|unfavorable|criticism|caution|below (par|another|it)|sorry|regret|reluctant|withheld|forgotten|pity"
    r"|skip|negative|downvote|put second|hard to trust)\b",
    re.IGNORECASE,
)


def phrases(template: Template) -> list[tuple[str, str]]:
    """(words directly in front of an output, slot of that output), in the order of the text.

    >>> phrases(Template("general.pn.1", "Q: {prompt} Good: {better} Not so good: {worse}"))
    [('Good:', 'better'), ('Not so good:', 'worse')]
    """
    parts = template.parts
    return [(parts[i - 1].text.strip(), part.slot) for i, part in enumerate(parts) if part.slot not in NOT_OUTPUTS]


def introduction(template: Template) -> str:
    """The words directly in front of the critique."""
    place = next(place for place, part in enumerate(template.parts) if part.slot == "critique")
    return template.parts[place - 1].text.strip()


def bare(phrase: str) -> str:
    return " ".join(re.findall(r"\w+", phrase.casefold()))


def num_words(text: str) -> int:
    return sum(any(letter.isalnum() for letter in word) for word in text.split())


def of_polarity(family: Family, *polarities: str) -> list[Template]:
    return [template for template in family.templates if template.polarity in polarities]


# Read once: YAML is slow to read, and a family is frozen.
FAMILIES = {name: load_family(name) for name in NAMES}
PROSE, VARIED, MARKER = FAMILIES["prose"], FAMILIES["marker_varied"], FAMILIES["marker"]


@pytest.fixture(params=NAMES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


# Laws of the built-in families


def test_the_built_in_families_are_these():
    assert sorted(path.stem for path in BUILT_IN.glob("*.yaml")) == sorted(NAMES)


def test_family_has_its_counts(family):
    counts = Counter((template.task, template.polarity) for template in family.templates)
    expected = {(task, kind): n for task in WORDED[family.name] for kind, n in COUNTS[family.name].items()}
    assert counts == expected


def test_family_says_where_the_end_of_text_stands(family):
    assert family.eos == ("end" if family.name == "prose" else "each")
    assert family.roles == {"system": "System:", "user": "User:", "assistant": "Assistant:"}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("polarity", [polarity for polarity in POLARITIES if polarity != "question"])
def test_every_task_finds_templates_in_every_family(family, task, polarity):
    chosen = family.choices(task, polarity)
    assert {template.polarity for template in chosen} == {polarity}
    # A task that the family does not word takes those of general, whole.
    assert {template.task for template in chosen} == {task if task in WORDED[family.name] else "general"}
    assert len(chosen) == COUNTS[family.name][polarity]


def test_a_polarity_that_no_task_words_has_no_choices():
    assert VARIED.choices("answer", "question") == ()


def test_prose_words_every_task_itself():
    for task in TASKS:
        for polarity in POLARITIES:
            assert {template.task for template in PROSE.choices(task, polarity)} == {task}


def test_family_survives_as_dict_json_and_yaml(family, tmp_path):
    kept = family.as_dict()
    assert read_family(family.name, kept) == family
    assert read_family(family.name, json.loads(json.dumps(kept))) == family
    path = tmp_path / f"{family.name}.yaml"
    path.write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")
    assert load_family(str(path)) == family


def test_as_dict_keeps_every_answer():
    prose = PROSE.as_dict()
    answers = [entry["answer"] for task in TASKS for entry in prose["tasks"][task]["question"]]
    assert len(answers) == 48 and all(answers)


def test_as_dict_keeps_every_tie(family):
    kept = family.as_dict()["tasks"]
    for task in WORDED[family.name]:
        for polarity in RANKED:
            ties = [template.tie for template in family.choices(task, polarity)]
            assert [entry["tie"] for entry in kept[task][polarity]] == ties and all(ties)
    assert not any("tie" in entry for task in kept for entry in kept[task]["pn"])


def test_parts_give_the_text_back_and_carry_their_white_space_in_front(family):
    for template in family.templates:
        pieces = [part.text + (f"{{{part.slot}}}" if part.slot else "") for part in template.parts]
        assert "".join(pieces) == template.text
        assert not pieces[0][0].isspace(), template
        assert all(re.match(r" \S", piece) for piece in pieces[1:]), template  # exactly one space starts a part
        assert not any(piece[-1].isspace() for piece in pieces), template
        assert not any(part.text.strip() for part in template.parts if part.slot), "a slot holds white space alone"
        assert "  " not in template.text and "\n" not in template.text, template


@given(
    st.lists(st.sampled_from(["{prompt}", "{better}", "{worse}", "A", "good:", "é—"]), min_size=1, max_size=12),
    st.sampled_from([" ", "  ", "\n", "\n\n", "\t"]),
)
def test_parts_lose_nothing_of_any_text(words, space):
    text = space.join(words)
    parts = Template("general.p.1", text).parts
    assert "".join(part.text + (f"{{{part.slot}}}" if part.slot else "") for part in parts) == text
    for part in parts[1:]:
        assert part.text[0].isspace()
    assert not any(part.text[-1].isspace() for part in parts if not part.slot)
    assert [part.slot for part in parts if part.slot] == [word[1:-1] for word in words if word.startswith("{")]


def test_no_words_lead_to_both_a_good_and_a_bad_output(family):
    kinds = {"best": "better", "worst": "worse", "first": "equal", "second": "equal", "output": "unknown"}
    words: dict[str, set[str]] = {kind: set() for kind in ("better", "worse", "equal", "unknown")}
    for template in family.templates:
        middle = "worse" if template.polarity == "best_first" else "better"
        if template.polarity == "question":
            continue
        for phrase, slot in phrases(template):
            words[middle if slot == "next" else kinds.get(slot, slot)].add(bare(phrase))
        if template.is_ranking:
            words["equal"].add(bare(template.tie))
    assert len(words["better"]) >= COUNTS[family.name]["p"] and len(words["worse"]) >= COUNTS[family.name]["n"]
    assert len(set().union(*words.values())) == sum(len(each) for each in words.values())


def test_words_in_front_of_an_output_say_whether_it_is_good(family):
    for template in of_polarity(family, "p", "n", "pn", "np", "refine"):
        for number, (phrase, slot) in enumerate(phrases(template)):
            if slot == "worse":
                assert BAD.search(phrase), (template.name, phrase)
            else:
                assert GOOD.search(phrase), (template.name, phrase)
                # Only a second phrase may look back at a bad output: "Better than the weak one above:".
                assert number == 1 or not BAD.search(phrase), (template.name, phrase)


def test_feedback_leads_to_its_output_and_keeps_to_its_length(family):
    shortest, longest = (6, 20) if family is PROSE else (2, 7)
    for template in of_polarity(family, *(polarity for polarity in POLARITIES if polarity != "question")):
        said = [phrase for phrase, _ in phrases(template)]
        if template.polarity in CRITIQUED:
            said.append(introduction(template))
        if template.is_ranking:
            said.append(template.tie)
        for phrase in said:
            assert phrase[-1] in (":—," if template.polarity == "tie" else ":—"), (template.name, phrase)
            assert shortest <= num_words(phrase) <= longest, (template.name, phrase)


@pytest.mark.parametrize("task", TASKS)
def test_words_in_front_of_the_prompt_do_not_tell_good_from_bad(task):
    def openings(polarity: str) -> Counter[str]:
        return Counter(template.text.split("{prompt}")[0] for template in PROSE.choices(task, polarity))

    assert openings("p") == openings("n")
    assert openings("pn") == openings("np")
    assert openings("refine") == openings("revision") == openings("critique")
    assert openings("best_first") == openings("worst_first")
    assert 0 < openings("p")[""] < 14, "some texts begin with the prompt, some with words"


@pytest.mark.parametrize("task", TASKS)
def test_the_default_pair_differs_in_its_quality_words_alone(family, task):
    good, bad = family.choices(task, "p")[0].text, family.choices(task, "n")[0].text
    swaps = [("good, helpful", "bad, unhelpful"), ("A helpful", "An unhelpful"), ("{better}", "{worse}")]
    swapped = good
    for this, that in swaps:
        swapped = swapped.replace(this, that)
    assert swapped == bad != good


def test_varied_markers_are_the_same_for_every_task():
    for polarity in COUNTS["marker_varied"]:
        general = [template.text for template in VARIED.choices("general", polarity)]
        assert all(text.startswith("User: {prompt} ") for text in general)
        assert [text.removeprefix("User: ") for text in general] == [
            template.text for template in VARIED.choices("conversation", polarity)
        ]


def test_varied_markers_begin_with_the_plain_ones():
    for task in ("general", "conversation"):
        for polarity in COUNTS["marker"]:
            assert VARIED.choices(task, polarity)[0] == MARKER.choices(task, polarity)[0]


# Laws of the critiques

REVISED = re.compile(
    r"\b(revis\w+|re\w*written|reworked|improved|edit\w+|polished|again|next|later|turned|changed|second)\b", re.I
)
EARLY = re.compile(r"\b(first|draft\w*|early|before|origin\w+|rough|until)\b", re.I)


def test_words_around_a_critique_alone_do_not_say_whether_the_output_is_good(family):
    for template in of_polarity(family, "critique"):
        for phrase in (introduction(template), *(phrase for phrase, _ in phrases(template))):
            assert not GOOD.search(phrase) and not BAD.search(phrase), (template.name, phrase)


def test_a_critique_is_introduced_as_words_and_not_as_praise_or_blame(family):
    judged = re.compile(
        r"\b(prais|blam|complain|critici|fault|mistake|wrong|problem|suggest|advice|should|could)", re.I
    )
    for template in of_polarity(family, *CRITIQUED):
        words = introduction(template)
        # What it is about may be named by its rank, "the losing response"; the critique itself has no quality.
        assert not judged.search(words), (template.name, words)


def test_a_revision_goes_from_an_early_version_to_a_late_one(family):
    for template in of_polarity(family, "revision"):
        (early, _), (late, _) = phrases(template)
        assert EARLY.search(early), (template.name, early)
        assert REVISED.search(late), (template.name, late)


def test_a_refinement_does_not_claim_that_one_output_was_written_from_the_other(family):
    claims = re.compile(r"\b(revis|rewrit|rework|improve|edit|polish|draft|version|accordingly)", re.I)
    for template in of_polarity(family, "refine"):
        assert not claims.search(template.text), template


# Laws of the rankings

MOST = re.compile(
    r"\b(best|top|first|front|head|highest|strongest|finest|most|biggest|no better|above|none is higher)\b", re.I
)
LEAST = re.compile(
    r"\b(worst|bottom|last|back|foot|lowest|weakest|poorest|least|smallest|no worse|below|none is lower)\b", re.I
)
MORE = re.compile(r"\b(more|better|(?<!summed )(?<!summing it )up|higher|stronger|above|forward|finer|bigger)\b", re.I)
LESS = re.compile(r"\b(less|not as good|down|lower|weaker|below|back|poorer|smaller)\b", re.I)
EQUAL = re.compile(
    r"\b(equal|equally|same|level|as|just as|no better (and no|or) worse|neither weaker nor stronger|side by side)\b",
    re.I,
)
TIES = [ties for n in range(1, 6) for ties in itertools.product((False, True), repeat=n) if not all(ties)]


def test_words_of_a_ranking_say_which_way_it_goes(family):
    for template in of_polarity(family, *RANKED):
        words = {slot: phrase for phrase, slot in phrases(template)}
        assert MOST.search(words["best"]) and LEAST.search(words["worst"]), template
        this, that = (LESS, MORE) if template.polarity == "best_first" else (MORE, LESS)
        assert this.search(words["next"]) and not that.search(words["next"]), template
        assert EQUAL.search(template.tie), template


def test_both_ways_of_ranking_share_their_words_for_ties(family):
    for task in WORDED[family.name]:
        down, up = (family.choices(task, polarity) for polarity in RANKED)
        assert [template.tie for template in down] == [template.tie for template in up]


def test_a_ranking_has_words_for_every_output(family):
    for template in of_polarity(family, *RANKED):
        for is_tied in TIES:
            assert_ranked(template, is_tied)


def assert_ranked(template: Template, is_tied: tuple[bool, ...]) -> None:
    ranked = template.ranking(is_tied)
    assert ranked.name == template.name
    assert ranked.outputs == tuple(str(place + 1) for place in range(len(is_tied) + 1))
    assert "".join(map(str, ranked.parts)) == ranked.text
    assert all(str(part)[0].isspace() for part in ranked.parts[1:]) and not str(ranked.parts[0])[0].isspace()
    assert not any(str(part)[-1].isspace() for part in ranked.parts)
    start, middle, end = (phrase for phrase, _ in phrases(template))
    said = [phrase for phrase, _ in phrases(ranked)]
    last = max(place for place, tied in enumerate(is_tied) if not tied)
    expected = [template.tie if tied else middle for tied in is_tied]
    expected[last] = end
    assert said == [start, *expected]
    assert said.count(start) == said.count(end) == 1
    # What stands in front of the ranking stays.
    head = len(template.parts) - 6
    assert ranked.parts[:head] == template.parts[:head]


WORDS = st.lists(st.sampled_from(["A", "good:", "é—", "one", "(x)"]), min_size=1, max_size=3).map(" ".join)


@given(
    st.lists(WORDS, min_size=4, max_size=4, unique=True),
    st.lists(st.sampled_from([" ", "\n", "\n\n", " \n"]), min_size=7, max_size=7),
    st.sampled_from(["", "{prompt}", "Asked: {prompt}"]),
    st.sampled_from(TIES),
)
def test_any_ranking_has_words_for_every_output(words, spaces, head, is_tied):
    *words, tie = words
    tokens = [head, *itertools.chain.from_iterable(zip(words, ("{best}", "{next}", "{worst}")))]
    text = "".join(space + token for space, token in zip(spaces, tokens)).strip()
    template = Template("general.best_first.1", text, tie=tie)
    assert template.faults() == []
    assert_ranked(template, is_tied)
    # The white space in front of each output is that of its words in the file.
    joints = [part.text for part in template.parts if part.slot not in NOT_OUTPUTS]
    ranked = [part.text for part in template.ranking(is_tied).parts if part.slot not in NOT_OUTPUTS]
    last = max(place for place, tied in enumerate(is_tied) if not tied) + 1
    assert ranked == [joints[0], *(joints[2 if place == last else 1] for place in range(1, len(is_tied) + 1))]
    # Words for a tie stand as far from the output before as those of {next}.
    gap = next(space for space, token in zip(spaces, tokens) if token == words[1])
    text = template.ranking(is_tied).text
    assert all(f"{{{place}}}{gap}{tie}" in text for place, tied in enumerate(is_tied, start=1) if tied)


@pytest.mark.parametrize("is_tied", [(), (True,), (True, True)])
def test_equal_outputs_are_no_ranking(is_tied):
    with pytest.raises(ValueError, match=r"general.best_first.1: a ranking needs two outputs that differ in rank"):
        MARKER.choices("general", "best_first")[0].ranking(is_tied)


def test_every_way_of_ranking_a_pair_can_rank_more(family):
    for task in TASKS:
        for pair, ranking in RANKINGS.items():
            assert bool(family.choices(task, pair)) == bool(family.choices(task, ranking))
            assert [template.is_ranking for template in family.choices(task, ranking)].count(False) == 0
            assert not any(template.is_ranking for template in family.choices(task, pair))


# Laws of the questions

# The ways in which an answer names the output that stands first or second.
NAMED = (re.compile(r"\b(first|former|A|1)\b"), re.compile(r"\b(second|latter|B|2)\b"))
ASKS_FOR_WORSE = re.compile(r"\b(worse|weaker|poorer|lower|less|reject|rejected)\b")


def asks_for_worse(template: Template) -> bool:
    return bool(ASKS_FOR_WORSE.search(template.parts[-1].text))


@pytest.mark.parametrize("task", TASKS)
def test_the_answer_names_the_right_output(task):
    for template in PROSE.choices(task, "question"):
        assert template.text.endswith("?"), template
        first, second = (bool(name.search(template.answer)) for name in NAMED)
        assert first != second, template
        assert template.outputs[second] == ("worse" if asks_for_worse(template) else "better"), template
        # The answer says worse where the question asked for the worse one, and only there.
        assert bool(ASKS_FOR_WORSE.search(template.answer)) == asks_for_worse(template), template


@pytest.mark.parametrize("task", TASKS)
def test_a_question_does_not_give_its_answer_away(task):
    for template in PROSE.choices(task, "question"):
        for phrase, _ in phrases(template):
            assert phrase.endswith(":"), template
            assert not GOOD.search(phrase) and not BAD.search(phrase), (template.name, phrase)


@pytest.mark.parametrize("task", TASKS)
def test_questions_cannot_be_answered_from_the_place_alone(task):
    questions = PROSE.choices(task, "question")
    assert Counter(template.outputs for template in questions) == {("better", "worse"): 6, ("worse", "better"): 6}
    asks = Counter((template.outputs, asks_for_worse(template)) for template in questions)
    assert asks[("better", "worse"), True] == asks[("worse", "better"), True] == 2
    assert sum(bool(NAMED[0].search(template.answer)) for template in questions) == 6
    assert len({template.answer for template in questions}) == 12


# The page that shows how to write a family

PAGE = (Path(__file__).parents[1] / "docs" / "templates.md").read_text(encoding="utf-8")
GOOD_FILE, FAULTY_FILE = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
RANKED_TEXT, TOLD = re.findall(r"```text\n(.*?)\n```", PAGE, re.S)


def test_the_family_on_the_page_says_everything(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(GOOD_FILE, encoding="utf-8")
    family = load_family(str(path))
    assert all(family.choices("general", polarity) for polarity in POLARITIES)
    assert {template.task for template in family.choices("summary", "p")} == {"summary"}
    assert {template.task for template in family.choices("summary", "pn")} == {"general"}
    good, bad = (family.choices("general", polarity)[0].text for polarity in "pn")
    assert good.replace("up", "down").replace("{better}", "{worse}") == bad
    assert family.choices("general", "best_first")[0].ranking([False, True, False]).text == RANKED_TEXT


def test_the_faulty_family_on_the_page_is_told_what_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(FAULTY_FILE, encoding="utf-8")
    with pytest.raises(FeedbackError) as caught:
        load_family("my.yaml")
    assert str(caught.value) == TOLD


def test_the_table_on_the_page_has_every_polarity_and_its_slots():
    rows = re.findall(r"^\| `(\w+)` \| ((?:`\{\w+\}` ?)+) \|", PAGE, re.M)
    assert {polarity: tuple(re.findall(r"\w+", slots)) for polarity, slots in rows} == POLARITIES


# What a faulty file is told


def faults_of(text: str, tmp_path) -> list[str]:
    """The lines below the head of the message that a file of this text gets; the head counts them."""
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FeedbackError) as caught:
        load_family(str(path))
    head, *lines = str(caught.value).split("\n")
    assert head == f"templates {path}: {len(lines)} to mend"
    return [line.removeprefix("  ") for line in lines]


def one_template(polarity: str, text: str, **more: str) -> str:
    """A file whose only faulty template stands on line 6."""
    head = 'eos: each\ntasks:\n  general:\n    tie: ["One: {first} As good: {second}"]\n'
    return f"{head}    {polarity}:\n      - {json.dumps({'text': text, **more} if more else text)}\n"


TEMPLATE_FAULTS = {
    "unknown slot": ("p", "{promt} Good: {better}", None, "{promt} is no slot: use {prompt}, {better}"),
    "lone brace": ("p", "{prompt} Good }: {better}", None, "a brace stands alone: braces are for slots only"),
    "white space in front": ("p", " {prompt} Good: {better}", None, "white space at an end: take it away"),
    "white space behind": ("p", "{prompt} Good: {better} ", None, "white space at an end: take it away"),
    "touches words before": ("p", "{prompt} Good:{better}", None, "{better} touches other text: put white space"),
    "touches words behind": ("p", "{prompt}, good: {better}", None, "{prompt} touches other text: put white space"),
    "wrong output": ("n", "{prompt} Bad: {better}", None, "polarity n takes {worse}, this has {better}"),
    "wrong order": (
        "pn",
        "{prompt} Bad: {worse} Good: {better}",
        None,
        "polarity pn takes {better} then {worse}, this has {worse} then {better}",
    ),
    "no output": ("p", "{prompt}", None, "polarity p takes {better}, this has none"),
    "nothing at all": ("p", "", None, "polarity p takes {better}, this has none"),
    "prompt twice": ("p", "{prompt} Good for {prompt} then: {better}", None, "{prompt} stands at most once, and"),
    "prompt late": ("pn", "Good: {better} {prompt} Bad: {worse}", None, "{prompt} stands at most once, and"),
    "no words first": ("p", "{better}", None, "no words in front of {better}: feedback stands before the output"),
    "no words after prompt": ("p", "{prompt} {better}", None, "no words in front of {better}: feedback stands before"),
    "no words between": ("pn", "Good: {better} {worse}", None, "no words in front of {worse}: feedback stands before"),
    "words behind": ("p", "{prompt} Good: {better} Yes.", None, "words after the last output would describe an output"),
    "answer to no question": ("p", "{prompt} Good: {better}", "Yes.", "`answer` belongs to questions only"),
    "question ends in output": (
        "question",
        "Which? One: {better} Two: {worse}",
        "The first.",
        "a question ends with its own words, not with an output",
    ),
    "question without answer": (
        "question",
        "One: {better} Two: {worse} Which?",
        None,
        "a question needs an `answer`: plain words, without braces or white space around them",
    ),
    "empty answer": ("question", "One: {better} Two: {worse} Which?", " ", "a question needs an `answer`: plain words"),
    "loose answer": ("question", "One: {better} Two: {worse} Which?", "One. ", "a question needs an `answer`: plain"),
    "slot in answer": ("question", "One: {better} Two: {worse} Which?", "{better}", "a question needs an `answer`:"),
    "empty slot": ("p", "{prompt} Good {} : {better}", None, "a brace stands alone: braces are for slots only"),
    "unknown slot of a ranking": (
        "best_first",
        "Best: {best} Worse: {middle} Worst: {worst}",
        None,
        "{middle} is no slot: use {prompt}, {best}, {next}, {worst}",
    ),
    "no critique": (
        "critique",
        "{prompt} A: {output}",
        None,
        "polarity critique takes {critique} then {output}, this has",
    ),
    "critique behind": (
        "critique",
        "{prompt} A: {output} Said of it: {critique}",
        None,
        "polarity critique takes {critique} then {output}, this has {output} then {critique}",
    ),
    "critique too many": (
        "p",
        "{prompt} Said: {critique} A: {better}",
        None,
        "polarity p takes {better}, this has {crit",
    ),
    "no words behind the critique": (
        "critique",
        "{prompt} Said: {critique} {output}",
        None,
        "no words in front of {output}: say what it is, or it runs on from the text before",
    ),
    "no words in front of the critique": (
        "refine",
        "{prompt} Bad: {worse} {critique} Good: {better}",
        None,
        "no words in front of {critique}: say what it is, or it runs on from the text before",
    ),
    "no better one": (
        "refine",
        "{prompt} A: {worse} Said: {critique}",
        None,
        "polarity refine takes {worse} then {crit",
    ),
    "revision the wrong way": (
        "revision",
        "{prompt} Now: {better} Said: {critique} Once: {worse}",
        None,
        "polarity revision takes {worse} then {critique} then {better}, this has {better} then {critique} then {worse}",
    ),
    "words behind a critique's output": (
        "critique",
        "Said: {critique} A: {output} That was it.",
        None,
        "words after the last output would describe",
    ),
}


@pytest.mark.parametrize("case", TEMPLATE_FAULTS)
def test_a_faulty_template_is_told_its_fault_alone_and_its_line(case, tmp_path):
    polarity, text, answer, sentence = TEMPLATE_FAULTS[case]
    more = {} if answer is None else {"answer": answer}
    if polarity in RANKED:
        more["tie"] = "As good:"
    assert_one_fault(polarity, text, more, sentence, tmp_path)


def assert_one_fault(polarity: str, text: str, more: dict[str, str], sentence: str, tmp_path) -> None:
    told = faults_of(one_template(polarity, text, **more), tmp_path)
    assert len(told) == 1, told
    assert re.match(rf"line 6: tasks\.general\.{polarity}\.\d+: {re.escape(sentence)}", told[0]), told[0]
    # The template itself says the same, without a file.
    faults = Template(f"general.{polarity}.1", text, **more).faults()
    assert len(faults) == 1 and faults[0].startswith(sentence), faults


DOWN, UP = "{prompt} Best: {best} Less: {next} Least: {worst}", "{prompt} Least: {worst} More: {next} Most: {best}"
NEEDS_TIE = "a ranking needs `tie`: plain words for an output as good as the one before, without braces or white space"
RANKING_FAULTS = {
    "no tie": ("best_first", DOWN, {}, NEEDS_TIE),
    "empty tie": ("worst_first", UP, {"tie": ""}, NEEDS_TIE),
    "blank tie": ("worst_first", UP, {"tie": " "}, NEEDS_TIE),
    "loose tie": ("best_first", DOWN, {"tie": "As good: "}, NEEDS_TIE),
    "slot in tie": ("best_first", DOWN, {"tie": "As good: {next}"}, NEEDS_TIE),
    "brace in tie": ("best_first", DOWN, {"tie": "As good }:"}, NEEDS_TIE),
    "tie to no ranking": (
        "pn",
        "Good: {better} Bad: {worse}",
        {"tie": "As good:"},
        "`tie` belongs to best_first and worst_first only",
    ),
    "answer to a ranking": ("best_first", DOWN, {"tie": "As good:", "answer": "Yes."}, "`answer` belongs to questions"),
    "ranking the wrong way": (
        "best_first",
        UP,
        {"tie": "As good:"},
        "polarity best_first takes {best} then {next} then {worst}, this has {worst} then {next} then {best}",
    ),
    "two in between": (
        "worst_first",
        "{prompt} Least: {worst} More: {next} Still more: {next} Most: {best}",
        {"tie": "As good:"},
        "polarity worst_first takes {worst} then {next} then {best}, this has {worst} then {next} then {next} then",
    ),
    "none in between": (
        "worst_first",
        "{prompt} Least: {worst} Most: {best}",
        {"tie": "As good:"},
        "polarity worst_first takes {worst} then {next} then {best}, this has {worst} then {best}",
    ),
    "no words in between": (
        "best_first",
        "{prompt} Best: {best} {next} Least: {worst}",
        {"tie": "As good:"},
        "no words in front of {next}: feedback stands before the output that it describes",
    ),
    "a critique in between": (
        "best_first",
        "Best: {best} Said: {critique} Less: {next} Least: {worst}",
        {"tie": "As good:"},
        "polarity best_first takes {best} then {next} then {worst}, this has {best} then {critique} then",
    ),
    "a prompt in between": (
        "best_first",
        "Best: {best} {prompt} Less: {next} Least: {worst}",
        {"tie": "As good:"},
        "{prompt} stands at most once, and before the outputs",
    ),
    "words behind a ranking": (
        "best_first",
        f"{DOWN} These were all.",
        {"tie": "As good:"},
        "words after the last output would describe an output that stands before them",
    ),
}


@pytest.mark.parametrize("case", RANKING_FAULTS)
def test_a_faulty_ranking_is_told_its_fault_alone_and_its_line(case, tmp_path):
    assert_one_fault(*RANKING_FAULTS[case], tmp_path)


@pytest.mark.parametrize(
    "template",
    [
        Template("general.question.1", "One: {worse} Two: {better} Which is good?", "The second."),
        Template("general.p.1", "Good: {better}"),
        Template("general.tie.1", "Asked: {prompt}\nOne:\n{first}\nAs good:\n{second}"),
        Template("general.critique.1", "{prompt} {critique} Of which this was said: {output}"),
        Template("general.critique.1", "{critique} Of which this was said: {output}"),
        Template("general.best_first.1", "Best: {best} Less: {next} Least: {worst}", tie="As good:"),
    ],
    ids=[
        "question in either order",
        "no prompt",
        "line breaks",
        "critique after the prompt",
        "critique first",
        "ranking",
    ],
)
def test_what_may_be_written_is_no_fault(template):
    assert template.faults() == []


FINE = 'tasks:\n  general:\n    p: ["{prompt} Good: {better}"]\n'
FILE_FAULTS = {
    "the file is a list": ("# words\n- p\n", 2, "", "must be a mapping with eos, roles, tasks"),
    "unknown entry": (FINE + "eso: each\n", 4, "eso", "not one of eos, roles, tasks"),
    "unknown eos": ("eos: never\n" + FINE, 1, "eos", "'never': say each (after every output) or end (once, after the"),
    "roles are no mapping": (FINE + "roles: User\n", 4, "roles", "must be a mapping with system, user, assistant"),
    "unknown role": (FINE + "roles:\n  bot: Bot\n", 5, "roles.bot", "not one of system, user, assistant"),
    "empty role": (FINE + 'roles:\n  user: ""\n', 5, "roles.user", "must be words without white space"),
    "loose role": (FINE + 'roles:\n  user: "U: "\n', 5, "roles.user", "must be words without white space"),
    "role of two": (FINE + "roles:\n  user: [U, V]\n", 5, "roles.user", "must be words without white space"),
    "no tasks": ("\neos: each\n", 2, "tasks", "must be a mapping with general, answer, summary, conversation"),
    "tasks empty": ("eos: each\ntasks: {}\n", 2, "tasks", "no templates"),
    "task empty": ("eos: each\ntasks:\n  answer: {}\n", 3, "tasks", "no templates"),
    "unknown task": (FINE + "  chat:\n    p: []\n", 5, "tasks.chat", "not one of general, answer, summary"),
    "task is a list": (FINE + "  answer: []\n", 4, "tasks.answer", "must be a mapping with p, n, pn, np, tie"),
    "unknown polarity": (FINE + "    q: []\n", 4, "tasks.general.q", "not one of p, n, pn, np, tie, question"),
    "one text, no list": (FINE + '    n: "Bad: {worse}"\n', 4, "tasks.general.n", "must be a list of templates"),
    "empty list": (FINE + "    n: []\n", 4, "tasks.general.n", "must be a list of templates"),
    "nothing in a list": (FINE + "    n:\n", 4, "tasks.general.n", "must be a list of templates"),
}


@pytest.mark.parametrize("case", FILE_FAULTS)
def test_a_faulty_file_is_told_place_and_line(case, tmp_path):
    text, line, place, sentence = FILE_FAULTS[case]
    told = faults_of(text, tmp_path)
    start = f"line {line}: " + (f"{place}: " if place else "") + sentence
    assert told[0].startswith(start), told[0]
    if case != "the file is a list":  # that one lacks its tasks besides
        assert len(told) == 1, told


@pytest.mark.parametrize(
    ("entry", "line", "sentence"),
    [
        ("- [a, b]", 5, "must be a text, or text with answer (questions) or tie (rankings)"),
        ("- {answer: Yes.}", 5, "must be a text, or text with answer (questions) or tie (rankings)"),
        (
            '- text: "Bad: {worse}"\n        answer: [Yes.]',
            5,
            "must be a text, or text with answer (questions) or tie (rankings)",
        ),
        ('- text: "Bad: {worse}"\n        anser: Yes.', 6, "not one of text, answer, tie"),
        (
            '- text: "Bad: {worse}"\n        tie: {as: good}',
            5,
            "must be a text, or text with answer (questions) or tie (rankings)",
        ),
        ('- "Bad: {worse}"\n      - "Poor: {worse}"\n      - "Bad: {worse}"', 7, "the same text as general.n.1"),
    ],
    ids=["list", "no text", "answer is a list", "unknown key", "tie is a mapping", "same text"],
)
def test_a_faulty_entry_is_told_its_line(entry, line, sentence, tmp_path):
    told = faults_of(f"{FINE}    n:\n      {entry}\n", tmp_path)
    assert len(told) == 1, told
    assert re.fullmatch(rf"line {line}: tasks\.general\.n\.[\w.]+: {re.escape(sentence)}", told[0]), told[0]


def test_the_same_text_in_two_tasks_is_no_fault():
    data = {"tasks": {task: {"p": ["{prompt} Good: {better}"]} for task in TASKS}}
    assert len(read_family("mine", data).templates) == len(TASKS)


def test_the_same_text_may_be_true_of_two_polarities():
    text = "{prompt} First: {worse} Said of it: {critique} Then: {better}"
    family = read_family("mine", {"tasks": {"general": {"refine": [text], "revision": [text]}}})
    assert [template.name for template in family.templates] == ["general.refine.1", "general.revision.1"]


def test_all_faults_are_told_at_once(tmp_path):
    text = 'tasks:\n  general:\n    p:\n      - "{better}"\n      - " Good: {worse}"\n  chat: {}\neos: never\n'
    lines = [fault.split(":")[0] for fault in faults_of(text, tmp_path)]
    assert lines == ["line 4", "line 5", "line 5", "line 6", "line 7"], "in the order of the file"


def test_without_a_file_faults_name_their_place_and_no_line():
    with pytest.raises(FeedbackError) as caught:
        read_family("kept", {"eos": "end", "tasks": {"general": {"p": ["{better}"]}}})
    head, fault = str(caught.value).split("\n")
    assert head == "templates kept: 1 to mend"
    assert re.match(r"  tasks\.general\.p\.\d+: no words in front of \{better\}", fault)


def test_an_unwritten_eos_and_role_take_their_defaults():
    family = read_family("mine", {"roles": {"user": "Human:"}, "tasks": {"general": {"p": ["Good: {better}"]}}})
    assert family.eos == "end"
    assert family.roles == {"system": "System:", "user": "Human:", "assistant": "Assistant:"}


def test_a_name_that_is_nothing_is_told_the_built_in_names(tmp_path):
    for nothing in ("proze", str(tmp_path / "mine.yaml"), str(tmp_path)):
        with pytest.raises(FeedbackError, match="neither marker, marker_varied, prose nor a file") as caught:
            load_family(nothing)
        assert f"templates {nothing!r}: " in str(caught.value)


def test_a_text_without_quotes_is_told_the_line_of_the_yaml_fault(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("tasks:\n  general:\n    p:\n      - {prompt} Good: {better}\n", encoding="utf-8")
    with pytest.raises(FeedbackError, match=f"^templates {re.escape(str(path))}: not YAML: .*") as caught:
        load_family(str(path))
    assert "line 4, column" in str(caught.value)


def test_a_file_of_another_encoding_is_told_so(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(FINE.replace("Good", "Trés bien").encode("latin-1"))
    with pytest.raises(FeedbackError, match=f"^templates {re.escape(str(path))}: not YAML: 'utf-8' codec can't decode"):
        load_family(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('tasks:\n  general:\n    p:\n      - {prompt}: "x {better}"\n', "line 4: a text that begins with a brace"),
        (
            'tasks:\n  general:\n    p: ["Good: {better}"]\n    p: ["Fine: {better}"]\n',
            "line 4: p stands here again: write its entries in one place",
        ),
        ("tasks: &a\n  general: *a\n", "an alias (*name) stands inside its own anchor (&name): write it out"),
    ],
)
def test_yaml_that_would_crash_or_lose_entries(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FeedbackError) as error:
        load_family(str(path))
    assert message in str(error.value) and str(path) in str(error.value)
