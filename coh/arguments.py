"""The options of every program: dataclasses go in, checked instances come out, and all problems are said at once.

`transformers.HfArgumentParser` turns the fields into options. This room adds what people need around it: recipes
(`--config FILE`, YAML), lists with commas, mappings as JSON, help grouped by the class that declares an option, and one
report of everything that is wrong, each with its remedy, before anything expensive starts.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import json
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

# What people may know from earlier releases, where no likeness of spelling leads to today's name.
SUCCESSORS = {
    "warmup_ratio": "warmup_steps, where a value below 1 is a ratio",
    "no_cuda": "use_cpu",
    "group_by_length": "train_sampling_strategy group_by_length",
}


SECRET = ("token", "key", "password")  # how names of options end whose values are not to be shown
STANDARD_TAG = "tag:yaml.org,2002:"
MOST_PROBLEMS, LONGEST = 100, 2000  # that are said at once, and letters of one
MOST_NODES, MOST_LETTERS = 10_000, 100_000  # of a recipe


class ConfigError(ValueError):
    """All problems with the options, each one sentence that names the option, its value and the remedy.

    >>> ConfigError(["--lora_r 0 is too small: give a rank of 1 or more."]).problems
    ['--lora_r 0 is too small: give a rank of 1 or more.']
    """

    def __init__(self, problems: Iterable[str] | str) -> None:
        sentences = [problems] if isinstance(problems, str) else problems
        self.problems = [_shown(" ".join(sentence.split())) for sentence in sentences]
        more = [f"and {len(self.problems) - MOST_PROBLEMS} more."] if len(self.problems) > MOST_PROBLEMS else []
        super().__init__("\n".join(self.problems[:MOST_PROBLEMS] + more))


def _shown(sentence: str) -> str:
    """What a recipe or a file holds is quoted, may be endless, and a terminal would obey its control characters."""
    if len(sentence) > LONGEST:
        sentence = f"{sentence[: LONGEST // 2]} ... {sentence[-LONGEST // 2 :]}"
    if sentence.isprintable():
        return sentence
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in sentence)


def parse(
    dataclass_types: Sequence[type],
    argv: Sequence[str] | None = None,
    *,
    prog: str | None = None,
    description: str | None = None,
    checks: Callable[..., Iterable[str]] | None = None,
    bare: str | None = None,
) -> tuple[Any, ...]:
    """One instance of each dataclass from the command line; where there are problems, print all and exit with status 2.

    `checks(*instances)` gives a sentence for whatever is wrong between the dataclasses. `bare` is the list that takes
    the words which stand without an option, before, between or behind the others.
    """
    try:
        return parse_or_raise(dataclass_types, argv, prog=prog, description=description, checks=checks, bare=bare)
    except ConfigError as error:
        count = len(error.problems)
        name = prog or os.path.basename(sys.argv[0])
        print(f"{name}: {count} {'problem' if count == 1 else 'problems'} with the options", file=sys.stderr)
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def parse_or_raise(
    dataclass_types: Sequence[type],
    argv: Sequence[str] | None = None,
    *,
    prog: str | None = None,
    description: str | None = None,
    checks: Callable[..., Iterable[str]] | None = None,
    bare: str | None = None,
) -> tuple[Any, ...]:
    """As `parse`, with the problems raised as one `ConfigError`.

    >>> @dataclass
    ... class Plan:
    ...     weights: list[float] = dataclasses.field(default_factory=list, metadata={"help": "Shares of the sources."})
    >>> parse_or_raise([Plan], ["--weights", "1,2", "1"])
    (Plan(weights=[1.0, 2.0, 1.0]),)
    >>> parse_or_raise([Plan], ["--weight", "1"])
    Traceback (most recent call last):
    coh.arguments.ConfigError: --weight is not an option: did you mean --weights?
    """
    parser = _build_parser(dataclass_types, prog, description, bare)
    options = _options(parser, dataclass_types)
    command_line = list(_split(sys.argv[1:] if argv is None else argv))
    if bare:
        command_line = _with_bare(command_line, bare, options)
    if any(given.name in ("-h", "--help") for given in command_line):
        parser.print_help()
        raise SystemExit(0)

    values: dict[str, Any] = {}
    refused: set[str] = set()
    problems: list[str] = []
    recipe = [given.words[0] for given in command_line if given.name == "--config" and given.words]
    for given in [*_read_recipe(recipe, problems), *command_line]:
        option = options.get(given.name)
        if option is None:
            near = _nearest(given, options)
            refused.update(near)
            problems.append(_unknown(given, near))
            continue
        try:
            values[option.name] = option.convert(given)
        except ConfigError as error:
            problems += error.problems
            refused.add(option.name)

    instances, cause = [], None
    for dataclass_type in dataclass_types:
        names = [field.name for field in dataclasses.fields(dataclass_type) if field.init]
        missing = [name for name in names if options[f"--{name}"].action.required and name not in values]
        problems += [f"--{name} is missing: it has no default." for name in missing if name not in refused]
        if missing:
            continue
        try:
            instances.append(dataclass_type(**{name: values[name] for name in names if name in values}))
        except ConfigError as error:
            problems += _unless_refused(error.problems, refused)
        except (ValueError, TypeError, ArithmeticError, ImportError, OSError) as error:
            # Hugging Face's own checks: they stop at the first problem, and not all of them name the option.
            cause = cause or error
            problems += _unless_refused([f"{dataclass_type.__name__}: {error}"], refused)
    if checks is not None and len(instances) == len(dataclass_types):
        problems += _unless_refused(checks(*instances), refused)
    if problems:
        raise ConfigError(problems) from cause
    return tuple(instances)


def _unless_refused(problems: Iterable[str], refused: set[str]) -> list[str]:
    # A refused option stands at its default by now, so what a check says about it may be untrue.
    return [problem for problem in problems if not refused.intersection(re.findall(r"\w+", problem))]


# From dataclasses to a parser


def _build_parser(
    dataclass_types: Sequence[type], prog: str | None, description: str | None, bare: str | None = None
) -> Any:
    from transformers import HfArgumentParser  # takes a second, which whoever needs ConfigError alone should not wait

    parser = HfArgumentParser(
        [group for dataclass_type in dataclass_types for group in _help_groups(dataclass_type)],
        prog=prog,
        description=description,
        usage=f"%(prog)s {f'{bare.upper()} ... ' if bare else ''}[--config FILE] [options]",
        formatter_class=_HelpFormatter,
    )
    if "--config" not in parser._option_string_actions:
        parser.add_argument("--config", help="YAML file of any options below; the command line wins over it.")
    return parser


def _help_groups(dataclass_type: type) -> Iterator[type]:
    """The dataclass as one dataclass for each class that declares fields of it, its own first: a help group each."""
    hints = typing.get_type_hints(dataclass_type)
    waiting = {field.name: field for field in dataclasses.fields(dataclass_type) if field.init}
    for owner in dataclass_type.__mro__:
        names = [name for name in inspect.get_annotations(owner) if name in waiting]
        if names:
            members = [(name, *_parsable(hints[name], waiting.pop(name))) for name in names]
            namespace = {"_argument_group_name": _title(owner)}
            yield dataclasses.make_dataclass(owner.__name__, members, kw_only=True, namespace=namespace)


def _title(owner: type) -> str:
    """The class's name with the first sentence of its docstring, unless `_argument_group_name` gives other words."""
    docstring = inspect.cleandoc(owner.__doc__ or "")
    if docstring.startswith(f"{owner.__name__}("):  # written by @dataclass
        docstring = ""
    words = vars(owner).get("_argument_group_name") or re.split(r"\.\s|\.$|\n\n", docstring)[0]
    return f"{owner.__name__}: {' '.join(words.split())}" if words else owner.__name__


