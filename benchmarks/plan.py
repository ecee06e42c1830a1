"""Memory of each GPU and expected tokens a second, before anything is rented: formulas, and a table.

    python benchmarks/plan.py --model llama-8b --gpus 8 --zero 3 --checkpointing
    python benchmarks/plan.py --model llama-70b --gpus 64 --fsdp --gpu a100 --micro_batch 2
    python benchmarks/plan.py --model llama-7b --gpus 1 --lora_rank 16 --gpu l4 --checkpointing
    python benchmarks/plan.py --table

Letters: N parameters, h hidden size, L layers, H heads of size d, K key and value heads, I intermediate size, V words;
S tokens of a row, B rows of a micro-batch, T = B S; n GPUs; c bytes of a computed number (2 in bf16, 4 in fp32).

**Parameters.** LLaMA: V h (twice where the head is not tied) + L (2 h H d + 2 h K d + 3 h I + 2 h) + h.
GPT-J: 2 V h + V + L (4 h^2 + 2 h I + I + 3 h) + 2 h.

**Weights, gradients, states**, bytes a parameter. Trainer (`--zero 0`) keeps fp32 weights also under bf16: 4 + 4 + 8 =
16, with several GPUs 4 more for the buckets in which gradients travel, under bf16 2 more for autocast's copies.
DeepSpeed in bf16: 2 + 2 + 12 = 16, of which stage 1 divides the 12 by n, stage 2 the gradients too, stage 3 all. FSDP2
divides 4 + 4 + 8. Stage 3 and FSDP2 hold gathered weights besides: at most 10^9 parameters of DeepSpeed's, two layers
and the embeddings of FSDP2's. Offload moves the states to the host, from stage 2 on the gradients, in stage 3 the
weights. LoRA: only the adapters, r (in + out) for each matrix of a layer, have gradients and states; the rest is there
in c bytes.

**Activations** of a LLaMA layer, bytes a token: fp32 4 (6 h + 2 H d + 2 K d + 4 I + H); bf16 autocast 16 h + 2 (5 h +
2 H d + 2 K d + 4 I) + 4 H, since the residual stream stays fp32 and each product casts its input anew; bf16 weights
12 h + 2 (2 h + 2 H d + 2 K d + 4 I) + 4 H. GPT-J: 6 h + 5 I numbers, and S of each head, since its attention is kept
whole. With checkpointing only the layers' inputs and, in the backward, one layer. A layer's backward works with about
3 I + 4 h numbers a token, and packed rows need a mask of B S^2 bytes.

**Head.** Logits of a chunk, at most 64 MiB in fp32, and 4 V h bytes of the weights' gradient, which is formed in the
forward; in bf16 half as many logits again, 2 V h for a product and 2 V h for cast weights. No logits of the whole
batch. The head is done when the backward begins, so of its memory and a layer's backward the larger counts.

**Work**, floating-point operations a token: 6 (N without embeddings and head) + 6 V h (share of targets) + 12 L S H d
for attention over whole rows; checkpointing repeats the layers' forward (a third more of them), LoRA needs no
gradients of frozen weights (a third less).

**Traffic** of a GPU in an optimizer step, g bytes of gradients, w of weights: stage 0 2 g (n - 1) / n; stages 1 and 2
(g + w) (n - 1) / n; stage 3 and FSDP2 gather the weights for each forward and backward: (2 a w + g) (n - 1) / n with
a micro-batches. Within a machine it runs over its links, beyond it over the slower of link and network, and each
layer's sending costs 10 microseconds log2 n before the first byte. Engines send while they compute, so a step takes the
longer of both; offload's traffic and the host's Adam come on top.

What stands for speed (share of the GPU's peak that is used, share of a link's) is an assumption and an option; the
formulas of memory and work are tested against what a CPU measures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log2

GIB = 2**30
CHUNK_BYTES = 64 * 2**20  # fp32 logits that the head makes at once (coh.loss.chunk_rows)
LIVE_PARAMETERS = 10**9  # DeepSpeed's stage3_max_live_parameters
RESERVE = 1.5 * GIB  # the driver's context, libraries' workspaces
FILLED = 0.94  # share of the memory beyond that can be used before fragments are in the way
LATENCY = 10e-6  # seconds of a collective operation, times log2 of the GPUs
LINK_SHARE = 0.8  # of a link's bandwidth that collective operations reach
HOST_BANDWIDTH = 200e9  # bytes a second of a machine's memory, for Adam on the host


@dataclass(frozen=True)
class Model:
    """The sizes that formulas ask for."""

    hidden: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate: int
    vocabulary: int
    is_tied: bool = False
    head_size: int | None = None
    kind: str = "llama"

    @property
    def attended(self) -> int:
        """Numbers of all heads' queries: H d."""
        return self.num_heads * self.d

    @property
    def d(self) -> int:
        return self.head_size or self.hidden // self.num_heads

    @property
    def layer_matrices(self) -> int:
        """Parameters of a layer that are multiplied with."""
        if self.kind == "gptj":
            return 4 * self.hidden**2 + 2 * self.hidden * self.intermediate
        keys_and_values = 2 * self.hidden * self.num_kv_heads * self.d
        return 2 * self.hidden * self.attended + keys_and_values + 3 * self.hidden * self.intermediate

    @property
    def layer(self) -> int:
        small = self.intermediate + 3 * self.hidden if self.kind == "gptj" else 2 * self.hidden
        return self.layer_matrices + small

    @property
    def head(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def num_parameters(self) -> int:
        ends = self.vocabulary + 2 * self.hidden if self.kind == "gptj" else self.hidden
        return self.head * (1 if self.is_tied else 2) + self.num_layers * self.layer + ends

    def lora_parameters(self, rank: int) -> int:
        """Parameters of adapters on every matrix of the layers."""
        h, wide, kv = self.hidden, self.intermediate, self.num_kv_heads * self.d
        if self.kind == "gptj":
            sides = 4 * (h + h) + 2 * (h + wide)
        else:
            sides = 2 * (h + self.attended) + 2 * (h + kv) + 3 * (h + wide)
        return self.num_layers * rank * sides


MODELS = {
    "smollm2-135m": Model(576, 30, 9, 3, 1536, 49_152, is_tied=True),
    "smollm2-360m": Model(960, 32, 15, 5, 2560, 49_152, is_tied=True),
    "llama-3.2-1b": Model(2048, 16, 32, 8, 8192, 128_256, is_tied=True),
    "smollm2-1.7b": Model(2048, 24, 32, 32, 8192, 49_152, is_tied=True),
    "gpt-j-6b": Model(4096, 28, 16, 16, 16_384, 50_400, kind="gptj"),
    "llama-7b": Model(4096, 32, 32, 32, 11_008, 32_000),
    "llama-8b": Model(4096, 32, 32, 8, 14_336, 128_256),
    "llama-13b": Model(5120, 40, 40, 40, 13_824, 32_000),
    "llama-70b": Model(8192, 80, 64, 8, 28_672, 128_256),
}


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU in its usual machine; bandwidths one way, bytes a second."""

    name: str
    memory: float  # GiB
    bf16: float  # dense products, operations a second
    fp32: float
    link: float  # of a GPU to the others of its machine: NVLink, or PCIe where there is none
    pcie: float  # to the host
    network: float  # of a whole machine
    host: float  # GiB of a machine's own memory


GPUS = {
    "a100": Gpu("A100 80 GB", 80, 312e12, 19.5e12, 300e9, 32e9, 200e9, 1024),
    "h100": Gpu("H100 80 GB", 80, 989e12, 67e12, 450e9, 64e9, 400e9, 2048),
    "l4": Gpu("L4 24 GB", 24, 121e12, 30.3e12, 32e9, 32e9, 12.5e9, 256),
    "4090": Gpu("RTX 4090 24 GB", 24, 165e12, 82.6e12, 32e9, 32e9, 12.5e9, 256),
}


@dataclass(frozen=True)
class Run:
    """How a model is trained."""

    num_gpus: int = 1
    stage: int = 0
    is_fsdp: bool = False
    is_offloaded: bool = False
    seq_length: int = 2048
    micro_batch: int = 1
    accumulation: int = 1
    lora_rank: int = 0
    is_bf16: bool = True
    is_checkpointed: bool = False
    target_share: float = 0.65
    gpus_per_machine: int = 8
    utilisation: float = 0.4

    def __post_init__(self) -> None:
        problems = []
        counts = ("num_gpus", "seq_length", "micro_batch", "accumulation", "gpus_per_machine")
        problems += [f"{name} {getattr(self, name)}: give 1 or more" for name in counts if getattr(self, name) < 1]
        if self.num_gpus > 1024:
            problems.append(f"num_gpus {self.num_gpus}: give 1024 or fewer, beyond that these formulas say too little")
        if self.stage not in (0, 1, 2, 3):
            problems.append(f"stage {self.stage}: ZeRO has the stages 0 (off), 1, 2 and 3")
        if self.lora_rank < 0:
            problems.append(f"lora_rank {self.lora_rank}: give 0 (all parameters are trained) or more")
        for name in ("target_share", "utilisation"):
            if not 0 < getattr(self, name) <= 1:
                problems.append(f"{name} {getattr(self, name)}: give a share above 0, at most 1")
        if self.is_fsdp and self.stage:
            problems.append(f"FSDP2 and ZeRO stage {self.stage}: choose one engine")
        if self.is_fsdp and self.is_offloaded:
            problems.append("offload is planned for ZeRO only: choose stage 1, 2 or 3")
        if self.is_offloaded and not self.stage and not self.is_fsdp:
            problems.append("offload needs ZeRO: choose stage 1, 2 or 3")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def is_deepspeed(self) -> bool:
        return self.stage > 0

    @property
    def is_sharded(self) -> bool:
        """Whether the weights themselves are divided."""
        return self.is_fsdp or self.stage == 3

    @property
    def compute_bytes(self) -> int:
        return 2 if self.is_bf16 else 4

    @property
    def tokens(self) -> int:
        """Of a micro-batch on one GPU."""
        return self.micro_batch * self.seq_length

    @property
    def name(self) -> str:
        """The engine in short.

        >>> Run(stage=2, is_offloaded=True, is_checkpointed=True).name
        'ZeRO-2 + offload, checkpointing'
        """
        engine = (
            "FSDP2" if self.is_fsdp else f"ZeRO-{self.stage}" if self.stage else "DDP" if self.num_gpus > 1 else "plain"
        )
        parts = [engine + (" + offload" if self.is_offloaded else "")]
        parts += [f"LoRA {self.lora_rank}"] if self.lora_rank else []
        return ", ".join([*parts, *(["checkpointing"] if self.is_checkpointed else [])])


# Memory


def trained_parameters(model: Model, run: Run) -> int:
    return model.lora_parameters(run.lora_rank) if run.lora_rank else model.num_parameters


def bytes_of_weights(run: Run) -> int:
    """Bytes of a trained weight as the engine holds it: DeepSpeed's are bf16, with fp32 masters among the states."""
    return 2 if run.is_deepspeed and run.is_bf16 else 4


def model_memory(model: Model, run: Run) -> dict[str, float]:
    """Bytes on a GPU of weights, gradients and optimizer states, and of weights that are gathered or copied."""
    trained, n = trained_parameters(model, run), run.num_gpus
    frozen = model.num_parameters if run.lora_rank else 0
    of_weight = bytes_of_weights(run)
    of_states = 8 + (4 if of_weight == 2 else 0)
    weights: float = of_weight * trained + run.compute_bytes * frozen
    gradients: float = of_weight * trained
    states: float = of_states * trained
    if run.is_sharded:
        weights /= n
    if run.is_sharded or run.stage == 2:
        gradients /= n
    if run.is_sharded or run.stage:
        states /= n
    if run.is_offloaded:
        states = 0
        gradients = gradients if run.stage == 1 else 0
        weights = 0 if run.stage == 3 else weights
    return {"weights": weights, "gradients": gradients, "states": states, "copies": copied_weights(model, run)}


def copied_weights(model: Model, run: Run) -> float:
    """Bytes of weights or gradients beside their home: gathered, cast, or in a bucket."""
    of_compute = run.compute_bytes
    if run.stage == 3:
        return of_compute * min(model.num_parameters, LIVE_PARAMETERS) if run.num_gpus > 1 or run.is_offloaded else 0
    if run.is_fsdp:
        ends = model.num_parameters - model.num_layers * model.layer
        return of_compute * (2 * model.layer + ends)
    trained = trained_parameters(model, run)
    buckets = 4 * trained if run.num_gpus > 1 and not run.is_deepspeed else 0
    casts = 2 * trained if run.is_bf16 and not run.is_deepspeed else 0
    return buckets + casts


def host_memory(model: Model, run: Run) -> float:
    """Bytes of the host for each GPU that offload needs."""
    if not run.is_offloaded:
        return 0
    trained = trained_parameters(model, run)
    of_weight = bytes_of_weights(run)
    kept = 8 + (4 if of_weight == 2 else 0) + (of_weight if run.stage > 1 else 0) + (of_weight if run.stage == 3 else 0)
    return kept * trained / run.num_gpus


def layer_activations(model: Model, run: Run) -> float:
    """Bytes a token that a layer keeps for its backward."""
    h, wide, heads = model.hidden, model.intermediate, model.num_heads
    is_autocast = run.is_bf16 and not run.is_deepspeed and not run.is_fsdp
    if model.kind == "gptj":
        if not run.is_bf16:
            return 4 * (6 * h + 5 * wide + heads * run.seq_length)
        return (4 * h + 2 * (8 * h + 5 * wide) if is_autocast else 2 * (6 * h + 5 * wide)) + 6 * heads * run.seq_length
    attention = 2 * model.attended + 2 * model.num_kv_heads * model.d
    if not run.is_bf16:
        return 4 * (6 * h + attention + 4 * wide + heads)
    if is_autocast:
        return 16 * h + 2 * (5 * h + attention + 4 * wide) + 4 * heads
    return 12 * h + 2 * (2 * h + attention + 4 * wide) + 4 * heads


def activation_memory(model: Model, run: Run) -> float:
    """Bytes that a micro-batch's forward keeps until its backward."""
    of_residual = 2 if run.is_bf16 and (run.is_deepspeed or run.is_fsdp) else 4
    of_layer = of_residual * model.hidden if run.is_checkpointed else layer_activations(model, run)
    ends = 4 * 4 * model.hidden  # embeddings, the last norm, and the head's input with its gradient
    return run.tokens * (model.num_layers * of_layer + ends) + run.micro_batch * run.seq_length**2


def head_memory(model: Model, run: Run) -> float:
    """Bytes of the head beyond its weights: a chunk's logits, and the weights' gradient."""
    logits = min(CHUNK_BYTES, 4 * run.tokens * model.vocabulary)
    if not run.is_bf16:
        return logits + (0 if run.lora_rank else 4 * model.head)
    # In bf16 a chunk is there in both formats, its product before it is added in fp32, and fp32 weights are cast first.
    products = 0 if run.lora_rank else (4 + 2) * model.head
    return 1.5 * logits + products + (2 * model.head if bytes_of_weights(run) == 4 else 0)


def backward_memory(model: Model, run: Run) -> float:
    """Bytes that the backward of a layer works with: gradients, and with checkpointing the layer's forward again."""
    working = run.compute_bytes * (3 * model.intermediate + 4 * model.hidden)
    return run.tokens * (working + (layer_activations(model, run) if run.is_checkpointed else 0))


def memory(model: Model, run: Run) -> dict[str, float]:
    """Bytes on a GPU at the fullest moment, by what they are for. The head is done when the backward begins.

    >>> plain = memory(MODELS["smollm2-135m"], Run(is_bf16=False))
    >>> int(plain["weights"] + plain["gradients"] + plain["states"]) == 16 * 134_515_008
    True
    """
    head, backward = head_memory(model, run), backward_memory(model, run)
    return {
        **model_memory(model, run),
        "activations": activation_memory(model, run),
        "head" if head > backward else "backward": max(head, backward),
        "reserve": RESERVE,
    }


def capacity(gpu: Gpu) -> float:
    """Bytes that can be filled."""
    return RESERVE + FILLED * (gpu.memory * GIB - RESERVE)


# Speed


def layer_work(model: Model, run: Run) -> float:
    """Operations a token of a forward through the layers, each multiplication with its addition."""
    return model.num_layers * (2 * model.layer_matrices + 4 * run.seq_length * model.attended)


def work(model: Model, run: Run) -> float:
    """Operations a token of forward and backward."""
    forward = layer_work(model, run)
    matrices, head = 2 * model.num_layers * model.layer_matrices, 2 * model.head * run.target_share
    if run.lora_rank:
        adapters = 6 * model.lora_parameters(run.lora_rank)
        return 3 * forward - matrices + 2 * head + adapters + (forward if run.is_checkpointed else 0)
    return 3 * forward + 3 * head + (forward if run.is_checkpointed else 0)


def traffic(model: Model, run: Run) -> float:
    """Bytes that a GPU sends in an optimizer step."""
    trained = trained_parameters(model, run)
    gradients = trained * (4 if not run.is_deepspeed else bytes_of_weights(run))
    weights = run.compute_bytes * (model.num_parameters if run.is_sharded else trained)
    if run.is_sharded:
        whole = 2 * run.accumulation * weights + gradients
    elif run.stage:
        whole = gradients + weights
    else:
        whole = 2 * gradients
    return whole * (run.num_gpus - 1) / run.num_gpus


def bandwidth(gpu: Gpu, run: Run) -> float:
    """Bytes a second that a GPU's share of a collective operation moves at."""
    is_one_machine = run.num_gpus <= run.gpus_per_machine
    return LINK_SHARE * (gpu.link if is_one_machine else min(gpu.link, gpu.network))


def offload_seconds(model: Model, run: Run, gpu: Gpu) -> float:
    """Gradients to the host and weights back, and Adam there, which reads and writes 28 bytes a parameter."""
    if not run.is_offloaded:
        return 0.0
    own = trained_parameters(model, run) / run.num_gpus
    moved = 2 * bytes_of_weights(run) * own
    if run.stage == 3:  # the weights come for each forward and backward
        moved += 2 * run.accumulation * run.compute_bytes * model.num_parameters / run.num_gpus
    return moved / (LINK_SHARE * gpu.pcie) + 28 * own / (HOST_BANDWIDTH / min(run.num_gpus, run.gpus_per_machine))


@dataclass(frozen=True)
class Plan:
    """What a run needs and reaches: bytes on a GPU, and seconds of an optimizer step."""

    model: Model
    run: Run
    gpu: Gpu

    @property
    def bytes(self) -> float:
        return sum(memory(self.model, self.run).values())

    @property
    def fits(self) -> bool:
        on_machine = min(self.run.num_gpus, self.run.gpus_per_machine)
        host = on_machine * host_memory(self.model, self.run)
        return self.bytes <= capacity(self.gpu) and host <= FILLED * self.gpu.host * GIB

    @property
    def computing(self) -> float:
        peak = self.gpu.bf16 if self.run.is_bf16 else self.gpu.fp32
        return self.run.accumulation * self.run.tokens * work(self.model, self.run) / (peak * self.run.utilisation)

    @property
    def sending(self) -> float:
        num_operations = self.model.num_layers * (2 * self.run.accumulation + 1 if self.run.is_sharded else 1)
        waiting = num_operations * LATENCY * log2(self.run.num_gpus)
        return traffic(self.model, self.run) / bandwidth(self.gpu, self.run) + waiting

    @property
    def seconds(self) -> float:
        return max(self.computing, self.sending) + offload_seconds(self.model, self.run, self.gpu)

    @property
    def tokens_per_second(self) -> float:
        return self.run.num_gpus * self.run.accumulation * self.run.tokens / self.seconds


def describe(plan: Plan, name: str) -> str:
    """The plan for a person."""
    model, run, gpu = plan.model, plan.run, plan.gpu
    parts = memory(model, run)
    lines = [
        f"{name}: {model.num_parameters:,} parameters, {trained_parameters(model, run):,} of them trained",
        f"{run.num_gpus} x {gpu.name}, {run.name}, {'bf16' if run.is_bf16 else 'fp32'}; each takes {run.micro_batch} x "
        f"{run.seq_length} tokens, {run.accumulation} time(s) a step",
        "",
        "memory of a GPU, GiB",
        *(f"  {part:12} {amount / GIB:9.2f}" for part, amount in parts.items()),
        f"  {'together':12} {plan.bytes / GIB:9.2f}   {'fits' if plan.fits else 'does NOT fit'} into {gpu.memory:g}",
    ]
    if run.is_offloaded:
        lines.append(f"  {'on the host':12} {host_memory(model, run) / GIB:9.2f}   for each GPU")
    lines += [
        "",
        f"a step, at {run.utilisation:.0%} of the GPU's peak",
        f"  computing    {plan.computing:9.3f} s   {work(model, run) / 1e9:,.1f} GFLOP a token",
        f"  sending      {plan.sending:9.3f} s   {traffic(model, run) / 1e9:,.2f} GB at "
        f"{bandwidth(gpu, run) / 1e9:,.0f} GB/s",
    ]
    if run.is_offloaded:
        lines.append(f"  offload      {offload_seconds(model, run, gpu):9.3f} s")
    rate = plan.tokens_per_second
    return "\n".join([*lines, f"  expected     {rate:9,.0f} tokens a second, {rate / run.num_gpus:,.0f} for each GPU"])


# The table


def ways(num_gpus: int, seq_length: int) -> list[Run]:
    """The settings that are tried for a number of GPUs."""
    engines: list[dict[str, object]] = [
        {"stage": 0},
        {"stage": 2, "is_offloaded": True},
        {"stage": 3, "is_offloaded": True},
    ]
    if num_gpus > 1:
        engines += [{"stage": 2}, {"stage": 3}]
    return [
        Run(num_gpus, seq_length=seq_length, micro_batch=rows, is_checkpointed=is_checkpointed, **engine)  # type: ignore[arg-type]
        for engine in engines
        for is_checkpointed in (False, True)
        for rows in (1, 2, 4, 8, 16)
    ]


def best(model: Model, num_gpus: int, gpu: Gpu, seq_length: int) -> Plan | None:
    """The fastest of the settings that fit, with as many rows as can be where that is the same; or None."""
    plans = [Plan(model, run, gpu) for run in ways(num_gpus, seq_length)]
    fitting = [plan for plan in plans if plan.fits]
    return max(fitting, key=lambda plan: (float(f"{plan.tokens_per_second:.3g}"), plan.run.micro_batch), default=None)


def cell(plan: Plan | None) -> str:
    """A plan in a few words."""
    if plan is None:
        return "does not fit"
    rate = plan.tokens_per_second
    text = f"{rate / 1e6:.1f}M" if rate >= 1e6 else f"{rate / 1e3:,.0f}k" if rate >= 1e4 else f"{rate / 1e3:.1f}k"
    short = plan.run.name.replace(", checkpointing", "*")
    rows = f"{plan.run.micro_batch} row{'s' if plan.run.micro_batch > 1 else ''}"
    return f"{short}, {rows}, {plan.bytes / GIB:.0f} GiB: **{text}**"


def table_for(gpu: Gpu, counts: Sequence[int], seq_length: int = 2048) -> str:
    """Sizes by numbers of GPUs, as markdown."""
    lines = [
        f"| {gpu.name} | " + " | ".join(f"{count:,} GPU{'s' if count > 1 else ''}" for count in counts) + " |",
        "|---|" + "---|" * len(counts),
    ]
    for name, model in MODELS.items():
        cells = [cell(best(model, count, gpu, seq_length)) for count in counts]
        lines.append(f"| {name}, {model.num_parameters / 1e9:.2f}B | {' | '.join(cells)} |")
    return "\n".join(lines)


def table() -> str:
    """The tables of docs/performance.md."""
    return "\n\n".join([table_for(GPUS["h100"], (1, 8, 64, 1024)), table_for(GPUS["4090"], (1, 8))])


# The program


def options() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    found.add_argument("--model", choices=MODELS, default="llama-8b", help="the size")
    found.add_argument("--gpus", type=int, default=8, help="number of GPUs, 1 to 1024")
    found.add_argument("--gpu", choices=GPUS, default="h100", help="their kind")
    found.add_argument("--zero", type=int, default=0, help="DeepSpeed's stage: 0 (none, DDP), 1, 2 or 3")
    found.add_argument(
        "--offload", action="store_true", help="states (and from stage 2 on what goes with them) on the host"
    )
    found.add_argument("--fsdp", action="store_true", help="FSDP2 in the place of DeepSpeed")
    found.add_argument("--seq_length", type=int, default=2048, help="tokens of a row")
    found.add_argument("--micro_batch", type=int, default=1, help="rows that a GPU computes at once")
    found.add_argument("--accumulation", type=int, default=1, help="micro-batches of an optimizer step")
    found.add_argument("--lora_rank", type=int, default=0, help="rank of adapters on all matrices; 0 trains everything")
    found.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="what products are computed in")
    found.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    found.add_argument("--target_share", type=float, default=0.65, help="share of all tokens that are targets")
    found.add_argument("--utilisation", type=float, default=0.4, help="share of the GPU's peak that is reached")
    found.add_argument("--gpus_per_machine", type=int, default=8, help="GPUs that the fast links join")
    found.add_argument("--link", type=float, help="GB/s one way between GPUs of a machine; by default the kind's own")
    found.add_argument("--network", type=float, help="GB/s one way between machines; by default the kind's usual")
    found.add_argument("--table", action="store_true", help="print the table of sizes by GPUs instead")
    return found


