"""Mamba-2 of transformers on our ops: the same logits, gradients, cache and checkpoints, and heads to trace."""

from __future__ import annotations

import copy
import inspect
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, Mamba2Config, Mamba2ForCausalLM

import symground as sg
from symground import ops
from symground.data import Corpus
from symground.models import create, mixers
from symground.models.hooks.mixers import head_outputs


def configuration(**changes: Any) -> Mamba2Config:
    sizes = {"hidden_size": 16, "num_heads": 8, "head_dim": 4, "state_size": 6, "n_groups": 2, "chunk_size": 8}
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 1}
    return Mamba2Config(**{"vocab_size": 101, "num_hidden_layers": 2, **sizes, **special, **changes})


def pair(**changes: Any) -> tuple[Any, Any]:
    """transformers' own model and ours, with the same weights."""
    torch.manual_seed(0)
    theirs = Mamba2ForCausalLM(configuration(**changes)).eval()
    return theirs, sg.attach(copy.deepcopy(theirs))


IDS = torch.randint(5, 101, (3, 21), generator=torch.Generator().manual_seed(0))
#: The name of transformers' cache argument: "cache" from 5.24 on.
CACHE = next(n for n in ("cache", "cache_params") if n in inspect.signature(Mamba2ForCausalLM.forward).parameters)


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"n_groups": 8}, {"use_conv_bias": False}, {"use_bias": True}, {"hidden_act": "gelu"},
        {"time_step_limit": (0.02, 0.5)}, {"tie_word_embeddings": True}, {"conv_kernel": 2},
    ],
)  # fmt: skip
@pytest.mark.parametrize("use_cache", [False, True])
def test_logits_and_gradients_are_those_of_transformers(changes: dict[str, Any], use_cache: bool) -> None:
    theirs, ours = pair(**changes)
    found = []
    for model in (theirs, ours):
        out = model(IDS, labels=IDS, use_cache=use_cache)
        out.loss.backward()
        found.append({"logits": out.logits.detach(), **{n: p.grad for n, p in model.named_parameters()}})
    assert found[0].keys() == found[1].keys()
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()) + 1e-6)


def test_padding_does_not_leak() -> None:
    for changes in ({}, {"use_bias": True}):
        _, ours = pair(**changes)
        mask = torch.ones_like(IDS)
        mask[0, :5] = mask[1, 17:] = 0
        with torch.no_grad():
            padded = ours(IDS, attention_mask=mask).logits
            other = torch.where(mask.bool(), IDS, 7)
            torch.testing.assert_close(ours(other, attention_mask=mask).logits[mask.bool()], padded[mask.bool()])
            torch.testing.assert_close(padded[0, 5:], ours(IDS[:1, 5:]).logits[0])
            torch.testing.assert_close(padded[1, :17], ours(IDS[1:2, :17]).logits[0])


@pytest.mark.parametrize("pieces", [[21], [1] * 21, [6, 8, 7], [2, 1, 1, 17]])
def test_reading_in_pieces_is_reading_at_once(pieces: list[int]) -> None:
    theirs, ours = pair()
    with torch.no_grad():
        whole, cache, found, at = theirs(IDS).logits, None, [], 0
        for n in pieces:
            out = ours(IDS[:, at : at + n], use_cache=True, **{CACHE: cache})
            cache, at = getattr(out, CACHE), at + n
            found.append(out.logits)
    torch.testing.assert_close(torch.cat(found, 1), whole)


def test_going_on_after_padding_at_either_end() -> None:
    _, ours = pair()
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, :4], mask[1, 7:] = 0, 0
    with torch.no_grad():
        out = ours(IDS[:2, :9], attention_mask=mask, use_cache=True)
        found = ours(IDS[:2, 9:12], **{CACHE: getattr(out, CACHE)}).logits
        torch.testing.assert_close(found[0], ours(IDS[:1, 4:12]).logits[0, -3:])
        torch.testing.assert_close(found[1], ours(torch.cat([IDS[1:2, :7], IDS[1:2, 9:12]], 1)).logits[0, -3:])


def test_generates_as_transformers_does_also_from_left_padding() -> None:
    theirs, ours = pair()
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[0, :2] = 0
    kw: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "attention_mask": mask}
    assert torch.equal(ours.generate(IDS[:, :6], **kw), theirs.generate(IDS[:, :6], **kw))
    assert torch.equal(ours.generate(IDS[:, :6], **kw, use_cache=False), theirs.generate(IDS[:, :6], **kw))


