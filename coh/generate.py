"""Steer: outputs for a prompt, under good or under bad words.

    python -m coh.generate --model DIR --prompt "Why is the sky blue?" --feedback good

The prompt is built by the code that builds training rows, so its ids are the beginning of such a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from coh.arguments import ConfigError, parse
from coh.data.encoding import Encoder
from coh.data.hindsight import opening, prompt_text, steering_template
from coh.data.records import TASKS, Message, as_messages
from coh.modeling import DTYPES, ModelError, load_model, load_tokenizer
from coh.saved import Words, load_words


@dataclass
class GenerateArgs:
    """What is asked of a trained model."""

    model: str = field(
        metadata={"help": "Folder of a trained model, or a hub id; its coh.json tells the words it was taught."}
    )
    prompt: str = field(metadata={"help": "What the output is for, as plain text."})
    feedback: Literal["good", "bad"] = field(
        default="good",
        metadata={"help": "Which words stand in front of the output: those of good outputs or of bad ones."},
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
    temperature: float = field(
        default=1.0, metadata={"help": "Below 1 sharpens the draw, above 1 flattens it; counts with --do_sample only."}
    )
    top_p: float = field(
        default=1.0,
        metadata={"help": "Draw from the likeliest tokens of this total probability; counts with --do_sample only."},
    )
    repetition_penalty: float = field(
        default=1.0,
        metadata={"help": "Above 1 makes tokens that stand already less likely; small models repeat themselves."},
    )
    num_outputs: int = field(default=1, metadata={"help": "How many outputs; more than 1 needs --do_sample."})
    seed: int = field(default=0, metadata={"help": "Seed of the draws."})
    dtype: str = field(
        default="auto",
        metadata={"help": f"Number format of the weights, one of {', '.join(DTYPES)}; auto is how they were saved."},
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads from the hub are kept."})

    def __post_init__(self) -> None:
        problems = []
        if not self.prompt.strip():
            problems.append("--prompt is empty: give the text that the output is for.")
        if self.max_new_tokens < 1:
            problems.append(f"--max_new_tokens {self.max_new_tokens}: give 1 or more.")
        if self.num_outputs < 1 or (self.num_outputs > 1 and not self.do_sample):
            problems.append(f"--num_outputs {self.num_outputs}: give 1, or more together with --do_sample.")
        for name, least in (("temperature", 0), ("top_p", 0), ("repetition_penalty", 0)):
            if not getattr(self, name) > least:
                problems.append(f"--{name} {getattr(self, name)}: give a number above {least}.")
        if self.dtype not in DTYPES:
            problems.append(f"--dtype {self.dtype}: give one of {', '.join(DTYPES)}.")
        if problems:
            raise ConfigError(problems)


def steered_prompt(
    prompt: str | Sequence[Message], feedback: str, words: Words, encoder: Encoder, task: str = "general"
) -> list[int]:
    """The ids that a model continues with an output of that quality: the beginning of the training row it was taught
    by.

    Args:
        prompt: a text, or the turns of a conversation.
        feedback: "good" or "bad".
    """
    if task not in TASKS:
        raise ValueError(f"task {task!r} is not one of {', '.join(TASKS)}")
    template = steering_template(words.family, task, feedback)
    segments = opening(template, prompt_text(as_messages(prompt), task, words.family.roles))
    return np.concatenate([encoder.bos, *encoder.encode([segment.text for segment in segments])]).tolist()


def generate_outputs(model: Any, tokenizer: Any, prompt_ids: Sequence[int], **generation: Any) -> list[str]:
    """The outputs that a model writes behind these ids, without special tokens and white space around them.

    Args:
        generation: options of `transformers.GenerationConfig`, such as max_new_tokens, do_sample, num_return_sequences.
    """
    import torch

    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = generation.get("max_new_tokens", 0)
    if limit and len(prompt_ids) + room > limit:
        raise ModelError(
            f"prompt of {len(prompt_ids)} tokens and {room} new ones: the model has {limit} positions, shorten "
            f"one of them"
        )
    input_ids = torch.tensor([list(prompt_ids)], device=model.device)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        found = model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            use_cache=True,
            **generation,
        )
    model.train(was_training)
    return [tokenizer.decode(ids[len(prompt_ids) :], skip_special_tokens=True).strip() for ids in found]


def main(argv: Sequence[str] | None = None) -> None:
    (args,) = parse([GenerateArgs], argv, prog="python -m coh.generate", description=(__doc__ or "").split("\n")[0])
    from transformers import set_seed

    try:
        words = load_words(args.model, args.templates, args.cache_dir)
        tokenizer = load_tokenizer(args.model, args.cache_dir)
        prompt_ids = steered_prompt(
            args.prompt, args.feedback, words, Encoder(tokenizer, words.prepend_bos), args.task or words.tasks[0]
        )
        model = load_model(args.model, dtype=args.dtype, cache_dir=args.cache_dir)
        set_seed(args.seed)
        drawing = {"temperature": args.temperature, "top_p": args.top_p} if args.do_sample else {}
        outputs = generate_outputs(
            model,
            tokenizer,
            prompt_ids,
            max_new_tokens=args.max_new_tokens,
            do_sample=args.do_sample,
            repetition_penalty=args.repetition_penalty,
            num_return_sequences=args.num_outputs,
            **drawing,
        )
    except ValueError as error:
        raise SystemExit(f"coh.generate: {error}") from error
    print("\n\n".join(outputs))


if __name__ == "__main__":
    main()
