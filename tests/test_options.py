"""Every option of transformers' GenerationConfig by its name; mistakes are said before anything is loaded."""

import pytest
from transformers import GenerationConfig

from coh.arguments import ConfigError
from coh.options import RANGES, SAMPLING, checked_options, option_types


def test_every_option_is_known():
    names = {name for name in vars(GenerationConfig()) if not name.startswith("_")} - {"transformers_version"}
    assert set(option_types()) == names and len(names) > 40
    assert {*RANGES, *SAMPLING} <= names


def test_types_are_those_of_the_documentation():
    types = option_types()
    assert types["num_beams"] == int | None and types["min_p"] == float | None and types["do_sample"] == bool | None
    assert types["eos_token_id"] == list[int] | None and types["cache_implementation"] == str | None
    assert types["stop_strings"] == str | list[str] | None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"max_new_tokens": 128, "do_sample": False}),
        ({"max_length": 40}, {"do_sample": False, "max_length": 40}),
        ({"top_k": None}, {"max_new_tokens": 128, "do_sample": False}),
        (
            {"bad_words_ids": "[[5, 6]]", "exponential_decay_length_penalty": "[4, 1.5]", "stop_strings": "5"},
            {
                "max_new_tokens": 128,
                "do_sample": False,
                "bad_words_ids": [[5, 6]],
                "exponential_decay_length_penalty": (4, 1.5),
                "stop_strings": "5",
            },
        ),
        ({"early_stopping": "never", "num_beams": 2}, {"early_stopping": "never", "num_beams": 2}),
        ({"early_stopping": "true", "num_beams": 2}, {"early_stopping": True, "num_beams": 2}),
    ],
)
def test_values(given, expected):
    assert checked_options(given) == {**({} if "max_length" in given else checked_options({})), **expected}


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"max_new_tokns": 1}, "max_new_tokns is not an option: did you mean max_new_tokens?"),
        ({"zzz": 1}, "zzz is not an option: see the documentation of transformers.GenerationConfig."),
        ({"max_new_tokens": 0}, "max_new_tokens 0: give 1 or more."),
        ({"num_beams": "two"}, "num_beams 'two': give a whole number."),
        ({"num_beams": 2.0}, "num_beams 2.0: give a whole number."),
        ({"do_sample": "maybe"}, "do_sample 'maybe': give true or false."),
        ({"top_p": 1.5, "do_sample": True}, "top_p 1.5: give a number above 0, at most 1."),
        ({"temperature": 0.0, "do_sample": True}, "temperature 0.0: give a number above 0."),
        ({"top_k": 5}, "top_k 5 has no effect without do_sample: give both, or neither."),
        ({"num_return_sequences": 2}, "num_outputs 2: give 1, or more together with do_sample or as many num_beams."),
    ],
)
def test_problems(given, problem):
    with pytest.raises(ConfigError) as error:
        checked_options(given)
    assert problem in error.value.problems


def test_what_transformers_has_against_options_is_said_too():
    with pytest.raises(ConfigError, match="cache_implementation"):
        checked_options({"cache_implementation": "drawer"})


def test_all_problems_at_once_under_the_names_of_the_command_line():
    with pytest.raises(ConfigError) as error:
        checked_options({"min_p": 2.0, "num_beems": 1, "repetition_penalty": -1.0, "do_sample": True}, dashes="--")
    assert [problem.split(":")[0] for problem in error.value.problems] == [
        *("--num_beems is not an option", "--min_p 2.0", "--repetition_penalty -1.0")
    ]
