"""How `load` resolves a path, and what a folder from elsewhere may not do. The hub is a stub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import symground as sg
from symground.data.sequences import word_level_tokenizer
from symground.models.loading import pretrained
from symground.models.loading.pretrained import load_processor

IDS = torch.tensor([[3, 1, 4, 1, 5]])


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=32,
        )
    ).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    llama().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The names requested from a hub that has only "gpt2" and "owner/name"; the working directory is "here"."""
    asked: list[str] = []

    def answer(what: Any) -> Any:
        def get(source: Any, **how: Any) -> Any:
            asked.append(str(source))
            assert how["trust_remote_code"] is False
            if str(source) not in ("gpt2", "owner/name"):
                raise OSError(f"{source} is not a valid model identifier")
            return what()

        return get

    for kind, what in ((AutoConfig, lambda: llama().config), (AutoModelForCausalLM, llama), (AutoTokenizer, object)):
        monkeypatch.setattr(kind, "from_pretrained", answer(what))
    monkeypatch.setattr(AutoProcessor, "from_pretrained", answer(object))
    (tmp_path / "here" / "owner").mkdir(parents=True)
    (tmp_path / "tokenizer.json").write_text("{}")  # two folders above "owner/name", which is not a folder
    monkeypatch.chdir(tmp_path / "here")
    return asked


@pytest.mark.parametrize("name", ["gpt2", "owner/name"])
def test_a_name_is_asked_of_the_hub_whatever_lies_here(hub: list[str], name: str) -> None:
    assert isinstance(sg.load(name), LlamaForCausalLM)
    assert type(sg.load_tokenizer(name)) is object
    with pytest.raises(ValueError, match=f"{name}: expected a processor of images and text, got object"):
        sg.load_processor(name)
    assert hub == [name] * 4


@pytest.mark.parametrize("name", ["gpt3", "owner/other"])
def test_a_name_that_the_hub_does_not_know(hub: list[str], name: str) -> None:
    for load in (sg.load, sg.load_tokenizer, sg.load_processor):
        with pytest.raises(FileNotFoundError, match=f"^{name} does not exist here, and the hub gives no model .*valid"):
            load(name)
    assert hub == [name] * 3


@pytest.mark.parametrize(
    "path", ["/a/b", "./gpt2", "../gpt2", "a/b/c", "gpt2.gguf", "owner/m.safetensors", "~/gpt2", ""]
)
def test_what_is_no_name_is_not_asked_for(hub: list[str], path: str) -> None:
    for load in (sg.load, sg.load_tokenizer, sg.load_processor):
        with pytest.raises((FileNotFoundError, ValueError)) as refusal:
            load(path)
        assert path in str(refusal.value)
    assert hub == []


def test_what_exists_here_is_what_is_meant(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.rename(folder.with_name("gpt2"))
    monkeypatch.chdir(folder.parent)
    assert sg.load("gpt2").config.vocab_size == 32
    (folder.parent / "file").write_text("x")
    for load in (sg.load, sg.load_processor, sg.load_tokenizer):
        with pytest.raises(
            ValueError, match="file is a file; expected a folder with a config.json, a .gguf file, or a"
        ):
            load("file")


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("bf16", torch.bfloat16), ("bfloat16", torch.bfloat16), (torch.bfloat16, torch.bfloat16),
        ("fp16", torch.float16), ("half", torch.float16), ("float16", torch.float16), ("float", torch.float32),
        ("fp32", torch.float32), ("float64", torch.float64), ("auto", torch.float32), (None, torch.float32),
    ],
)  # fmt: skip
def test_types_of_weights_by_every_name(folder: Path, dtype: Any, expected: torch.dtype) -> None:
    assert {p.dtype for p in sg.load(folder, dtype=dtype).parameters()} == {expected}


@pytest.mark.parametrize("dtype", ["int8", "bf17", "Tensor", "nn", "", torch.int8, 16, "bool"])
def test_other_types_are_refused(folder: Path, dtype: Any) -> None:
    with pytest.raises(ValueError, match="dtype: expected a type of floating-point numbers, such as 'bfloat16'"):
        sg.load(folder, dtype=dtype)


