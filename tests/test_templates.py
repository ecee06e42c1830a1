"""Laws of the words: what holds for every built-in template, and what a faulty file is told, with its line."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from coh.data.records import TASKS, FeedbackError
from coh.data.templates import BUILT_IN, POLARITIES, Family, Template, load_family, read_family

NAMES = ("marker", "marker_varied", "prose")
COUNTS = {
    "marker": {"p": 1, "n": 1, "pn": 1, "np": 1, "tie": 1},
    "marker_varied": {"p": 16, "n": 16, "pn": 20, "np": 20, "tie": 8},
    "prose": {"p": 14, "n": 14, "pn": 16, "np": 16, "tie": 8, "question": 12},
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
    return [(parts[i - 1].text.strip(), part.slot) for i, part in enumerate(parts) if part.slot not in ("", "prompt")]


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
@pytest.mark.parametrize("polarity", ["p", "n", "pn", "np", "tie"])
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
    words: dict[str, set[str]] = {"better": set(), "worse": set()}
    for template in of_polarity(family, "p", "n", "pn", "np"):
        for phrase, slot in phrases(template):
            words[slot].add(" ".join(re.findall(r"\w+", phrase.casefold())))
    assert len(words["better"]) >= COUNTS[family.name]["p"] and len(words["worse"]) >= COUNTS[family.name]["n"]
    assert not words["better"] & words["worse"]


def test_words_in_front_of_an_output_say_whether_it_is_good(family):
    for template in of_polarity(family, "p", "n", "pn", "np"):
        for number, (phrase, slot) in enumerate(phrases(template)):
            if slot == "worse":
                assert BAD.search(phrase), (template.name, phrase)
            else:
                assert GOOD.search(phrase), (template.name, phrase)
                # Only a second phrase may look back at a bad output: "Better than the weak one above:".
                assert number == 1 or not BAD.search(phrase), (template.name, phrase)


def test_feedback_leads_to_its_output_and_keeps_to_its_length(family):
    shortest, longest = (6, 20) if family is PROSE else (2, 7)
    for template in of_polarity(family, "p", "n", "pn", "np", "tie"):
        for phrase, _ in phrases(template):
            assert phrase[-1] in (":—," if template.polarity == "tie" else ":—"), (template.name, phrase)
            assert shortest <= num_words(phrase) <= longest, (template.name, phrase)


@pytest.mark.parametrize("task", TASKS)
def test_words_in_front_of_the_prompt_do_not_tell_good_from_bad(task):
    def openings(polarity: str) -> Counter[str]:
        return Counter(template.text.split("{prompt}")[0] for template in PROSE.choices(task, polarity))

    assert openings("p") == openings("n")
    assert openings("pn") == openings("np")
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


def one_template(polarity: str, text: str, answer: str | None = None) -> str:
    """A file whose only faulty template stands on line 6."""
    head = 'eos: each\ntasks:\n  general:\n    tie: ["One: {first} As good: {second}"]\n'
    entry = json.dumps(text) if answer is None else f"{{text: {json.dumps(text)}, answer: {json.dumps(answer)}}}"
    return f"{head}    {polarity}:\n      - {entry}\n"


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
        "a question needs an `answer`: plain words, without slots or white space around them",
    ),
    "empty answer": ("question", "One: {better} Two: {worse} Which?", " ", "a question needs an `answer`: plain words"),
    "loose answer": ("question", "One: {better} Two: {worse} Which?", "One. ", "a question needs an `answer`: plain"),
    "slot in answer": ("question", "One: {better} Two: {worse} Which?", "{better}", "a question needs an `answer`:"),
}


@pytest.mark.parametrize("case", TEMPLATE_FAULTS)
def test_a_faulty_template_is_told_its_fault_alone_and_its_line(case, tmp_path):
    polarity, text, answer, sentence = TEMPLATE_FAULTS[case]
    told = faults_of(one_template(polarity, text, answer), tmp_path)
    assert len(told) == 1, told
    assert re.match(rf"line 6: tasks\.general\.{polarity}\.\d+: {re.escape(sentence)}", told[0]), told[0]
    # The template itself says the same, without a file.
    faults = Template(f"general.{polarity}.1", text, answer or "").faults()
    assert len(faults) == 1 and faults[0].startswith(sentence), faults


@pytest.mark.parametrize(
    "template",
    [
        Template("general.question.1", "One: {worse} Two: {better} Which is good?", "The second."),
        Template("general.p.1", "Good: {better}"),
        Template("general.tie.1", "Asked: {prompt}\nOne:\n{first}\nAs good:\n{second}"),
    ],
    ids=["question in either order", "no prompt", "line breaks"],
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
        ("- [a, b]", 5, "must be a text, or text and answer"),
        ("- {answer: Yes.}", 5, "must be a text, or text and answer"),
        ('- text: "Bad: {worse}"\n        answer: [Yes.]', 5, "must be a text, or text and answer"),
        ('- text: "Bad: {worse}"\n        anser: Yes.', 6, "not one of text, answer"),
        ('- "Bad: {worse}"\n      - "Poor: {worse}"\n      - "Bad: {worse}"', 7, "the same text as general.n.1"),
    ],
    ids=["list", "no text", "answer is a list", "unknown key", "same text"],
)
def test_a_faulty_entry_is_told_its_line(entry, line, sentence, tmp_path):
    told = faults_of(f"{FINE}    n:\n      {entry}\n", tmp_path)
    assert len(told) == 1, told
    assert re.fullmatch(rf"line {line}: tasks\.general\.n\.[\w.]+: {re.escape(sentence)}", told[0]), told[0]


def test_the_same_text_in_two_tasks_is_no_fault():
    data = {"tasks": {task: {"p": ["{prompt} Good: {better}"]} for task in TASKS}}
    assert len(read_family("mine", data).templates) == len(TASKS)


def test_all_faults_are_told_at_once(tmp_path):
    told = faults_of('eos: never\ntasks:\n  general:\n    p:\n      - "{better}"\n      - " Good: {worse}"\n', tmp_path)
    assert [fault.split(":")[0] for fault in told] == ["line 1", "line 5", "line 6", "line 6"]


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