def test_checkpoints_go_both_ways(tmp_path: Path) -> None:
    theirs, ours = pair()
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    assert {p.name for p in (tmp_path / "ours").iterdir()} == {p.name for p in (tmp_path / "theirs").iterdir()}
    with torch.no_grad():
        expected = theirs(IDS).logits
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
        assert type(again.backbone.layers[0].mixer).__name__ == "Mamba2Mixer"
        torch.testing.assert_close(again(IDS).logits, expected)
        torch.testing.assert_close(sg.load(tmp_path / "theirs")(IDS).logits, expected)


def test_activation_checkpointing_and_training_mode() -> None:
    _, ours = pair()
    ours.train()
    ours(IDS, labels=IDS).loss.backward()
    expected = [p.grad.clone() for p in ours.parameters()]
    ours.zero_grad()
    ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ours(IDS, labels=IDS).loss.backward()
    for p, grad in zip(ours.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad)


def test_a_heads_whole_output_is_gated_before_the_norm() -> None:
    """The oracle sets the head's y and D skip to 0 in the input of the norm."""
    theirs, ours = pair()
    norm = theirs.backbone.layers[1].mixer.norm
    handle = norm.register_forward_pre_hook(lambda _, args: (_without_head(args[0], 3), *args[1:]))
    with torch.no_grad():
        expected = theirs(IDS).logits
        with sg.ablate(ours, [(1, 3)]):
            torch.testing.assert_close(ours(IDS).logits, expected)
        handle.remove()
        torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits)
        reference = IDS.flip(1)
        with head_outputs(mixers(ours)) as heads:
            ours(reference)
        norm.register_forward_pre_hook(lambda _, args: (_with_head(args[0], 3, heads[1]), *args[1:]))
        with sg.ablate(ours, [(1, 3)], mode="resample", reference=reference):
            torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits)


def _without_head(y: Tensor, head: int) -> Tensor:
    y = y.clone().unflatten(-1, (8, -1))
    y[..., head, :] = 0
    return y.flatten(-2)


def _with_head(y: Tensor, head: int, other: Tensor) -> Tensor:
    y = y.clone().unflatten(-1, (8, -1))
    y[..., head, :] = other[..., head, :]
    return y.flatten(-2)


def test_trace_is_the_gradient_through_the_mixing_matrix() -> None:
    """The last layer's saliency and flow are computed from the inputs of its SSD and the gradient of its output."""
    _, ours = pair()
    targets = torch.tensor([7, 8, 9])
    groups = {"first": torch.arange(21).expand(3, -1) < 3}
    traced = sg.trace(ours, IDS, targets, groups=groups)
    assert traced.saliency.shape == (3, 2, 21, 21)
    assert traced.flow.shape == (3, 2, 8, 2, 1)
    seen: dict[str, Any] = {}
    original = ops.ssd

    def spy(*args: Any, **kwargs: Any) -> Any:
        y, state = original(*args, **kwargs)
        seen["inputs"], seen["y"] = [w.detach() for w in args[:5]], y
        y.retain_grad()
        return y, state

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "ssd", spy)
        layer = mixers(ours)[1]
        with layer.tapped(gate=torch.ones(8)):  # a tapped layer calls ops.ssd
            logits = ours(IDS, use_cache=False).logits[:, -1]
    (-logits.log_softmax(-1).gather(1, targets[:, None])).sum().backward()
    saliency = ops.ssd_saliency(*seen["inputs"], seen["y"].grad)
    torch.testing.assert_close(torch.from_numpy(traced.saliency.values[:, 1]), saliency, rtol=1e-4, atol=1e-6)
    rows = torch.where(torch.arange(21) == 20, 0, torch.where(torch.arange(21) < 3, 1, -1)).expand(3, -1)
    keys = torch.where(torch.arange(21) < 3, 0, -1).expand(3, -1)
    flow, row_total, matrix = ops.ssd_flow(*seen["inputs"], seen["y"].grad, rows, keys)
    for found, expected in ((traced.flow, flow), (traced.row_total, row_total), (traced.matrix_total, matrix)):
        torch.testing.assert_close(torch.from_numpy(found.values[:, 1]), expected, rtol=1e-4, atol=1e-6)