def test_a_study_names_its_runs(tmp_path: Path) -> None:
    for seed in (0, 1):
        run = tmp_path / "study" / "gpt2-4l" / f"seed{seed}"
        (run / "checkpoints").mkdir(parents=True)
        (run / "config.json").write_text("{}")
    (tmp_path / "study" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is a study; symground.load takes one of its runs: .*seed0, .*seed1$"):
        sg.load(tmp_path / "study")
    (tmp_path / "config.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="its config.json is not that of a model"):
        sg.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no tokenizer.json there or in the study above it"):
        sg.load_tokenizer(tmp_path / "study")


CODE = """
import pathlib
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer
pathlib.Path({marker!r}).write_text("ran")
class OwnConfig(LlamaConfig):
    model_type = "symground-test-own"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.mark.parametrize("known", [True, False])
def test_code_that_comes_with_a_model_runs_where_it_is_trusted_alone(
    folder: Path, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asks(*_: object) -> str:
        raise AssertionError("asked on the terminal")

    monkeypatch.setattr("builtins.input", asks)
    monkeypatch.setenv("HF_MODULES_CACHE", str(folder / "modules"))
    marker = folder / "marker"
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    config["model_type"] = "llama" if known else "symground-test-own"
    (folder / "config.json").write_text(json.dumps(config))
    if known:  # transformers loads it with its own class
        assert type(sg.load(folder)) is LlamaForCausalLM
    else:
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            sg.load(folder)
    assert not marker.exists()
    assert type(sg.load(folder, trust_remote_code=True)).__name__ == "OwnForCausalLM"
    assert marker.exists()


@pytest.mark.parametrize("name", ["owner/kernel", "kernels-community/flash-attn2", "flash_attention_2", "owner/k@v1:f"])
@pytest.mark.parametrize("where", ["_attn_implementation", "attn_implementation"])
def test_an_attention_that_a_configuration_names_is_not_fetched(
    folder: Path, llava_folder: Path, tmp_path: Path, name: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetches(*_: object, **__: object) -> None:
        raise AssertionError("fetches a kernel")

    for place in ("load_and_register_attn_kernel", "lazy_import_flash_attention"):
        monkeypatch.setattr(f"transformers.modeling_utils.{place}", fetches, raising=False)
    llava = tmp_path / "llava"
    sg.load(llava_folder / "model").save_pretrained(llava)
    for model, parts in ((folder, ()), (llava, ("text_config", "vision_config"))):
        config = json.loads((model / "config.json").read_text())
        for part in (config, *(config[part] for part in parts)):
            part[where] = name
        (model / "config.json").write_text(json.dumps(config))
        loaded = sg.load(model)
        assert loaded.get_decoder().config._attn_implementation == "symground"
        if parts:
            assert loaded.config.vision_config._attn_implementation in ("sdpa", "eager")


@pytest.mark.parametrize("name", ["../stolen.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", r"C:\x.bin"])
def test_an_index_does_not_leave_its_folder(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder.parent / "stolen.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(llama().state_dict(), name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index.json: it names the file .*, outside of the model's folder"):
        sg.load(folder)


def test_an_index_of_several_files_is_followed(folder: Path) -> None:
    expected = sg.load(folder)(IDS).logits
    llama().save_pretrained(folder.parent / "parts", max_shard_size="4KB")
    assert len(list((folder.parent / "parts").glob("*.safetensors"))) > 1
    assert torch.equal(sg.load(folder.parent / "parts")(IDS).logits, expected)


def test_a_gguf_file_is_transformers_to_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is a stub; the next test reads a file that the gguf package wrote."""
    (folder / "m.gguf").write_bytes(b"GGUF")
    asked = []
    monkeypatch.setattr(pretrained, "require", lambda *what: asked.append(what))
    for kind, what in ((AutoConfig, llama().config), (AutoModelForCausalLM, llama()), (AutoTokenizer, "tokenizer")):
        monkeypatch.setattr(
            kind, "from_pretrained", lambda source, what=what, **how: (asked.append((source, how)), what)[1]
        )
    sg.load(folder / "m.gguf", dtype="bf16")
    assert sg.load_tokenizer(folder / "m.gguf") == "tokenizer"
    calls = [call for call in asked if call[0] == folder]
    assert [how["gguf_file"] for _, how in calls] == ["m.gguf"] * 3
    model = calls[1][1]
    assert model["dtype"] == torch.bfloat16
    if hasattr(transformers, "GgufConfig"):  # no kernel is fetched, and the weights are floating-point
        assert model["quantization_config"].dequantize
    monkeypatch.undo()
    if transformers.utils.is_gguf_available():
        return
    with pytest.raises(ImportError, match=r"models in GGUF form need the package gguf.*symground\[gguf\]"):
        sg.load(folder / "m.gguf")


def test_a_gguf_file(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    model = llama()
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_context_length(32), writer.add_embedding_length(16), writer.add_block_count(2)
    writer.add_feed_forward_length(24), writer.add_head_count(2), writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(8), writer.add_layer_norm_rms_eps(1e-6), writer.add_vocab_size(32)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    for name, weight in model.state_dict().items():
        part = name.removesuffix(".weight").removeprefix("model.layers.")
        layer, _, within = part.partition(".")
        theirs = f"blk.{layer}.{names[within]}" if layer.isdigit() else names[part]
        rows = weight
        if within in ("self_attn.q_proj", "self_attn.k_proj"):  # llama.cpp orders the rotated pairs differently
            rows = weight.view(-1, 2, 4, 16).transpose(1, 2).reshape(weight.shape)
        writer.add_tensor(f"{theirs}.weight", rows.contiguous().numpy())
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    loaded = sg.load(tmp_path / "m.gguf")
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits)
    assert "saliency" in sg.trace(loaded, IDS, torch.tensor([7]))
    whole = (tmp_path / "m.gguf").read_bytes()
    for kept in (100, len(whole) - 500):
        (tmp_path / "cut.gguf").write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=r"cut\.gguf: expected a model in GGUF form, whole"):
            sg.load(tmp_path / "cut.gguf")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model": 3}', None], ids=str)
def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path: Path, content: str | None) -> None:
    tokenizer = json.loads(word_level_tokenizer({"a": 3}).backend_tokenizer.to_str())
    tokenizer["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated", "invert": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer) if content is None else content)
    with pytest.raises(ValueError, match=r"tokenizer\.json: no tokenizer that can be read"):
        sg.load_tokenizer(tmp_path)


def test_a_panic_of_a_library_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Python, a Rust panic is not an Exception. KeyboardInterrupt is still raised as it is."""
    panic = type("PanicException", (BaseException,), {})
    for raised, expected in ((panic("index out of bounds"), ValueError), (KeyboardInterrupt(), KeyboardInterrupt)):
        for kind in (transformers.PreTrainedTokenizerFast, AutoTokenizer, AutoProcessor):
            monkeypatch.setattr(kind, "from_pretrained", Mock(side_effect=raised))
        for load in (sg.load_tokenizer, load_processor):
            for place in (folder, "owner/name"):
                (folder / "tokenizer_config.json").write_text("{}")
                with pytest.raises(expected, match=r"index out of bounds" if expected is ValueError else None):
                    load(place)
