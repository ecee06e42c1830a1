"""The model card: what a trained folder tells people who find it on the hub, as its README.md.

In: a folder that `coh.coh_train` wrote, or what `coh.merge` made of it. Out: `README.md` with metadata for the hub, and
the facts of the run: words, how to use them, data, options, figures, versions, command. A card is for strangers, so
what lies on the machine of the run (folders, files, templates) is named by the last part of its path, and never linked
as if it were on the hub.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from coh.data.records import FeedbackError
from coh.data.sources import parse_sources
from coh.measuring import LABELS
from coh.pages import Table
from coh.report import tables
from coh.report.marks import block, plain, table
from coh.report.record import Run, read_run
from coh.saved import FILE as ABOUT
from coh.saved import load_words

logger = logging.getLogger(__name__)

FILE = "README.md"
PAPER = "https://arxiv.org/abs/2302.02676"
TASK = "text-generation"
TAGS = ("chain-of-hindsight", "human-feedback")
LOCAL = "custom"  # what the hub calls a data set that it does not have
OF_DATA = ("Data of an epoch", "Shortened and dropped", "Templates")  # the other tables of a report are results
OPTIONS = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "optim", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("weight_decay", "max_grad_norm", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("seq_length", "pt_loss_weight", "pretrain_ratio", "fcm_min_ratio", "fcm_max_ratio", "train_on", "chains"),
    *("max_outputs", "templates", "prompt_format", "prepend_bos", "packing", "isolate_documents", "dtype", "bf16"),
    *("fp16", "seed", "data_seed"),
)
OF_ADAPTERS = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "load_in_4bit", "load_in_8bit")
IN_TEST = {"loss": "loss on outputs (nats per token)", "accuracy": "accuracy on tokens of outputs (share)"}
IN_INDEX = ("pair_accuracy_by_words", "pair_accuracy", "steering_gap")  # of evaluation.json
OF_FILES = (".gguf", ".json", ".jsonl", ".csv", ".parquet", ".txt")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{16,}")


@dataclass(frozen=True)
class Source:
    """Where text came from: an id of the hub, or the last part of a local path."""

    name: str
    where: str
    is_on_hub: bool


def write_card(folder: str | Path, hub_id: str | None = None, run_folder: str | Path | None = None) -> Path:
    """Writes `README.md` into the folder of a trained model, over what is there; `hub_id` is where it will be found.

    `run_folder` is where the run is recorded, if elsewhere: the adapter's folder for the card of a merged model.

    Raises:
        FeedbackError: the folder has no `coh.json`.
        ReportError: it has no log of a run, or a file that cannot be read.
    """
    folder = Path(folder)
    if not (folder / ABOUT).is_file():
        raise FeedbackError(f"{folder} has no {ABOUT}: give the --output_dir of a training run that has ended")
    run = read_run(run_folder or folder)
    name = hub_id or (folder.resolve().name if run_folder else run.arguments.get("hub_model_id") or run.name)
    is_adapter = _is_adapter(folder)
    tested = _tested(run)
    content = f"---\n{metadata(run, name, is_adapter, tested).to_yaml()}\n---\n\n{_text(run, name, is_adapter, tested)}"
    path = folder / FILE
    path.write_text(str(ModelCard(content)), encoding="utf-8")
    return path


def metadata(run: Run, name: str, is_adapter: bool, tested: Mapping[str, float]) -> ModelCardData:
    """What the hub reads: kind, base, data and figures, as far as the hub has them under the same names."""
    base = base_model(run)
    known = _known_of(str(run.arguments.get("model_name", "")))
    datasets = [source.where for source in sources(run) if source.is_on_hub]
    results = list(_results(run, tested))
    more: dict[str, Any] = {}
    if base.is_on_hub:
        more["base_model_relation"] = "adapter" if is_adapter else "finetune"
    return ModelCardData(
        base_model=base.where if base.is_on_hub else None,
        datasets=list(dict.fromkeys(datasets)) or None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag=TASK,
        tags=[*TAGS, *(["lora"] if is_adapter else [])],
        license=known.get("license"),
        license_name=known.get("license_name"),
        license_link=known.get("license_link"),
        language=known.get("language"),
        model_name=name.split("/")[-1] if results else None,
        eval_results=results or None,
        **more,
    )


def base_model(run: Run) -> Source:
    """The model before training."""
    return _source("base", str(run.arguments.get("model_name") or "an unnamed model"))


def sources(run: Run) -> list[Source]:
    """The feedback, and the text beside it."""
    found = []
    for words in _listed(run.arguments.get("feedback_data")):
        try:
            specs = parse_sources([words])
        except FeedbackError:  # a file that has moved since
            found.append(Source(last_part(words), last_part(words), False))
            continue
        for spec in specs:
            is_on_hub = spec.kind == "hub"
            own = "sample" if words.startswith("sample") else last_part(spec.location)
            found.append(Source(spec.name, spec.location if is_on_hub else own, is_on_hub))
    text = str(run.arguments.get("pretrain_data") or "none")
    if text == "c4":
        found.append(Source("text", "allenai/c4", True))
    elif text == "sample":
        found.append(Source("text", "sample", False))
    elif text != "none":
        found.append(_source("text", text if Path(text).exists() else text.partition(":")[0]))
    return found


def _source(name: str, words: str) -> Source:
    return Source(name, words, True) if is_hub_id(words) else Source(name, last_part(words), False)


def is_hub_id(words: str) -> bool:
    """Whether words name a model on the hub, and nothing that lies here.

    >>> is_hub_id("EleutherAI/pythia-1b"), is_hub_id("gpt2"), is_hub_id("/models/mine"), is_hub_id("models/tiny.gguf")
    (True, True, False, False)
    """
    return bool(_HUB_ID.fullmatch(words)) and not words.endswith(OF_FILES) and not Path(words).exists()


def last_part(words: str) -> str:
    r"""The last part of a path, of any system.

    >>> last_part("/home/someone/pairs.jsonl"), last_part("C:\\data\\mine"), last_part("outputs/mine/")
    ('pairs.jsonl', 'mine', 'mine')
    """
    return PureWindowsPath(words).name or "."  # which knows the slashes of both


def public_command(command: str) -> str:
    """A command without what is nobody's business: paths by their last part, and no token.

    >>> public_command("python -m coh.coh_train --feedback_data mine=/home/someone/a.jsonl@50 --output_dir=../out/b")
    'python -m coh.coh_train --feedback_data mine=a.jsonl@50 --output_dir=b'
    """
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    return shlex.join(public(word) for word in words)


def public(word: str) -> str:
    """A word of a command, or a value of an option, without paths and tokens."""
    head, equals, value = word.rpartition("=") if not word.startswith(("{", "/")) else ("", "", word)
    if equals and not re.fullmatch(r"[\w.-]+", head):
        head, equals, value = "", "", word
    is_far = value.startswith(("/", "~", "..", "./")) or PureWindowsPath(value).is_absolute()
    is_here = "/" in value and not value.startswith("{") and Path(value.rpartition("@")[0] or value).exists()
    if is_far or is_here:
        value = last_part(value)
    # Inside of JSON and the like.
    value = re.sub(r"(?<![\w.:/])(?:~|[A-Za-z]:\\)?(?:/[^\s'\",:/}]+){2,}", lambda found: last_part(found[0]), value)
    return _TOKEN.sub("...", f"{head}{equals}{value}")


def _known_of(base: str) -> Mapping[str, Any]:
    """What the base's own card says of its license and language; nothing where that cannot be had."""
    from transformers.utils import cached_file

    silent = ("missing_entries", "connection_errors", "gated_repo")
    try:
        path = cached_file(base, FILE, **{f"_raise_exceptions_for_{what}": False for what in silent})
        found = ModelCard.load(path, ignore_metadata_errors=True).data.to_dict() if path else {}
    except Exception:  # whatever the hub, the disk or the YAML of strangers raises: the card goes without
        return {}
    return {name: found[name] for name in ("license", "license_name", "license_link", "language") if found.get(name)}