def run_of(args: argparse.Namespace) -> Run:
    return Run(
        num_gpus=args.gpus,
        stage=args.zero,
        is_fsdp=args.fsdp,
        is_offloaded=args.offload,
        seq_length=args.seq_length,
        micro_batch=args.micro_batch,
        accumulation=args.accumulation,
        lora_rank=args.lora_rank,
        is_bf16=args.precision == "bf16",
        is_checkpointed=args.checkpointing,
        target_share=args.target_share,
        gpus_per_machine=args.gpus_per_machine,
        utilisation=args.utilisation,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print a plan, or the table."""
    parser = options()
    args = parser.parse_args(argv)
    if args.table:
        print(table())
        return 0
    for name in ("link", "network"):
        if getattr(args, name) is not None and not getattr(args, name) > 0:
            parser.error(f"--{name} {getattr(args, name):g}: give GB/s above 0")
    gpu = GPUS[args.gpu]
    gpu = replace(gpu, **{name: getattr(args, name) * 1e9 for name in ("link", "network") if getattr(args, name)})
    try:
        run = run_of(args)
    except ValueError as error:
        parser.error(str(error))
    print(describe(Plan(MODELS[args.model], run, gpu), args.model))
    return 0


if __name__ == "__main__":
    sys.exit(main())
