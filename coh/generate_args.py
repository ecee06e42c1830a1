"""The options of `coh.generate`: ours, and all of `transformers.GenerationConfig` under their own names."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any, Literal

from coh.arguments import ConfigError
from coh.modeling import DTYPES
from coh.options import option_types
from coh.steered import call_options

# Under names of ours: guidance and num_outputs.
RENAMED = ("guidance_scale", "num_return_sequences")
GenerationOptions: Any = make_dataclass(
    "GenerationOptions",
    [
        (name, hint, field(default=None, metadata={"help": ""}))
        for name, hint in option_types().items()
        if name not in RENAMED
    ],
    namespace={
        "__doc__": "Every option of transformers.GenerationConfig, under its own name; what is not given is as the "
        "model has it"
    },
    kw_only=True,
)


@dataclass(kw_only=True)
class GenerateArgs(GenerationOptions):
    """What is asked of a trained model; besides, every option of transformers' GenerationConfig works."""

    model: str = field(
        metadata={"help": "Folder of a trained model, or a hub id; its coh.json tells the words it was taught."}
    )
    prompt: str | None = field(default=None, metadata={"help": "What the output is for, as plain text."})
    input: str | None = field(
        default=None,
        metadata={
            "help": "File of prompts: rows with `prompt`, a text or a list of messages (.jsonl, .json, .csv, "
            ".parquet), or one a line (.txt)."
        },
    )
    output: str | None = field(
        default=None,
        metadata={
            "help": "File for one line of JSON for each row and feedback: the row, `feedback` and `output`. A run that "
            "was stopped goes on where it stopped. By default they are printed."
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Begin --output anew, whatever it holds."})
    interactive: bool = field(default=False, metadata={"help": "Talk with the model in the terminal."})
    feedback: str | list[str] = field(
        default="good",
        metadata={
            "help": "Words in front of the output: good, bad, the name of a template such as general.p.2, or any words "
            'in quotes. Several (good bad "In one sentence:") give an output each.'
        },
    )
    revise: int = field(
        default=0,
        metadata={"help": "Rounds in which a better output is asked for, with the earlier ones in front as worse."},
    )
    best_of: int = field(
        default=1,
        metadata={
            "help": "Sample so many outputs and keep the one that the model scores highest: log p under good words "
            "less log p under bad ones (the lowest with --feedback bad)."
        },
    )
    guidance: float = field(
        default=1.0,
        metadata={
            "aliases": ["--guidance_scale"],
            "help": "Strength of classifier-free guidance towards the words and away from bad ones (from good ones, "
            "with --feedback bad); 1 is off, 1.5 is a beginning.",
        },
    )
    task: Literal["general", "answer", "summary", "conversation"] | None = field(
        default=None,
        metadata={
            "help": "Whose words are used, where the templates tell tasks apart; by default the task that the "
            "model saw most."
        },
    )
    templates: str | None = field(
        default=None,
        metadata={"help": "Other words than the model's own: prose, marker, marker_varied or a YAML file."},
    )
    max_new_tokens: int = field(
        default=128, metadata={"help": "Longest output in tokens; it ends earlier at the end-of-text token."}
    )
    do_sample: bool = field(
        default=False, metadata={"help": "Draw tokens by probability instead of taking the likeliest, for variety."}
    )
    temperature: float | None = field(
        default=None, metadata={"help": "Below 1 sharpens the draw, above 1 flattens it; with --do_sample."}
    )
    top_k: int | None = field(
        default=None, metadata={"help": "Draw from so many of the likeliest tokens; with --do_sample."}
    )
    top_p: float | None = field(
        default=None,
        metadata={"help": "Draw from the likeliest tokens of this total probability; with --do_sample."},
    )
    repetition_penalty: float | None = field(
        default=None,
        metadata={"help": "Above 1 makes tokens that stand already less likely; small models repeat themselves."},
    )
    num_outputs: int = field(
        default=1,
        metadata={
            "aliases": ["--num_return_sequences"],
            "help": "How many outputs; more than 1 needs --do_sample or --num_beams.",
        },
    )
    batch_size: int = field(default=8, metadata={"help": "Prompts answered at once: a matter of memory and speed."})
    seed: int = field(default=0, metadata={"help": "Seed of the draws."})
    dtype: str = field(
        default="auto",
        metadata={"help": f"Number format of the weights, one of {', '.join(DTYPES)}; auto is how they were saved."},
    )
    device: str = field(default="auto", metadata={"help": "Where to compute: auto takes a GPU where there is one."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads from the hub are kept."})
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run Python code that lies with the model, which some models need. Read it first."},
    )

    def __post_init__(self) -> None:
        problems = self._what_problems() + self._number_problems()
        if self.dtype not in DTYPES:
            problems.append(f"--dtype {self.dtype}: give one of {', '.join(DTYPES)}.")
        try:
            self.guidance, self.call = call_options("--", **self._given())
        except ConfigError as error:
            problems += error.problems
        if problems:
            raise ConfigError(problems)

    @property
    def words(self) -> list[str]:
        """The feedback asked for, each once."""
        return [self.feedback] if isinstance(self.feedback, str) else list(dict.fromkeys(self.feedback))

    def _given(self) -> dict[str, Any]:
        """The options of transformers that are given, and guidance."""
        given = {name: getattr(self, name) for name in option_types() if name not in RENAMED}
        given |= {"guidance": self.guidance}
        if self.num_outputs > 1 or self.best_of > 1:
            given["num_return_sequences"] = max(self.num_outputs, self.best_of)
        if self.best_of > 1:
            given["do_sample"] = True
        return given

    def _what_problems(self) -> list[str]:
        asked = [name for name in ("prompt", "input", "interactive") if getattr(self, name) not in (None, False)]
        problems = []
        if len(asked) != 1:
            given = f"{' and '.join('--' + name for name in asked)}: give" if asked else "Nothing is asked: give"
            problems.append(f"{given} one of --prompt, --input and --interactive.")
        if self.prompt is not None and not self.prompt.strip():
            problems.append("--prompt is empty: give the text that the output is for.")
        if self.interactive:
            problems += [
                f"--{name} has no meaning with --interactive: leave it out."
                for name, off in (("output", None), ("num_outputs", 1), ("best_of", 1), ("revise", 0))
                if getattr(self, name) != off
            ]
        if self.output and not Path(self.output).absolute().parent.is_dir():
            problems.append(f"--output {self.output}: there is no such folder: make it, or choose another.")
        if any(not words.strip() for words in self.words) or (self.interactive and len(self.words) > 1):
            problems.append(f"--feedback {' '.join(map(repr, self.words))}: give words, with --interactive one kind.")
        return problems

    def _number_problems(self) -> list[str]:
        problems = [
            f"--{name} {getattr(self, name)}: give {least} or more."
            for name, least in (("batch_size", 1), ("num_outputs", 1), ("best_of", 1), ("revise", 0))
            if getattr(self, name) < least
        ]
        several = [
            name for name, off in (("num_outputs", 1), ("best_of", 1), ("revise", 0)) if getattr(self, name) > off
        ]
        if len(several) > 1:
            problems.append(f"{' and '.join('--' + name for name in several)} do not go together: choose one.")
        return problems