def _results(run: Run, tested: Mapping[str, float]) -> Iterator[EvalResult]:
    """Figures of the trained model on held-out feedback, by source, and on benchmarks."""
    known = {source.name: source for source in sources(run)}
    after = run.measured.get("after", {})
    for name in run.summary.get("sources", {}):
        source = known.get(name, Source(name, name, False))
        on = {
            "task_type": TASK,
            "dataset_type": source.where if source.is_on_hub else LOCAL,
            "dataset_name": name,
            # The metadata keeps figures of one type and config as figures of one data set.
            "dataset_config": None if source.is_on_hub else name,
        }
        for kind, label in IN_TEST.items():
            value = tested.get(f"test_{name}_{kind}")
            if value is not None:
                yield EvalResult(**on, metric_type=kind, metric_name=label, metric_value=round(value, 4))
        figures = after.get("sources", {}).get(name, {})
        for kind in IN_INDEX:
            if figures.get(kind) and figures[kind]["value"] is not None:
                value = round(figures[kind]["value"], 3) + 0.0
                label = f"{LABELS[kind]}, {figures[kind]['n']} pairs"
                yield EvalResult(**on, metric_type=kind, metric_name=label, metric_value=value)
    for (task, measure), found in tables.benchmarks(after).items():
        on = {"task_type": TASK, "dataset_type": LOCAL, "dataset_name": task, "dataset_config": task}
        label = f"{measure}, {found.n} examples" if found.n else measure
        value = round(found.value, 4)
        yield EvalResult(**on, metric_type=measure.split()[0], metric_name=f"{label} (lm-eval)", metric_value=value)