def _parsable(hint: Any, field: dataclasses.Field) -> tuple[Any, dataclasses.Field]:
    """A field that HfArgumentParser can read: mappings become JSON, lists of literals lists of checked words."""
    metadata, members = dict(field.metadata), _members(hint)
    if any((typing.get_origin(member) or member) is dict for member in members):
        hint = _json_or_name if str in members else _json_object
    for member in members:
        item = typing.get_args(member)[0] if typing.get_origin(member) is list else None
        if typing.get_origin(item) is typing.Literal:
            hint, metadata["choices"] = list[str], typing.get_args(item)
    return hint, dataclasses.field(default=field.default, default_factory=field.default_factory, metadata=metadata)


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text} is no JSON object")
    return value


def _json_or_name(text: str) -> str:
    """A name, or JSON that TrainingArguments reads later on, when nobody can say any more which option it came from."""
    if text.startswith("{"):
        _json_object(text)
    return text


def _truth(text: str) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    return words[text.lower()]


_KINDS: dict[Any, tuple[str, str]] = {
    int: ("INT", "a whole number"),
    float: ("NUMBER", "a number"),
    str: ("TEXT", "a text"),
    _truth: ("true|false", "true or false"),
    _json_object: ("JSON", 'a JSON object such as {"key": 1}'),
    _json_or_name: ("NAME|JSON", 'a name or a JSON object such as {"key": 1}'),
}


