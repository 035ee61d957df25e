"""The ops in other attention code: a plain PyTorch module, and TransformerLens through its own hooks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.metadata import version
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from symground import ops

BATCH, LENGTH, LAYERS = 2, 12, 2


class Attention(nn.Module):
    """A user's layer with its own projections, and one call in place of softmax(q kᵀ) v."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """[B,T,width] → queries, keys and values [3,B,H,T,D]."""
        return self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor, probe: Tensor | None = None) -> Tensor:
        z, _ = ops.attention(*self.split(x), saliency_probe=probe)
        return self.out(z.transpose(1, 2).flatten(2))


def test_the_probe_of_a_plain_module_holds_gradient_times_attention() -> None:
    torch.manual_seed(0)
    layer, x = Attention().double(), torch.randn(BATCH, LENGTH, 32, dtype=torch.float64)
    probe = torch.zeros(1, dtype=torch.float64).expand(BATCH, LENGTH, LENGTH).requires_grad_()
    out = layer(x, probe)
    out[:, -1].square().sum().backward()

    q, k, v = layer.split(x)
    later = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    a = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(later, float("-inf")).softmax(-1)
    eager = layer.out((a @ v).transpose(1, 2).flatten(2))
    (grad,) = torch.autograd.grad(eager[:, -1].square().sum(), a)
    torch.testing.assert_close(out, eager)
    torch.testing.assert_close(probe.grad, (a * grad).sum(1))
    assert layer(x).equal(out)  # a layer that is not asked computes the same


# The hooks of TransformerLens' q and k at the scores; with rotary positions, those after the rotation.
KINDS = {
    "native": ("q", "k", "v"),  # standard positions, attention only, grouped heads, a scale of its own
    "gpt2": ("q", "k", "v"),
    "llama": ("rot_q", "rot_k", "v"),  # rotary positions, grouped heads
}
SCALE = {"native": 1 / 2.0, "gpt2": None, "llama": None}  # TransformerLens divides by attn_scale


@pytest.fixture
def lens() -> ModuleType:
    """TransformerLens 4. Its import silences the logger of transformers, which is undone here."""
    logger = logging.getLogger("transformers")
    level = logger.level
    module = pytest.importorskip(
        "transformer_lens.model_bridge",
        reason="transformer_lens does not import here: pip install 'transformer_lens>=4'",
        exc_type=ImportError,
    )
    logger.setLevel(level)
    if int(version("transformer_lens").partition(".")[0]) < 4:
        pytest.skip("transformer_lens is older than 4: pip install 'transformer_lens>=4'")
    return module


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bridge(lens: ModuleType, kind: str) -> Any:
    """A tiny TransformerBridge with random weights, large enough for uneven attention; nothing is downloaded."""
    from transformer_lens import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    torch.manual_seed(0)
    if kind == "native":
        config = TransformerBridgeConfig(
            n_layers=LAYERS, d_model=32, n_heads=4, n_key_value_heads=2, d_head=8, n_ctx=16, d_vocab=50,
            attn_only=True, attn_scale=2.0, initializer_range=0.3, seed=0,
        )  # fmt: skip
        return lens.TransformerBridge.boot_native(config)
    hf: GPT2LMHeadModel | LlamaForCausalLM
    if kind == "gpt2":
        gpt2 = GPT2Config(
            vocab_size=50, n_positions=16, n_embd=32, n_layer=LAYERS, n_head=4, initializer_range=0.3,
            bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        hf = GPT2LMHeadModel(gpt2)
    else:
        llama = LlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=16, initializer_range=0.3,
        )  # fmt: skip
        hf = LlamaForCausalLM(llama)
    # As boot_transformers(hf_model=hf), which would request a tokenizer from the hub.
    return build_bridge_from_module(hf.eval(), type(hf).__name__, hf_config=hf.config)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(2, 50, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))


def hook(layer: int, name: str) -> str:
    return f"blocks.{layer}.attn.hook_{name}"


def hold(held: dict[str, Tensor], name: str) -> Callable[[Tensor, Any], None]:
    """A hook that changes nothing and keeps [B,T,H,D] as [B,H,T,D]."""
    return lambda x, hook: held.update({name: x.transpose(1, 2)})


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.detach().abs().max()))


def test_saliency_and_flow_from_what_transformer_lens_caches(bridge: Any, kind: str, ids: Tensor) -> None:
    names = [hook(layer, name) for layer in range(LAYERS) for name in (*KINDS[kind], "z", "pattern")]
    _, cache = bridge.run_with_cache(ids, return_type="loss", incl_bwd=True, names_filter=names)
    groups = torch.randint(-1, 3, (BATCH, LENGTH), generator=torch.Generator().manual_seed(2))
    member = torch.nn.functional.one_hot(groups + 1, 4)[..., 1:].float()
    for layer in range(LAYERS):
        q, k, v = (cache[hook(layer, name)].transpose(1, 2) for name in KINDS[kind])
        grad_z = cache[hook(layer, "z") + "_grad"].transpose(1, 2)
        z, lse = ops.attention(q, k, v, scale=SCALE[kind])
        saliency = ops.attention_saliency(q, k, v, grad_z, lse, scale=SCALE[kind])
        flow, rows, _ = ops.attention_flow(q, k, v, grad_z, lse, groups, groups, 3, 3, scale=SCALE[kind])

        expected = cache[hook(layer, "pattern")] * cache[hook(layer, "pattern") + "_grad"]
        assert expected.abs().max() > 0
        close(z, cache[hook(layer, "z")].transpose(1, 2))
        close(saliency, expected.sum(1).abs())
        close(flow, torch.einsum("bia,bhij,bjc->bhac", member, expected.abs(), member))
        close(rows, torch.einsum("bia,bhij->bha", member, expected.abs()))


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("folded", [False, True], ids=["raw", "compatibility"])
def test_a_hook_in_place_of_the_attention(bridge: Any, kind: str, ids: Tensor, padding: int, folded: bool) -> None:
    if folded:
        bridge.enable_compatibility_mode()  # folded norms, centred weights, hooks under two names
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    valid = torch.tensor([[padding, LENGTH], [0, LENGTH]])
    held: dict[str, Tensor] = {}
    probes = [torch.zeros(1).expand(BATCH, LENGTH, LENGTH).requires_grad_() for _ in range(LAYERS)]

    def attend(z: Tensor, hook: Any) -> Tensor:
        q, k, v = (held[name] for name in KINDS[kind])
        out, _ = ops.attention(q, k, v, scale=SCALE[kind], key_range=valid, saliency_probe=probes[hook.layer()])
        return out.transpose(1, 2)

    hooks = [(hook(layer, name), hold(held, name)) for layer in range(LAYERS) for name in KINDS[kind]]
    hooks += [(hook(layer, "z"), attend) for layer in range(LAYERS)]
    logits = bridge.run_with_hooks(ids, fwd_hooks=hooks, attention_mask=mask)
    logits[:, -1, 7].sum().backward()

    patterns: dict[int, Tensor] = {}
    retain = [
        (hook(layer, "pattern"), lambda a, hook: (a.retain_grad(), patterns.update({hook.layer(): a}))[1])
        for layer in range(LAYERS)
    ]
    plain = bridge.run_with_hooks(ids, fwd_hooks=retain, attention_mask=mask)
    plain[:, -1, 7].sum().backward()
    close(logits[:, -1], plain[:, -1])
    for layer in range(LAYERS):
        close(probes[layer].grad, (patterns[layer] * patterns[layer].grad).sum(1))
