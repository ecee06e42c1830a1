"""Runs what a reader may paste: every command of README.md, docs and recipes, word for word, as far as one machine can.

    python tests/docs_check.py [PAGE ...]

Each page gets a folder of its own, with stand-ins under the names that its commands use: a tiny model for every id of
the hub, some rows in the layout of the public data sets, a folder trained on them. What cannot be run here is named in
`NOT_RUN` with its reason, and listed at the end; tests/test_docs_check.py holds that nothing else is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path

import yaml
from toys import pairs, tiny_model_folder, write_rows

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    *(str(path.relative_to(ROOT)) for folder in ("docs", "recipes") for path in sorted((ROOT / folder).rglob("*.md"))),
)
SECONDS = 600  # the most that one command may take
OF_THE_REPOSITORY = ("train.sh", "llama_train.sh", "ds_config", "benchmarks", "recipes", "coh")

# Commands that are not run, by their words (* stands for any), and why.
NOT_RUN = {
    "make demo": "trains a real model for minutes; tests/test_coh_train_slow.py runs it in short",
    "make test": "the tests themselves",
    ". .venv/bin/activate": "the commands are run with this interpreter's folder in front of PATH",
    "make bench": "hours",
    "python -m coh.experiments *": "hours; tests/test_experiments.py runs every arm on a tiny model",
    "pip install *": "needs the network, and changes the environment",
    "conda env create *": "needs conda and the network",
    "git clone *": "needs the network",
    "python transformers/src/*": "needs Meta's files and another transformers",
    "sh train.sh * --config recipes/*": "large models; tests/test_recipes.py starts each recipe on a tiny one",
    "torchrun --standalone *": "needs GPUs; tests/test_engines_slow.py runs this launcher on the CPU",
    "torchrun --nnodes 2 *": "needs two machines; tests/test_launchers.py parses it",
    "sh train.sh * --fsdp *": "FSDP needs GPUs; tests/test_engines_slow.py runs it with a stand-in for them",
    "accelerate launch *": "needs GPUs; tests/test_engines_slow.py runs this launcher on the CPU",
    "deepspeed --num_gpus *": "needs GPUs; tests/test_engines_slow.py runs this launcher on the CPU",
    "sbatch *": "needs SLURM",
    "*--push_to_hub*": "needs the hub; tests/test_push_slow.py pushes to a stand-in",
    "transformers serve *": "a server; tests/test_serving_slow.py runs one and asks it",
    "transformers chat *": "needs the server",
    "python: # The files of *": "needs the hub",
    "python: from openai *": "needs the server; tests/test_serving_slow.py asks one the same",
    "curl http://localhost*": "needs the server; tests/test_serving_slow.py asks one the same",
    "vllm serve *": "needs vLLM and a GPU, and was not tried",
    "python benchmarks/step.py*": "many minutes of a quiet machine; tests/test_benchmarks.py runs it in short",
    "python benchmarks/growth.py": "hours; tests/test_benchmarks.py runs it in short",
    "python benchmarks/growth.py --rows *": "an hour",
    "python benchmarks/fuzz.py *": "an hour; tests/test_fuzz_slow.py runs a minute of it",
    "python benchmarks/soak.py": "hours",
    "python benchmarks/[!pg]*.py": "many minutes of a quiet machine; tests/test_benchmarks.py can run it in short",
    "python benchmarks/padding.py": "many minutes of a quiet machine; tests/test_benchmarks.py can run it in short",
    "python benchmarks/gradients.py": "many minutes of a quiet machine; tests/test_benchmarks.py can run it in short",
}


@dataclass(frozen=True)
class Command:
    """A command of a page, its words as they stand there but for the breaks of lines; or a block of Python."""

    page: str
    words: str
    code: str = ""

    @property
    def reason(self) -> str | None:
        """Why it is not run, if it is not."""
        return next((reason for pattern, reason in NOT_RUN.items() if fnmatchcase(self.words, pattern)), None)


def commands(page: str, text: str) -> list[Command]:
    r"""The commands in the shell blocks of a page, and its Python blocks; a block that begins with #! is a file.

    >>> page = "```sh\nls \\\n  -l\necho 'a\nb'  # c\n```\n```bash\n#!/bin/sh\nls\n```"
    >>> [one.words for one in commands("a.md", page)]
    ['ls -l', "echo 'a\nb'"]
    """
    found = []
    for language, block in re.findall(r"^```(sh|bash|python)\n(.*?)^```", text, re.M | re.S):
        if language == "python":
            found.append(Command(page, f"python: {block.splitlines()[0]}", block))
            continue
        lines: list[str] = []
        for line in [] if block.startswith("#!") else block.splitlines():
            lines.append(line)
            whole = re.sub(r"\\\n\s*", "", "\n".join(lines))
            if line.endswith("\\") or not _is_closed(whole):
                continue
            words = re.sub(r"\s+#\s.*$", "", whole).strip()
            if words and not words.startswith("#"):
                found.append(Command(page, words))
            lines = []
        if lines:
            raise ValueError(f"{page}: a quotation mark or a line is not ended in {block!r}")
    return found


def _is_closed(text: str) -> bool:
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return True


def all_commands() -> list[Command]:
    """Every command of every page."""
    return [one for page in PAGES for one in commands(page, (ROOT / page).read_text(encoding="utf-8"))]


# Stand-ins


def furnish(folder: Path) -> None:
    """Makes everything that commands of any page name, but for what they make themselves."""
    model = folder / "gpt2"
    tiny_model_folder(model)
    ids = ("HuggingFaceTB/SmolLM2-135M", *(f"EleutherAI/pythia-{size}" for size in ("410m", "1b", "6.9b")))
    for name in (*ids, ".cache/smollm2-135m", "models/llama"):
        shutil.copytree(model, folder / name)
    _public_data(folder)
    write_rows(folder / "mine.jsonl", pairs(40, length=3))
    write_rows(_made(folder / "org" / "pairs") / "train.jsonl", pairs(20, length=3, start=100))
    prompts = [{"prompt": row["prompt"]} for row in pairs(3)]
    write_rows(folder / "prompts.jsonl", prompts)
    ratings = [
        {"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"]], "scores": [4, 1]}
        for row in pairs(20, start=200)
    ]
    write_rows(folder / "ratings.jsonl", ratings)
    lines = [f'"Is {n} even?","{"Yes" if n % 2 else "No"}, {n}.",{n % 2}' for n in range(20)]
    (folder / "thumbs.csv").write_text("\n".join(["prompt,completion,label", *lines]) + "\n", encoding="utf-8")
    lines = [f"{n},Is {n} even?,{'No' if n % 2 else 'Yes'}.,Perhaps." for n in range(20)]
    (folder / "mine.csv").write_text("\n".join(["id,ticket,good_answer,bad_answer", *lines]) + "\n", encoding="utf-8")
    write_rows(folder / "text.jsonl", [{"text": f"Text {n}. It is so."} for n in range(40)])
    write_rows(folder / "train.jsonl", _transcripts(0, 20))
    write_rows(folder / "test.jsonl", _transcripts(50, 20))
    recipe = {"model_name": "gpt2", "feedback_data": ["mine.jsonl"], "pretrain_data": "text.jsonl", "max_steps": 4}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    page = (ROOT / "docs" / "templates.md").read_text(encoding="utf-8")
    (own,) = re.findall(r"```yaml\n(.*?)```", page, re.S)[:1]
    (folder / "my.yaml").write_text(own, encoding="utf-8")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _transcripts(start: int, number: int) -> list[dict[str, str]]:
    return [
        {side: f"\n\nHuman: {row['prompt']}\n\nAssistant: {row[side]}" for side in ("chosen", "rejected")}
        for row in pairs(number, start=start)
    ]


def _public_data(folder: Path) -> None:
    """Rows in the layout of the public data sets, where `datasets` looks for an id before it asks the hub."""
    dialogues = _made(folder / "Anthropic" / "hh-rlhf")
    write_rows(dialogues / "train.jsonl", _transcripts(0, 20))
    write_rows(dialogues / "test.jsonl", _transcripts(30, 10))
    answers = [
        {
            "question": {"full_text": row["prompt"]},
            "quotes_0": {"title": [], "extract": []},
            "quotes_1": {"title": [], "extract": []},
            "answer_0": row["chosen"],
            "answer_1": row["rejected"],
            "score_0": 1.0,
            "score_1": -1.0,
        }
        for row in pairs(30, start=300)
    ]
    write_rows(_made(folder / "openai" / "webgpt_comparisons" / "default") / "train.jsonl", answers)
    summaries = [
        {
            "info": {"title": f"Post {n}", "post": f"I have {n} cats. " * 3},
            "summaries": [{"text": f" {n} cats."}, {"text": " A post."}],
            "choice": 0,
        }
        for n in range(30)
    ]
    posts = _made(folder / "openai" / "summarize_from_feedback" / "comparisons")
    write_rows(posts / "train.jsonl", summaries[:20])
    write_rows(posts / "validation.jsonl", summaries[20:])
    texts = _made(folder / "allenai" / "c4" / "en")
    write_rows(texts / "train.jsonl", [{"text": f"Page {n} says little. " * 4} for n in range(60)])
    about = {"configs": [{"config_name": "en", "data_files": "en/train.jsonl"}]}
    (folder / "allenai" / "c4" / "README.md").write_text(f"---\n{yaml.safe_dump(about)}---\n", encoding="utf-8")


def environment(folder: Path) -> dict[str, str]:
    """This one, with the interpreter that runs this in front, no network, and ids of GPUs that may be processes."""
    binaries = str(Path(sys.executable).parent)
    own = {
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "home"),
        "LLAMA_PATH": "models/llama",
        "CONDA_PREFIX": "/opt/conda",
        "COH_ALLOW_CPU_IDS": "1",
        "OMP_NUM_THREADS": "1",
    }
    return {**os.environ, **own}


def wanted_models(found: list[Command]) -> Iterator[str]:
    """The trained folders that a page's commands read, and that no earlier one makes."""
    made: set[str] = set()
    for command in found:
        words = shlex.split(command.words) if not command.code else []
        opened = re.findall(r'(?:from_pretrained|load|write_card)\("((?:outputs|out)/[^"]+)"', command.code)
        for word, value in [*pairwise(words), *(("--model", name) for name in opened)]:
            if word in ("--model", "coh.report") and value.startswith(("outputs/", "out/")) and value not in made:
                made.add(value)
                yield value
        if command.reason is None:
            made |= {value for word, value in pairwise(words) if word == "--output_dir"}


