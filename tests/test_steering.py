"""The words of a model as ids: prompts are the beginnings of training rows, documents are whole ones."""

import pytest
from toys import byte_tokenizer, pairs, write_rows

from coh.data.coh_data import CoHDataArgs, load_datasets
from coh.data.records import FeedbackError, FeedbackGroup, Message, as_messages
from coh.data.templates import load_family
from coh.saved import Words
from coh.steering import Steering

TURNS = [Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Bye")]
CHAT = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def chat_tokenizer():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    return tokenizer


def documents_of(path, tokenizer, folder, **options):
    """(ids, labels) of every document of an epoch, through the whole path: file, store, pieces, plan, row."""
    prepend_bos = options.pop("prepend_bos", False)
    options = {"templates": "marker", **options}
    args = CoHDataArgs(feedback_data=[path], pretrain_data="none", seq_length=400, **options)
    train = load_datasets(args, tokenizer, prepend_bos=prepend_bos, cache_dir=str(folder))["train"]
    found = []
    for row in (train[index] for index in range(len(train))):
        starts = [place for place in range(400) if row["position_ids"][place] == 0 and row["source_id"][place] >= 0]
        ends = [*starts[1:], int((row["source_id"] >= 0).sum())]
        found += [(row["input_ids"][a:b].tolist(), row["labels"][a:b].tolist()) for a, b in zip(starts, ends)]
    assert len(found) == len(train.chains.window(0, 0).lengths) > 20
    return found


def matching(starts, ids):
    (start,) = [start for start in starts if tuple(ids[: len(start)]) == start]
    return len(start)


@pytest.mark.parametrize("prepend_bos", [False, True])
@pytest.mark.parametrize("feedback", ["good", "bad"])
def test_the_prompt_is_the_beginning_of_the_rows_that_taught_it(tmp_path, feedback, prepend_bos):
    path, tokenizer = write_rows(tmp_path / "pairs.jsonl", pairs(30)), byte_tokenizer()
    chains = {"good": ["p", "pn"], "bad": ["n", "np"]}[feedback]
    steering = Steering.of(Words(load_family("marker"), prepend_bos), tokenizer)
    starts = [tuple(steering.prompt_ids(row["prompt"], feedback)) for row in pairs(30)]
    for ids, labels in documents_of(path, tokenizer, tmp_path, chains=chains, prepend_bos=prepend_bos):
        length = matching(starts, ids)
        assert labels[:length] == [-100] * length and labels[length] != -100


def test_chat_prompts_are_the_beginning_too(tmp_path):
    path, tokenizer = write_rows(tmp_path / "pairs.jsonl", pairs(30)), chat_tokenizer()
    steering = Steering.of(Words(load_family("marker"), prompt_format="chat"), tokenizer)
    starts = [tuple(steering.prompt_ids(row["prompt"], "good")) for row in pairs(30)]
    for ids, labels in documents_of(path, tokenizer, tmp_path, chains=["p"], prompt_format="chat"):
        length = matching(starts, ids)
        assert labels[:length] == [-100] * length and labels[length] != -100
        assert ids[-1] == labels[-1] == steering.end_of_output


@pytest.mark.parametrize("prompt_format", ["plain", "chat"])
def test_revising_continues_rows_in_which_the_worse_output_stands(tmp_path, prompt_format):
    rows, tokenizer = pairs(30), chat_tokenizer()
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    steering = Steering.of(Words(load_family("marker"), prompt_format=prompt_format), tokenizer)
    starts = [tuple(steering.revising_ids(row["prompt"], [row["rejected"]])) for row in rows]
    for ids, labels in documents_of(path, tokenizer, tmp_path, chains=["np"], prompt_format=prompt_format):
        length = matching(starts, ids)
        assert labels[length - 1] == -100 and labels[length] != -100


def test_scored_documents_are_rows_of_one_output(tmp_path):
    rows, tokenizer = pairs(30), byte_tokenizer()
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    steering = Steering.of(Words(load_family("marker")), tokenizer)
    made = [
        document
        for row in rows
        for document in steering.output_documents(as_messages(row["prompt"]), [row["chosen"]], "good")
    ]
    known = {document.input_ids: document.target_mask for document in made}
    for ids, labels in documents_of(path, tokenizer, tmp_path, chains=["p"]):
        assert known[tuple(ids)] == tuple(label != -100 for label in labels)


WORDS = """
eos: {eos}
tasks:
  general:
    p: ["{{prompt}} Good: {{better}}"]
    n: ["{{prompt}} Bad: {{worse}}"]
    pn: ["{{prompt}} Good: {{better}} Bad: {{worse}}"]
    np: ["{{prompt}} Bad: {{worse}} Good: {{better}}"]
    question:
      - text: "{{prompt}} One: {{worse}} Two: {{better}} Which one is better?"
        answer: "Two."
"""


@pytest.mark.parametrize("eos", ["each", "end"])
@pytest.mark.parametrize("kind", ["pn", "np", "question"])
def test_chains_and_questions_are_rows_too(tmp_path, kind, eos):
    rows, tokenizer, words = pairs(30), byte_tokenizer(), tmp_path / "words.yaml"
    words.write_text(WORDS.format(eos=eos))
    steering = Steering.of(Words(load_family(str(words))), tokenizer)
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    groups = [FeedbackGroup("", as_messages(r["prompt"]), (r["chosen"], r["rejected"]), (1, 2)) for r in rows]
    if kind == "question":
        made = [steering.question_documents(group)[0] for group in groups]
    else:
        made = [document for group in groups for document in steering.chain_documents(group, kind)]
    known = {document.input_ids: document.target_mask for document in made}
    for ids, labels in documents_of(path, tokenizer, tmp_path, chains=[kind], templates=str(words)):
        assert known[tuple(ids)] == tuple(label != -100 for label in labels)


def test_a_question_is_asked_both_ways_and_without_words_not_at_all(steering):
    pair = FeedbackGroup("", as_messages("Hi"), ("yes", "no"), (1, 2))
    assert steering.question_documents(pair) is None
    asking = Steering.of(Words(load_family("prose")), byte_tokenizer())
    for number in range(3):
        true, false = asking.question_documents(pair, number)
        texts = [text_of(asking, document.input_ids) for document in (true, false)]
        assert (
            texts[0] != texts[1]
            and texts[0].replace(" yes", " ?").replace(" no", " yes").replace(" ?", " no") == texts[1]
        )


@pytest.fixture(scope="module")
def steering():
    return Steering.of(Words(load_family("marker"), tasks=("answer", "conversation")), byte_tokenizer())


def text_of(steering, ids):
    return steering.encoder.tokenizer.decode(ids)


def test_documents_say_the_words_and_end(steering):
    group = FeedbackGroup("test", as_messages("What is 0?"), ("It is 0.", "No."), (1, 2))
    good, bad = (steering.documents(group, quality) for quality in ("good", "bad"))
    assert text_of(steering, good[0].input_ids) == "User: What is 0? A helpful answer: It is 0.</s>"
    assert text_of(steering, bad[1].input_ids) == "User: What is 0? An unhelpful answer: No.</s>"
    targets = [token for token, is_target in zip(good[0].input_ids, good[0].target_mask) if is_target]
    assert text_of(steering, targets) == " It is 0.</s>"


def test_outputs_of_a_model_may_be_empty_or_alike(steering):
    documents = steering.output_documents("Why?", ["", "Yes.", "Yes.", " Yes.\n"], "good")
    assert [text_of(steering, document.input_ids) for document in documents] == [
        "User: Why? A helpful answer:</s>",
        *["User: Why? A helpful answer: Yes.</s>"] * 3,
    ]


def test_words_of_any_kind(steering):
    assert text_of(steering, steering.prompt_ids("Why?", "In one sentence:")) == "User: Why? In one sentence:"
    assert steering.prompt_ids("Why?", "general.p.1") == steering.prompt_ids("Why?", "good")
    with pytest.raises(FeedbackError, match=r"feedback ' ': write good, bad"):
        steering.prompt_ids("Why?", " ")
    with pytest.raises(FeedbackError, match="is not for one output"):
        steering.output_documents("Why?", ["So."], "general.pn.1")


def test_conversations_and_tasks(steering):
    assert (
        text_of(steering, steering.prompt_ids(TURNS)) == "User: Hi\n\nAssistant: Hello\n\nUser: Bye A helpful answer:"
    )
    with pytest.raises(FeedbackError, match="task 'poem' is not one of"):
        steering.prompt_ids("Hi", task="poem")


@pytest.mark.parametrize("turns", [TURNS, [Message("system", "Be brief."), Message("user", "Hi")]])
def test_several_turns_have_the_words_of_conversations(turns):
    steering = Steering.of(Words(load_family("prose"), tasks=("answer",)), byte_tokenizer())
    assert steering.prompt_ids(turns) == steering.prompt_ids(turns, task="conversation")
    assert steering.prompt_ids(turns) != steering.prompt_ids(turns, task="answer")
    assert steering.prompt_ids("Hi") == steering.prompt_ids("Hi", task="answer")


def test_earlier_outputs_stand_in_front_worst_first(steering):
    text = text_of(steering, steering.revising_ids("Why?", ["Um.", "So."]))
    assert text.index("Um.</s>") < text.index("So.</s>") and text.startswith("User: Why?") and text.endswith(":")
