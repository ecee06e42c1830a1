"""The options of `transformers.GenerationConfig`: their names, types and limits, known before any weights load."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import Any

from coh.arguments import ConfigError

DEFAULTS: dict[str, Any] = {"max_new_tokens": 128, "do_sample": False}
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
# Lowest and highest value, and whether the lowest is itself one. transformers checks them only when it generates.
RANGES: dict[str, tuple[float, float, bool]] = {
    "max_new_tokens": (1, float("inf"), True),
    "min_new_tokens": (0, float("inf"), True),
    "max_length": (1, float("inf"), True),
    "num_beams": (1, float("inf"), True),
    "num_return_sequences": (1, float("inf"), True),
    "temperature": (0, float("inf"), False),
    "top_k": (0, float("inf"), True),
    "top_p": (0, 1, False),
    "min_p": (0, 1, True),
    "typical_p": (0, 1, False),
    "epsilon_cutoff": (0, 1, True),
    "eta_cutoff": (0, 1, True),
    "repetition_penalty": (0, float("inf"), False),
    "encoder_repetition_penalty": (0, float("inf"), False),
    "no_repeat_ngram_size": (0, float("inf"), True),
    "encoder_no_repeat_ngram_size": (0, float("inf"), True),
}
_KINDS: dict[str, Any] = {
    "int": int | None,
    "float": float | None,
    "bool": bool | None,
    "dict": dict | None,
    "list int": list[int] | None,
    "int or list int": list[int] | None,
    "Union int list int": list[int] | None,
    "str or list str": None | str | list[str],
}


def option_types() -> dict[str, Any]:
    """Every option with the type that its documentation states; text, perhaps JSON, where that is none of the usual.

    >>> types = option_types()
    >>> types["top_k"], types["top_p"], types["suppress_tokens"]
    (int | None, float | None, list[int] | None)
    """
    from transformers import GenerationConfig

    entries = re.findall(r"^ {8}(\w+) \((.+?)\):?\s*$", GenerationConfig.__doc__ or "", re.M)
    stated = {name: " ".join(re.findall(r"[a-zA-Z]+", words.partition("*optional*")[0])) for name, words in entries}
    names = [name for name in vars(GenerationConfig()) if not name.startswith("_") and name != "transformers_version"]
    return {name: _KINDS.get(stated.get(name, ""), str | None) for name in names}


def checked_options(given: Mapping[str, Any], dashes: str = "") -> dict[str, Any]:
    """The options that are to be passed on: those given, behind our defaults; `dashes` is how messages name them.

    >>> checked_options({"max_new_tokens": 8})
    {'max_new_tokens': 8, 'do_sample': False}

    Raises:
        ConfigError: every option that is unknown, out of its range or without effect.
    """
    types = option_types()
    values = {name: _value(text, types.get(name)) for name, text in given.items() if text is not None}
    problems = [_unknown(name, types, dashes) for name in values if name not in types]
    for name in [name for name in values if name in types]:
        problems += _value_problems(name, values[name], types[name], dashes)
    values = {**DEFAULTS, **values}
    if values.get("max_length"):  # it counts the prompt too, and would be passed over
        del values["max_new_tokens"]
    if not values["do_sample"]:
        problems += [
            f"{dashes}{name} {values[name]} has no effect without {dashes}do_sample: give both, or neither."
            for name in SAMPLING
            if name in values
        ]
    num_outputs = values.get("num_return_sequences", 1)
    if not problems and num_outputs > 1 and not values["do_sample"] and values.get("num_beams", 1) < num_outputs:
        problems = [
            f"{dashes}num_outputs {num_outputs}: give 1, or more together with {dashes}do_sample or as many "
            f"{dashes}num_beams."
        ]
    if not problems:
        problems = _problems_of_transformers(values)
    if problems:
        raise ConfigError(problems)
    return values


def _unknown(name: str, known: Mapping[str, Any], dashes: str) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    remedy = f"did you mean {dashes}{near[0]}?" if near else "see the documentation of transformers.GenerationConfig."
    return f"{dashes}{name} is not an option: {remedy}"


def _value(value: Any, hint: Any) -> Any:
    """Text that holds JSON as what it holds, where an option is no plain text; other values as they are."""
    if hint == _KINDS["str or list str"] or not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def _value_problems(name: str, value: Any, hint: Any, dashes: str) -> list[str]:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint == _KINDS["bool"] and not isinstance(value, bool):
        return [f"{dashes}{name} {value!r}: give true or false."]
    if (hint == _KINDS["int"] and type(value) is not int) or (hint == _KINDS["float"] and not is_number):
        return [f"{dashes}{name} {value!r}: give a {'whole ' if hint == _KINDS['int'] else ''}number."]
    lowest, highest, is_in = RANGES.get(name, (float("-inf"), float("inf"), True))
    if name in RANGES and not (lowest < value <= highest or (is_in and value == lowest)):
        least = f"{lowest:g} or more" if is_in else f"a number above {lowest:g}"
        return [f"{dashes}{name} {value}: give {least}{f', at most {highest:g}' if highest < float('inf') else ''}."]
    return []


def _problems_of_transformers(values: dict[str, Any]) -> list[str]:
    """What `GenerationConfig` itself has against some options together."""
    from transformers import GenerationConfig
    from transformers.generation import CompileConfig

    try:
        if isinstance(values.get("compile_config"), dict):
            values["compile_config"] = CompileConfig(**values["compile_config"])
        if isinstance(values.get("exponential_decay_length_penalty"), list):
            values["exponential_decay_length_penalty"] = tuple(values["exponential_decay_length_penalty"])
        GenerationConfig(**values).validate(strict=True)
    except (ValueError, TypeError, AttributeError) as error:
        return [f"{error}"]
    return []
