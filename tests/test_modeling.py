"""Models and tokenizers as people name them, and everything that is refused before weights load."""

from types import SimpleNamespace

import pytest
import torch
from toys import byte_tokenizer, tiny_model_folder

from coh.modeling import ModelError, has_fast_bf16, load_config, load_model, load_tokenizer, locate, problems_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


def test_a_folder_loads_in_the_number_format_asked_for(folder):
    assert load_model(folder).dtype == torch.float32
    assert load_model(folder, dtype="bfloat16").dtype == torch.bfloat16
    assert load_model(folder, attn_implementation="eager").config._attn_implementation == "eager"
    assert load_config(folder).model_type == "llama"


def test_a_tokenizer_without_padding_pads_with_its_end(folder, tmp_path):
    assert load_tokenizer(folder).pad_token == "<pad>"
    bare = byte_tokenizer()
    bare.pad_token = None
    bare.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).pad_token == "</s>"


def test_gguf_names():
    assert locate("a/b.gguf") == {"pretrained_model_name_or_path": "a", "gguf_file": "b.gguf"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./not-here", "model './not-here': no such file or folder"),
        ("gone/model.gguf", "model 'gone/model.gguf': no such file or folder"),
        ("some-org/some-model", "model 'some-org/some-model' cannot be opened"),
    ],
)
def test_missing_models(name, message):
    with pytest.raises(ModelError, match=message):
        load_config(name)


def test_what_is_no_causal_language_model(tmp_path):
    from transformers import T5Config, ViTConfig

    T5Config().save_pretrained(tmp_path / "t5")
    with pytest.raises(ModelError, match=r"\(t5\) has an encoder and a decoder: choose a causal language model"):
        load_config(str(tmp_path / "t5"))
    ViTConfig().save_pretrained(tmp_path / "vit")
    with pytest.raises(ModelError, match=r"\(vit\) is no causal language model"):
        load_config(str(tmp_path / "vit"))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(tmp_path / "t5"))
    with pytest.raises(ModelError, match=r"tokenizer .* cannot be opened"):
        load_tokenizer(str(tmp_path / "vit"))


def test_model_tokenizer_and_rows_must_fit(folder):
    config, tokenizer = load_config(folder), load_tokenizer(folder)
    assert problems_of(config, tokenizer, 512) == []
    tokenizer.add_tokens(["<new>"])
    assert problems_of(config, tokenizer, 600) == [
        "--seq_length 600 is more than the model's 512 positions: choose 512 or less",
        f"the tokenizer has token {config.vocab_size} ('<new>'), the model only {config.vocab_size} "
        f"(0 to {config.vocab_size - 1}): choose the tokenizer that belongs to the model",
    ]
    endless = SimpleNamespace(eos_token_id=None, get_vocab=dict)
    assert problems_of(config, endless, 512) == [
        "the tokenizer has no end-of-text token: set eos_token in its tokenizer_config.json"
    ]


def test_a_gguf_model_forgets_where_it_came_from(folder, tmp_path):
    """The plain copy computes the same, can be saved, and opens again (the real file is a slow test)."""
    from coh.modeling import _without_quantization

    model = load_model(folder)
    model.config.quantization_config = {"quant_method": "gguf"}
    plain = _without_quantization(model)
    assert not hasattr(plain.config, "quantization_config")
    ids = torch.arange(8)[None]
    plain.save_pretrained(tmp_path)
    again = load_model(str(tmp_path))
    assert torch.equal(model.eval()(ids).logits, again.eval()(ids).logits)


class TestFastBfloat16:
    """What hardware says, on machines other than this one."""

    @pytest.fixture
    def machine(self, monkeypatch):
        def pretend(cuda: bool | None = None, other: bool = False, **capabilities: bool) -> None:
            def is_supported(including_emulation: bool = True) -> bool:
                return bool(cuda) or including_emulation  # as torch says of a GPU before Ampere

            monkeypatch.setattr(torch.accelerator, "is_available", lambda: other or cuda is not None)
            monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
            monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
            monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)

        return pretend

    def test_of_a_gpu(self, machine):
        machine(cuda=True)
        assert has_fast_bf16()
        assert not has_fast_bf16(use_cpu=True)
        machine(cuda=False, amx_bf16=True)  # one that emulates it
        assert not has_fast_bf16()
        assert has_fast_bf16(use_cpu=True)

    @pytest.mark.parametrize("name", ["amx_bf16", "avx512_bf16", "bf16"])
    def test_of_a_cpu(self, machine, name):
        machine(**{name: True})
        assert has_fast_bf16()
        machine(avx2=True, avx512_f=True, **{name: False})
        assert not has_fast_bf16()

    def test_of_another_device_nothing_is_known(self, machine):
        machine(other=True, bf16=True)
        assert not has_fast_bf16()
        assert has_fast_bf16(use_cpu=True)

    def test_of_a_torch_that_does_not_tell(self, machine, monkeypatch):
        machine()
        monkeypatch.delattr(torch.cpu, "get_capabilities")
        assert not has_fast_bf16()


def test_a_folder_that_is_almost_there_is_named(tmp_path):
    (tmp_path / "smollm2-135m").mkdir()
    with pytest.raises(ModelError, match=r"smolm2-135m.: no such file or folder; did you mean '.*/smollm2-135m'\?"):
        load_tokenizer(str(tmp_path / "smolm2-135m"))
