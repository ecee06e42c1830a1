"""Make a whole model of an adapter and the model it was trained on.

    python -m coh.merge --model outputs/adapter --output_dir outputs/whole

In: a folder that training with --use_lora wrote. Out: a plain Hugging Face folder that computes the same and needs no
peft, with the adapter's tokenizer, chat template, generation settings and `coh.json`, so that the same words steer it,
and a model card of the adapter's run where its folder records one.

The sum is made in float32 and rounded once, to the format it is saved in. An adapter that was trained on quantised
weights is added to the unquantised ones, as it is wherever else the adapter is used.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coh.arguments import ConfigError, parse
from coh.card import write_card
from coh.modeling import ADAPTER_FILE, DTYPES, ModelError, adapter_base, load_config, load_model, with_adapter
from coh.report.record import STATE
from coh.saved import FILE

logger = logging.getLogger("coh")
KEPT = (FILE, "generation_config.json")


@dataclass
class MergeArgs:
    """Which adapter, and where the whole model goes."""

    model: str = field(metadata={"help": "Folder or hub id of an adapter, as --use_lora of coh.coh_train writes it."})
    output_dir: str = field(metadata={"help": "Folder for the whole model: a new or an empty one."})
    base_model: str | None = field(
        default=None,
        metadata={
            "help": "The model that the adapter was trained on, where it has moved; by default the adapter says."
        },
    )
    dtype: str = field(
        default="auto",
        metadata={
            "help": f"Number format of the result, one of {', '.join(DTYPES)}; auto is the base model's. 16 bits round "
            "small changes of large weights away, float32 keeps them."
        },
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads are kept."})
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run Python code that lies with the model, which some models need. Read it first."},
    )

    def __post_init__(self) -> None:
        problems = []
        if self.dtype not in DTYPES:
            problems.append(f"--dtype {self.dtype}: give one of {', '.join(DTYPES)}.")
        output = Path(self.output_dir)
        if output.exists() and not (output.is_dir() and not any(output.iterdir())):
            problems.append(f"--output_dir {output}: something is there already: choose a new or an empty folder.")
        if problems:
            raise ConfigError(problems)


def merged_model(args: MergeArgs) -> Any:
    """The whole model, in the number format that is asked for.

    Raises:
        ModelError: there is no adapter of that name, or it does not fit its base.
    """
    import torch

    base = adapter_base(args.model, args.cache_dir)
    if base is None:
        raise ModelError(f"--model {args.model}: there is no adapter ({ADAPTER_FILE}), so there is nothing to merge")
    base = args.base_model or base
    if adapter_base(base, args.cache_dir) is not None:
        raise ModelError(f"the base {base} is an adapter itself: merge that one first")
    options: dict[str, Any] = {"cache_dir": args.cache_dir, "trust_remote_code": args.trust_remote_code}
    config = load_config(base, **options)
    if getattr(config, "quantization_config", None) is not None and not base.endswith(".gguf"):
        raise ModelError(
            f"the base {base} is stored in quantised form, and the sum would be rounded to it: name the unquantised "
            "model with --base_model"
        )
    model = load_model(base, dtype="float32", **options)
    model = with_adapter(model, args.model, args.cache_dir).merge_and_unload(safe_merge=True)
    dtype = getattr(config, "dtype", None) or torch.float32
    return model.to(dtype if args.dtype == "auto" else getattr(torch, args.dtype))


def copy_around(name: str, folder: Path, cache_dir: str | None, *, trust_remote_code: bool) -> None:
    """What lies around an adapter's weights: the tokenizer with its chat templates, and the files that are kept."""
    from transformers import AutoTokenizer
    from transformers.utils import cached_file

    AutoTokenizer.from_pretrained(name, cache_dir=cache_dir, trust_remote_code=trust_remote_code).save_pretrained(
        folder
    )
    silent = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    for file in KEPT:
        path = cached_file(name, file, cache_dir=cache_dir, **silent)
        if path is not None:
            shutil.copyfile(path, folder / file)


def merge(args: MergeArgs) -> None:
    """Writes the whole model, so that its folder is there at the end or not at all."""
    model = merged_model(args)
    output = Path(args.output_dir).absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
        whole = Path(scratch) / "whole"
        model.save_pretrained(whole)
        copy_around(args.model, whole, args.cache_dir, trust_remote_code=args.trust_remote_code)
        if (Path(args.model) / STATE).is_file() and (whole / FILE).is_file():
            write_card(whole, output.name, run_folder=args.model)
        os.replace(whole, output)
    bits = _trained_bits(output / FILE)
    if bits:
        logger.info("The adapter was trained on %d-bit weights; it is merged into the unquantised ones.", bits)
    logger.info("%s: a whole model of %s parameters, %s", output, f"{model.num_parameters():,}", model.dtype)


def _trained_bits(path: Path) -> int | None:
    """Of how many bits the weights were that the adapter was trained on, as far as `coh.json` says."""
    if not path.exists():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    arguments = content.get("arguments") if isinstance(content, dict) else None
    return next((bits for bits in (4, 8) if (arguments or {}).get(f"load_in_{bits}bit")), None)


def main(argv: Sequence[str] | None = None) -> None:
    (args,) = parse([MergeArgs], argv, prog="python -m coh.merge", description=(__doc__ or "").split("\n")[0])
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        merge(args)
    except ValueError as error:
        raise SystemExit(f"coh.merge: {error}") from error


if __name__ == "__main__":
    main()