def trained_folder(folder: Path) -> Path:
    """A model trained in `folder`, for pages that begin where training has ended."""
    target = folder / "trained"
    words = "python -m coh.coh_train --model_name gpt2 --feedback_data mine.jsonl --pretrain_data text.jsonl"
    run(f"{words} --templates marker --max_steps 4 --save_strategy no --output_dir trained", folder)
    return target


# Running


def run(words: str, folder: Path) -> None:
    """Runs a command in a shell, with nothing to read; raises RuntimeError with the end of what it printed."""
    try:
        found = subprocess.run(
            ["sh", "-c", words],
            cwd=folder,
            env=environment(folder),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"it has not ended after {SECONDS} seconds") from None
    if found.returncode:
        raise RuntimeError(f"status {found.returncode}\n{(found.stdout + found.stderr)[-3000:]}")


def check(page: str, found: list[Command], furnished: Path, trained: Path, scratch: Path) -> list[Command]:
    """Runs a page's commands in their order in a fresh folder; gives those that failed, and says how each went."""
    folder = scratch / page.replace("/", "-")
    shutil.copytree(furnished, folder)
    for name in OF_THE_REPOSITORY:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        else:
            shutil.copy(source, folder / name)
    for name in wanted_models(found):
        shutil.copytree(trained, folder / name)
    failed = []
    for command in found:
        if command.reason is not None:
            continue
        began = time.perf_counter()
        try:
            run(f"python - <<'END'\n{command.code}END\n" if command.code else command.words, folder)
            state = "ok    "
        except RuntimeError as error:
            failed.append(command)
            state = "FAILED"
            print(error)
        print(f"{state} {time.perf_counter() - began:6.1f} s  {page}: {' '.join(command.words.split())}", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("pages", nargs="*", choices=[*PAGES, []], help="all by default")
    pages = parser.parse_args().pages or PAGES
    found = [one for one in all_commands() if one.page in pages]
    failed: list[Command] = []
    with tempfile.TemporaryDirectory(prefix="coh-docs-") as scratch:
        furnished = _made(Path(scratch, "furnished"))
        furnish(furnished)
        trained_in = Path(shutil.copytree(furnished, Path(scratch, "first")))
        trained = trained_folder(trained_in)
        for page in pages:
            own = [one for one in found if one.page == page]
            if any(one.reason is None for one in own):
                failed += check(page, own, furnished, trained, Path(scratch))
    print("\nNot run:")
    for command in dict.fromkeys(one for one in found if one.reason is not None):
        print(f"  {command.page}: {' '.join(command.words.split())}\n    {command.reason}")
    ran = sum(one.reason is None for one in found)
    print(f"\n{len(found)} commands, {ran} run, {len(failed)} failed")
    print(json.dumps([f"{one.page}: {one.words}" for one in failed], indent=1) if failed else "")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
