"""Small real things that tests build: a tokenizer of bytes, feedback files, stores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TINY_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def byte_tokenizer(merges: bool = True) -> Any:
    """A byte-level BPE tokenizer, trained on a few words, with `<s>`, `</s>` and `<pad>`; it needs no file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300 if merges else 259,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = "User: A helpful answer: An unhelpful answer: the of and is it that " * 3
    tokenizer.train_from_iterator([words] if merges else [], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def chat_tokenizer(tokenizer: Any = None, template: str = CHATML) -> Any:
    """A tokenizer (the one of bytes by default) with turn tokens and a chat template."""
    tokenizer = tokenizer or byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer


def store_of(groups: list[Any]) -> Any:
    """A store of these groups, in memory."""
    from datasets import Dataset

    from coh.data.sources.stores import GroupStore
    from coh.data.sources.tables import row_of, table_features

    rows = [row_of(group, number, group.prompt) for number, group in enumerate(groups, start=1)]
    return GroupStore("any", "any", "memory", {}, Dataset.from_list(rows, features=table_features()))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    """A .jsonl file of these rows; its path as text."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pairs(number: int, length: int = 6, start: int = 0) -> list[dict[str, str]]:
    """Preference pairs with prompts and outputs that tell their number; lengths vary around `length` words."""
    rows = []
    for row in range(start, start + number):
        words = 1 + (row * 7) % (2 * length)
        rows.append(
            {
                "prompt": f"Question {row}: what is {row} plus {row}?",
                "chosen": f"It is {2 * row}." + f" Right {row}." * words,
                "rejected": f"Not {row}." + f" Hm {row}." * (1 + (row * 5) % (2 * length)),
            }
        )
    return rows


def tiny_model_folder(folder: Path, **config: Any) -> str:
    """A two-layer LLaMA with random weights and the byte tokenizer, saved as a plain Hugging Face folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    sizes = {
        **TINY_LLAMA,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**(sizes | config))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def training_folder(folder: Path) -> Path:
    """All that a run of `coh.coh_train` needs: model/, pairs.jsonl and text.jsonl."""
    tiny_model_folder(folder / "model")
    write_rows(folder / "pairs.jsonl", pairs(80, length=3))
    write_rows(folder / "text.jsonl", [{"text": f"Text {n}. " + "It is so. " * (n % 9)} for n in range(60)])
    return folder


# A task of the lm-eval harness, to be formatted with its name and the path of its rows.
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""


def plain_log_p(model: Any, document: Any) -> float:
    """log p of a document's targets: the log-softmax of full logits, at the targets, one document at a time."""
    import torch

    ids = torch.tensor([document.input_ids])
    with torch.no_grad():
        log_p = model(ids).logits[0].double().log_softmax(-1)
    return sum(
        float(log_p[place - 1, document.input_ids[place]])
        for place in range(1, len(document.input_ids))
        if document.target_mask[place]
    )