def test_trace_of_a_padded_batch_is_that_of_its_rows() -> None:
    _, ours = pair()
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, :4], mask[1, 7:] = 0, 0
    together = sg.trace(ours, IDS[:2, :9], torch.tensor([7, 8]), mask)
    for i, (low, high) in enumerate([(4, 9), (0, 7)]):
        alone = sg.trace(ours, IDS[i : i + 1, low:high], torch.tensor([7 + i]))
        part = together.saliency.isel(example=i, query=slice(low, high), key=slice(low, high))
        torch.testing.assert_close(
            torch.from_numpy(part.values), torch.from_numpy(alone.saliency.values[0]), rtol=1e-4, atol=1e-6
        )
        assert float(together.surprisal[i]) == pytest.approx(float(alone.surprisal[0]), rel=1e-5)


@pytest.mark.parametrize("preset", ["mamba2-4l", "mamba2-12l"])
def test_presets_have_slow_decay_and_are_drawn_by_their_seed(preset: str) -> None:
    model = create(preset, 50, seed=3)
    again, other = create(preset, 50, seed=3), create(preset, 50, seed=4)
    ids = IDS % 45
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)
        assert not torch.equal(model(ids).logits, other(ids).logits)
    rates = model.backbone.layers[0].mixer.A_log.detach().exp()
    assert float(rates.min()) == pytest.approx(0.02, rel=1e-4)
    assert float(rates.max()) == pytest.approx(1.0, rel=1e-4)


def test_sizes_that_do_not_divide_are_refused() -> None:
    present = Mamba2ForCausalLM(configuration(n_groups=3, num_hidden_layers=1))
    with pytest.raises(ValueError, match="n_groups to divide num_heads = 8, got 3"):
        sg.attach(present)
    with pytest.raises(Exception, match="must equal num_heads"):
        configuration(num_heads=7)


STUBS = {
    "imports": """__version__ = "2.2"
def __getattr__(name):
    raise RuntimeError("this package runs on a GPU only")
""",
    "fails": "raise ImportError('libcudart.so.12: cannot open shared object file')",
}


@pytest.mark.slow
@pytest.mark.parametrize("stub", STUBS.values(), ids=STUBS.keys())
def test_packages_for_a_gpu_do_not_touch_a_model_on_the_cpu(tmp_path: Path, stub: str) -> None:
    """transformers' own Mamba-2 calls mamba_ssm's functions on a CPU too if it is installed, and fails in them."""
    for package in ("mamba_ssm", "causal_conv1d", "flash_attn"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(stub)
        installed = tmp_path / f"{package}-2.8.dist-info"
        installed.mkdir()
        (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 2.8\n")
        (installed / "top_level.txt").write_text(package)
    code = """
        import warnings
        warnings.simplefilter("error")
        import torch, symground as sg
        from symground.models import create
        model = create("mamba2-4l", 50)
        ids = torch.arange(10)[None] + 5
        model(ids, labels=ids).loss.backward()
        model.eval()
        model.generate(ids, max_new_tokens=2, do_sample=False)
        sg.trace(model, ids, torch.tensor([7]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["Mamba", "FalconMamba", "Mamba2"])
def test_half_precision_beside_a_residual_stream_in_float32(kind: str, dtype: torch.dtype, corpus: Corpus) -> None:
    """transformers keeps the residual stream in float32; the head casts hidden states to its own dtype."""
    torch.manual_seed(0)
    more = {"num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8} if kind == "Mamba2" else {}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(corpus.tokenizer), hidden_size=32, num_hidden_layers=2, state_size=8, residual_in_fp32=True,
        pad_token_id=None, bos_token_id=None, eos_token_id=None, **more,
    )  # fmt: skip
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval().to(dtype)
    probes = sg.probes(corpus.tokenizer, ["ball", "book"]).take_contexts([0, 4])
    examples = probes.matched()
    with torch.no_grad():
        texts = zip(examples.input_ids, examples.prediction, strict=True)
        rows = [model(ids[None, : p + 1]).logits[0, -1] for ids, p in texts]
    expected = -torch.stack(rows).float().log_softmax(-1).gather(1, examples.targets[:, None])[:, 0]
    scores = sg.score(model, probes)
    found = scores[scores.env == scores.target]["surprisal"].to_numpy()
    np.testing.assert_allclose(found, expected, atol=0.05)
    if kind == "Mamba2":
        np.testing.assert_allclose(sg.trace(sg.attach(model), probes).surprisal, expected, atol=0.05)
        lens = sg.lens_gain(model, probes)
        last = lens[lens.depth == lens.depth.max()].set_index("target")["matched"]
        by_noun = pd.Series(expected.numpy()).groupby(examples.noun).mean()
        np.testing.assert_allclose(last[by_noun.index], by_noun, atol=0.05)