class _HelpFormatter(argparse.HelpFormatter):
    """One spelling of each option, and its default where it has one."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = ", ".join(name for name in action.option_strings if "-" not in name.lstrip("-"))
        return f"{names} {self._format_args(action, action.dest)}" if action.nargs != 0 else names

    def _get_help_string(self, action: argparse.Action) -> str:
        default = " ".join(map(str, action.default)) if isinstance(action.default, list) else action.default
        has_default = default is not None and default != "" and default != argparse.SUPPRESS
        suffix = f" (default: {default})".replace("%", "%%") if has_default else ""
        return f"{action.help or ''}{suffix}"


# From words to values


@dataclass(frozen=True)
class _Given:
    """An option as somebody gave it: the words after it (None for a recipe's null), and where, if in a recipe."""

    name: str
    words: list[str] | None
    where: str = ""

    @property
    def label(self) -> str:
        return f"{self.where}: {self.name.lstrip('-')}" if self.where else self.name


def _split(argv: Iterable[str]) -> Iterator[_Given]:
    """Each option with the words that follow it; a word such as -1e-4 is no option.

    >>> [(given.name, given.words) for given in _split(["--a", "-1e-4", "2", "--b=c d"])]
    [('--a', ['-1e-4', '2']), ('--b', ['c d'])]
    """
    name, words = "", list[str]()
    for word in argv:
        head, equals, tail = word.partition("=")
        if re.fullmatch(r"--?[A-Za-z][\w.-]*", head):
            if name or words:
                yield _Given(name, words)
            name, words = head, [tail] if equals else []
        else:
            words.append(word)
    if name or words:
        yield _Given(name, words)


@dataclass(frozen=True)
class _Option:
    """What it takes to turn words into one field's value."""

    name: str
    action: Any
    is_list: bool
    is_list_or_word: bool
    accepts_none: bool

    def convert(self, given: _Given) -> Any:
        """The value, or a ConfigError that says what is wrong with the words."""
        action, words = self.action, given.words
        if words is None:
            if self.accepts_none:
                return None
            raise ConfigError(f"{given.label} has no value: give {self.kind}, or remove the line.")
        if self.is_list:
            words = [piece.strip() for word in words for piece in word.split(",") if piece.strip()]
        if not words and action.nargs in (0, "?"):
            return action.const
        if not words and not (action.nargs == "+" and given.where and given.words == []):  # a recipe can say []
            raise ConfigError(f"{given.label} needs a value: give {self.kind}.")
        if action.nargs == 0:
            raise ConfigError(f"{given.label} takes no value: remove {' '.join(words)!r}.")
        if action.nargs != "+" and len(words) > 1:
            shown = "..." if self.name.endswith(SECRET) else " ".join(words)
            raise ConfigError(
                f"{given.label} takes one value, but {len(words)} follow ({shown}): "
                "keep one, or put quotes around a value with spaces."
            )
        values, problems = [], []
        for word in words:
            try:
                values.append(self.convert_word(word))
            except (ValueError, TypeError, KeyError, RecursionError, argparse.ArgumentTypeError):
                problems.append(f"{given.label} {word!r} is not {self.kind}{self.hint(word)}.")
        if problems:
            raise ConfigError(problems)
        return values[0] if action.nargs != "+" or (self.is_list_or_word and len(values) == 1) else values

    def convert_word(self, word: str) -> Any:
        # A text that may stand alone, such as --fsdp, may be true or false too, which is how a recipe says it.
        if self.action.type is not _truth and self.action.nargs == "?" and word.lower() in ("true", "false"):
            return self.action.const if word.lower() == "true" else self.action.default
        value = self.action.type(word) if self.action.type else word
        if self.action.choices is not None and value not in self.action.choices:
            raise ValueError(word)
        return value

    @property
    def kind(self) -> str:
        if self.action.choices is not None:
            return f"one of {', '.join(map(str, self.action.choices))}"
        return _KINDS.get(self.action.type, _KINDS[str])[1]

    def hint(self, word: str) -> str:
        if self.action.choices is not None:
            near = difflib.get_close_matches(word, map(str, self.action.choices), n=1)
            return f"; the nearest is {near[0]}" if near else ""
        default = self.action.default
        return f": give one, such as {default}" if type(default) in (int, float) else ""


def _with_bare(command_line: Iterable[_Given], bare: str, options: Mapping[str, _Option]) -> list[_Given]:
    """The options, each with no more words than it takes; what is left over goes to the list named `bare`."""
    kept, own = list[_Given](), list[str]()
    for given in command_line:
        words, option = given.words or [], options.get(given.name)
        num_taken = {None: 1, 0: 0}.get(option.action.nargs, len(words)) if option else 1
        if given.name and not (option and option.name == bare):
            kept.append(dataclasses.replace(given, words=words[:num_taken]))
            words = words[num_taken:]
        own += words
    return [*kept, _Given(f"--{bare}", own)] if own else kept


def _options(parser: Any, dataclass_types: Sequence[type]) -> dict[str, _Option]:
    """Every spelling of every option; adapts what HfArgumentParser made of the fields."""
    from transformers.hf_argparser import string_to_bool

    hints = {name: hint for cls in dataclass_types for name, hint in typing.get_type_hints(cls).items()}
    options = {}
    for spelling, action in parser._option_string_actions.items():
        members = _members(hints.get(action.dest))
        # `str | list[str]` (--report_to): HfArgumentParser takes one word. No commas here: the word may be a pattern.
        is_list_or_word = str in members and any(typing.get_origin(member) is list for member in members)
        is_list = action.nargs == "+" and not is_list_or_word
        if is_list_or_word:
            action.nargs = "+"
        if action.type in (string_to_bool, _truth):
            action.type, action.nargs, action.const = _truth, "?", True
        if spelling.startswith("--no_") and action.nargs == 0:
            action.help = argparse.SUPPRESS  # the opposite of an option that is listed
        if action.metavar is None and action.nargs != 0:
            action.metavar = _KINDS.get(action.type, _KINDS[str])[0]
            if action.choices is not None:
                choices = "|".join(map(str, action.choices))
                action.metavar = choices if len(choices) < 60 else "NAME"
        options[spelling] = _Option(action.dest, action, is_list, is_list_or_word, type(None) in members)
    options["--config"].action.metavar = "FILE"
    return options


def _nearest(given: _Given, options: dict[str, _Option]) -> list[str]:
    """The options that somebody may have meant by an unknown one: one that is spelled alike, or two that contain it."""
    name = given.name.lstrip("-").replace("-", "_")
    known = [spelling[2:] for spelling in options if re.fullmatch(r"--\w+", spelling)]
    near = difflib.get_close_matches(name, known, n=1)
    return near or [other for other in known if name in other and len(name) > 2][:2]


def _unknown(given: _Given, near: Sequence[str]) -> str:
    if not given.name:
        return f"{' '.join(given.words or [])!r} stands before every option: name the option that it belongs to."
    name, dashes = given.name.lstrip("-").replace("-", "_"), "" if given.where else "--"
    remedy = "--help lists all options."
    if name in SUCCESSORS:
        remedy = f"use {dashes}{SUCCESSORS[name]}."
    elif near:
        remedy = f"did you mean {' or '.join(dashes + other for other in near)}?"
    return f"{given.label} is not an option: {remedy}"


# Recipes


class _RecipeLoader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number inside mappings too; YAML 1.1 wants 1.0e-4."""


_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _read_recipe(paths: Sequence[str], problems: list[str]) -> Iterator[_Given]:
    """The options in the last file of `paths`, as the words of a command line; its faults are added to `problems`."""
    if not paths:
        return
    path = paths[-1]
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MOST_LETTERS + 1)
        if len(text) > MOST_LETTERS:
            raise ValueError(f"it has more than {MOST_LETTERS:,} letters")
        loader = _RecipeLoader(text)
        root = loader.get_single_node()
        if root is None or root.tag == "tag:yaml.org,2002:null":
            return
        if not isinstance(root, yaml.MappingNode):
            problems.append(f"--config {path} holds no YAML mapping: write `option: value`, one on a line.")
            return
        _check_nodes(root)
        lines: dict[str, int] = {}
        for key, _ in root.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"line {key.start_mark.line + 1} has a list or mapping for a name")
            if key.value in lines and key.value != "<<":
                problems.append(f"{path}, line {key.start_mark.line + 1}: {key.value} is given twice: keep one.")
            lines[str(key.value)] = key.start_mark.line + 1
        loader.flatten_mapping(root)  # <<: *base
        for key, value in root.value:
            where = f"{path}, line {key.start_mark.line + 1}"
            if key.value == "config":
                problems.append(f"{where}: config cannot stand in a recipe: give one recipe, on the command line.")
            else:
                yield _Given(f"--{key.value}", _words(loader, value), where)
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"--config {path} cannot be read: {getattr(error, 'strerror', None) or error}.")
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        problems.append(f"--config {path} is not YAML: {error}.")
    except RecursionError:
        problems.append(f"--config {path} is not YAML: nested too deeply.")


def _check_nodes(root: yaml.Node) -> None:
    """Raises ValueError for tags that stand for something else than plain values, and for aliases without end."""
    waiting, number = [root], 0
    while waiting:
        node = waiting.pop()
        number += 1
        if number > MOST_NODES:
            raise ValueError(f"more than {MOST_NODES:,} entries, aliases (*name) written out")
        if not node.tag.startswith(STANDARD_TAG) or node.tag.startswith(f"{STANDARD_TAG}python/"):
            raise ValueError(f"line {node.start_mark.line + 1}: {node.tag} is no plain value: take the tag away")
        if isinstance(node, yaml.MappingNode):
            waiting += [inner for pair in node.value for inner in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def _words(loader: yaml.SafeLoader, node: yaml.Node) -> list[str] | None:
    """A recipe's value as words: scalars exactly as they are written (`no` stays `no`), mappings as JSON."""
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag == "tag:yaml.org,2002:null" else [node.value]
    if isinstance(node, yaml.SequenceNode):
        return [word for item in node.value for word in _words(loader, item) or ["null"]]
    return [json.dumps(loader.construct_object(node, deep=True))]