def _tested(run: Run) -> dict[str, float]:
    """The figures of the test, as Trainer saved them; a file that cannot be read is left out, with a warning."""
    path = run.folder / "test_results.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read, and the card goes without it: %s", path, error)
        return {}
    return {name: value for name, value in found.items() if isinstance(value, (int, float))}


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _text(run: Run, name: str, is_adapter: bool, tested: Mapping[str, float]) -> str:
    parts = [
        f"# {plain(name.split('/')[-1])}",
        _introduction(run, is_adapter),
        *_words(run),
        *_use(name, is_adapter),
        *_data(run),
        *_training(run),
        *_results_told(run, tested),
        *_repeat(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _introduction(run: Run, is_adapter: bool) -> str:
    what = "An adapter (LoRA) for" if is_adapter else "A fine-tuned version of"
    base = base_model(run)
    linked = f"[{base.where}](https://huggingface.co/{base.where})" if base.is_on_hub else f"`{base.where}`"
    is_merged = _is_adapter(run.folder) and not is_adapter
    merged = (
        " It was trained as an adapter (LoRA), which is merged into the weights; figures are the adapter's."
        if is_merged
        else ""
    )
    return (
        f"{what} {linked}, trained on human feedback by [Chain of Hindsight]({PAPER}): it learned good and bad "
        "outputs, each behind words that say how good it is, and is steered by the same words." + merged
    )


def _words(run: Run) -> Iterator[str]:
    """What stands in front of an output, as the saved chat template writes it."""
    from transformers import AutoTokenizer

    words = load_words(run.folder)
    tokenizer = AutoTokenizer.from_pretrained(run.folder)
    asked = [{"role": "user", "content": "{prompt}"}]
    yield "## The words"
    yield "What the model reads in front of an output that is to be good, and in front of a bad one:"
    for feedback in ("good", "bad"):
        shown = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True, feedback=feedback)
        yield block(shown)
    tasks = ", ".join(words.tasks)
    yield f"Templates: {plain(last_part(words.family.name))}; tasks learned: {tasks}; prompts: {words.prompt_format}."


def _use(name: str, is_adapter: bool) -> Iterator[str]:
    loaded = "AutoPeftModelForCausalLM" if is_adapter else "AutoModelForCausalLM"
    imported = (
        "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer"
        if is_adapter
        else "from transformers import AutoModelForCausalLM, AutoTokenizer"
    )
    place = json.dumps(name)
    yield "## How to use it"
    yield "The chat template puts the good words in by itself, and takes others as `feedback`:"
    yield block(
        f"""{imported}

tokenizer = AutoTokenizer.from_pretrained({place})
model = {loaded}.from_pretrained({place})
messages = [{{"role": "user", "content": "How do I keep basil alive?"}}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
ids = model.generate(**prompt, max_new_tokens=100)[0, prompt["input_ids"].shape[1] :]
print(tokenizer.decode(ids, skip_special_tokens=True).strip())

# Other words: "good" (the default), "bad", or words of your own.
prompt = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True, feedback="bad"
)""",
        "python",
    )
    yield "With the package `coh`, which it was trained with, it also revises, and judges outputs:"
    yield block(
        f"""import coh

model = coh.load({place})
prompt = "How do I keep basil alive?"
print(model.generate(prompt, feedback="good", max_new_tokens=100))
print(model.revise(prompt, rounds=2, max_new_tokens=100))
print(model.score(prompt, ["Water it when the soil is dry.", "Plants are a big topic."]))""",
        "python",
    )


def _data(run: Run) -> Iterator[str]:
    yield "## Data"
    found = sources(run)
    if found:
        yield "\n".join(f"- {plain(source.name)}: {_origin(source)}" for source in found)
    yield from (_titled(found) for found in tables.tables([run]) if _is_of_data(found))
    num_texts = run.summary.get("text_documents")
    if num_texts:
        yield f"Beside it {num_texts:,} plain texts, of which every token is learned."


def _origin(source: Source) -> str:
    if source.is_on_hub:
        return f"[{source.where}](https://huggingface.co/datasets/{source.where})"
    if source.where.startswith("sample"):
        return "the sample that comes with coh"
    return f"`{source.where}`, a local file or folder"


def _training(run: Run) -> Iterator[str]:
    names = (*OPTIONS, *(OF_ADAPTERS if _is_adapter(run.folder) else ()))
    rows = [(name, _value(run.arguments[name])) for name in names if run.arguments.get(name) not in (None, [], "")]
    steps = run.curve("loss")
    if run.num_tokens:
        rows.append(("tokens read", f"{run.num_tokens:,}"))
    if steps:
        rows.append(("loss at the end", f"{steps[-1][1]:.3f}"))
    yield "## Training"
    yield table(Table("", ("option", "value"), tuple(rows), num_words=2))


def _value(value: Any) -> str:
    return ", ".join(public(str(one)) for one in _listed(value)) if isinstance(value, list) else public(str(value))


def _results_told(run: Run, tested: Mapping[str, float]) -> Iterator[str]:
    rows = tuple(
        (name, f"{tested[f'test_{name}_loss']:.3f}", f"{tested[f'test_{name}_accuracy']:.1%}")
        for name in run.summary.get("sources", {})
        if {f"test_{name}_loss", f"test_{name}_accuracy"} <= tested.keys()
    )
    found = [one for one in tables.tables([run]) if not _is_of_data(one)]
    if not rows and not found:
        return
    yield "## Results"
    yield "On prompts and texts that it was not trained on; benchmarks, where there are any, are those of lm-eval."
    if rows:
        yield _titled(Table("Test", ("source", "loss (nats per token)", "accuracy on tokens"), rows))
    yield from map(_titled, found)


def _is_of_data(found: Table) -> bool:
    return found.title.startswith(OF_DATA)


def _titled(found: Table) -> str:
    return f"**{plain(found.title)}**\n\n{table(found)}"


def _repeat(run: Run) -> Iterator[str]:
    yield "## To repeat it"
    command = public_command(tables.command(run))
    if command:
        yield block(command, "sh")
    about = run.about.get("run") or {}
    rows = [(name, public(str(about[name]))) for name in tables.FACTS if about.get(name)]
    rows += [(name, version) for name, version in (run.about.get("versions") or {}).items() if version]
    yield table(Table("", ("", ""), tuple(rows), num_words=2))


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
