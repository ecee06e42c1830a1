"""Steering: the prompt is the beginning of a training row, and the command writes what the model says."""

import pytest
from toys import byte_tokenizer, pairs, tiny_model_folder, write_rows

from coh.arguments import ConfigError
from coh.data.coh_data import CoHDataArgs, load_datasets
from coh.data.encoding import Encoder
from coh.data.records import Message
from coh.data.templates import load_family
from coh.generate import GenerateArgs, generate_outputs, main, steered_prompt
from coh.modeling import ModelError, load_model, load_tokenizer
from coh.saved import Words, load_words, save_words


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model_folder(folder)
    save_words(folder, Words(load_family("marker")))
    return str(folder)


@pytest.mark.parametrize("prepend_bos", [False, True])
@pytest.mark.parametrize("feedback", ["good", "bad"])
def test_the_prompt_is_the_beginning_of_the_rows_that_taught_it(tmp_path, feedback, prepend_bos):
    """Through the whole path: file, store, pieces, plan, row."""
    path = write_rows(tmp_path / "pairs.jsonl", pairs(30))
    chains = {"good": ["p", "pn"], "bad": ["n", "np"]}[feedback]
    args = CoHDataArgs(feedback_data=[path], pretrain_data="none", templates="marker", chains=chains, seq_length=400)
    tokenizer = byte_tokenizer()
    train = load_datasets(args, tokenizer, prepend_bos=prepend_bos, cache_dir=str(tmp_path / "cache"))["train"]
    words = Words(load_family("marker"), prepend_bos)
    starts = [
        tuple(steered_prompt(row["prompt"], feedback, words, Encoder(tokenizer, prepend_bos))) for row in pairs(30)
    ]
    num_documents = 0
    for index in range(len(train)):
        row = train[index]
        for place in range(400):
            if row["position_ids"][place] == 0 and row["source_id"][place] >= 0:
                ids = row["input_ids"][place:].tolist()
                (start,) = [start for start in starts if tuple(ids[: len(start)]) == start]
                assert (row["labels"][place : place + len(start)] == -100).all()
                assert row["labels"][place + len(start)] != -100
                num_documents += 1
    assert num_documents == len(train.chains.window(0, 0).lengths) > 20


def test_conversations_and_tasks(model):
    tokenizer = load_tokenizer(model)
    words, encoder = load_words(model), Encoder(tokenizer)
    turns = [Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Bye")]
    ids = steered_prompt(turns, "good", words, encoder, "conversation")
    assert tokenizer.decode(ids) == "User: Hi\n\nAssistant: Hello\n\nUser: Bye A helpful answer:"
    with pytest.raises(ValueError, match="task 'poem' is not one of"):
        steered_prompt("Hi", "good", words, encoder, "poem")


def test_outputs_are_repeatable_and_bounded(model):
    tokenizer, loaded = load_tokenizer(model), load_model(model)
    prompt = steered_prompt("Why?", "good", load_words(model), Encoder(tokenizer))
    (one,) = generate_outputs(loaded, tokenizer, prompt, max_new_tokens=12, do_sample=False)
    (again,) = generate_outputs(loaded, tokenizer, prompt, max_new_tokens=12, do_sample=False)
    assert one == again == one.strip() and "</s>" not in one
    assert (
        len(generate_outputs(loaded, tokenizer, prompt, max_new_tokens=3, do_sample=True, num_return_sequences=3)) == 3
    )
    with pytest.raises(ModelError, match=r"prompt of .* tokens and 512 new ones: the model has 512 positions"):
        generate_outputs(loaded, tokenizer, prompt, max_new_tokens=512)


def test_the_command(model, capsys):
    arguments = ["--model", model, "--prompt", "Why?", "--max_new_tokens", "8"]
    main([*arguments, "--feedback", "good"])
    good = capsys.readouterr().out
    main([*arguments, "--feedback", "good", "--do_sample", "--num_outputs", "2", "--seed", "4", "--temperature", "2.5"])
    two = capsys.readouterr().out
    assert good.strip() and len(two) > 10 and good != two


def test_a_model_without_words(tmp_path):
    folder = tiny_model_folder(tmp_path)
    with pytest.raises(SystemExit, match=r"has no coh\.json, so its words are not known: name some with --templates"):
        main(["--model", folder, "--prompt", "Why?"])
    main(["--model", folder, "--prompt", "Why?", "--templates", "prose", "--task", "answer", "--max_new_tokens", "2"])


def test_bad_options_are_all_said():
    with pytest.raises(ConfigError) as error:
        GenerateArgs("m", " ", max_new_tokens=0, num_outputs=2, temperature=0, top_p=-1, dtype="int3")
    assert [problem.split()[0] for problem in error.value.problems] == [
        *("--prompt", "--max_new_tokens", "--num_outputs", "--temperature", "--top_p", "--dtype")
    ]
