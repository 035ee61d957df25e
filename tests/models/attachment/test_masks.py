"""Attention masks of every form: what SDPA makes of them, or a refusal."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LlamaForCausalLM,
    PreTrainedModel,
)

import symground as sg
from symground.models.architectures import unpadded
from symground.models.architectures.pairs import of_seen
from tests.models.attachment.builders import SIZES, T, gpt2, ids, llama, lstm, mamba2, mistral, sdpa


def causal(window: int | None = None, left: int = 0, right: int = 0) -> Tensor:
    """A causal mask [2,1,T,T] of bools; the first example is padded."""
    i, j = torch.arange(T)[:, None], torch.arange(T)
    seen = (j <= i) & (j > i - (window or T))
    return torch.stack([seen & (j >= left) & (j < T - right), seen])[:, None]


def valid(left: int, right: int) -> Tensor:
    j = torch.arange(T)
    return torch.stack([(j >= left) & (j < T - right), j >= 0])


hidden = st.sampled_from([-1e4, -1e9, torch.finfo(torch.float32).min, float("-inf")])


@given(
    window=st.sampled_from([None, 4]), left=st.integers(0, 3), right=st.integers(0, 3), by=hidden,
    floats=st.booleans(), heads=st.sampled_from([1, 4]),
)  # fmt: skip
def test_a_mask_of_all_pairs_is_what_sdpa_makes_of_it(
    window: int | None, left: int, right: int, by: float, floats: bool, heads: int
) -> None:
    model = mistral(window)
    mask = causal(window, left, right).expand(-1, heads, -1, -1)
    given_mask = torch.zeros(mask.shape).masked_fill(~mask, by) if floats else mask
    there = valid(left, right)
    expected = sdpa(model, given_mask)[there]
    sg.attach(model)
    with torch.no_grad():
        torch.testing.assert_close(
            model(ids(), attention_mask=given_mask).logits[there], expected, atol=1e-5, rtol=1e-4
        )


def test_a_mask_of_all_pairs_for_every_example() -> None:
    model = llama()
    mask = causal()[1:]
    expected = sdpa(model, mask)
    with torch.no_grad():
        torch.testing.assert_close(sg.attach(model)(ids(), attention_mask=mask).logits, expected, atol=1e-5, rtol=1e-4)


def _knocked_out(by: float) -> Tensor:
    mask = torch.zeros(2, 1, T, T).masked_fill(~causal(), torch.finfo(torch.float32).min)
    mask[:, :, 5, 2] = by
    return mask


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        (_knocked_out(-1e9), "with padding at the ends only, and this mask of shape .* hides other pairs"),
        (_knocked_out(float("-inf")), "hides other pairs"),
        (_knocked_out(-3.0), "takes no bias of scores: expected 0 .* got -3"),
        (_knocked_out(0.5), "takes no bias of scores.* got 0.5"),
        (_knocked_out(float("nan")), "takes no bias of scores.* got nan"),
        (torch.ones(2, 1, T, T, dtype=torch.bool), "hides other pairs"),
        (causal().long(), r"expected \[B,S\], or bools or floats for all pairs .*; got \[2, 1, 9, 9\] torch.int64"),
        (causal()[..., :4], r"got \[2, 1, 9, 4\] torch.bool"),
    ],
)
def test_a_mask_of_all_pairs_that_is_more_is_refused_and_eager_gets_it(mask: Tensor, why: str) -> None:
    model = sg.attach(llama())
    with pytest.raises(ValueError, match=f"attention_mask: .*{why}"):
        model(ids(), attention_mask=mask)
    if mask.is_floating_point():  # symground does not act while another attention implementation is set
        expected = sdpa(model, mask)
        model.set_attn_implementation("sdpa")
        with torch.no_grad():
            assert torch.equal(model(ids(), attention_mask=mask).logits, expected) or bool(expected.isnan().any())


def test_a_mask_without_the_layers_window_is_refused() -> None:
    """SDPA would attend beyond the window."""
    with pytest.raises(ValueError, match="supports causal masks with this layer's window of 4 keys and with padding"):
        sg.attach(mistral(4))(ids(), attention_mask=causal())


@pytest.mark.parametrize("build", [llama, gpt2, mistral, mamba2, lstm])
def test_numbers_above_1_are_valid_tokens(build: Callable[[], PreTrainedModel]) -> None:
    """A packing collator makes such masks; transformers reads them as bool."""
    model = sg.attach(build())
    mask = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 3, 3], [1] * 4 + [2] * 5])
    with torch.no_grad():
        found, expected = (model(ids(), attention_mask=m).logits for m in (mask, mask.bool().long()))
        assert torch.equal(found, expected)
        positional = model.base_model(ids(), mask)[0] if isinstance(model, LlamaForCausalLM) else None
    if positional is not None:  # the result is the same if the mask is a positional argument
        torch.testing.assert_close(model.lm_head(positional), expected)
    with pytest.raises(ValueError, match=r"attention_mask: expected 0 and 1 .* got 2"):
        sg.trace(model, ids(), torch.tensor([5, 7]), mask)


def test_positions_are_those_of_the_mask_however_the_body_is_called() -> None:
    model = sg.attach(llama())
    mask = torch.ones(2, T, dtype=torch.long)
    mask[0, :3] = 0
    with torch.no_grad():
        expected = model.model(ids(), attention_mask=mask).last_hidden_state
        for found in (model.model(ids(), mask), model.model(ids(), mask, None), model.model(ids(), mask, None, None)):
            assert torch.equal(found.last_hidden_state, expected)
        alone = model.model(ids()[:1, 3:]).last_hidden_state
    torch.testing.assert_close(expected[:1, 3:], alone, atol=1e-5, rtol=1e-4)


def test_with_another_attention_positions_are_transformers_own() -> None:
    model = sg.attach(llama())
    mask = torch.ones(2, T, dtype=torch.long)
    mask[0, :3] = 0
    expected = sdpa(model, mask)
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        assert torch.equal(model(ids(), attention_mask=mask).logits, expected)


@pytest.mark.parametrize("window", [3, 20])
def test_a_window_that_only_the_masks_have_is_seen(window: int) -> None:
    """PhiMoE's masks have a window that its layers do not pass to the attention function."""
    sizes = {**SIZES, "num_key_value_heads": 2, "num_local_experts": 2, "sliding_window": window}
    model = transformers.PhimoeForCausalLM(transformers.PhimoeConfig(**sizes, attn_implementation="symground")).eval()
    expected = sdpa(model, None)
    with torch.no_grad():
        torch.testing.assert_close(model(ids()).logits, expected, atol=1e-4, rtol=1e-4)
        with unpadded(model):  # no mask is made, and the layers do not say it
            if window < T:
                with pytest.raises(ValueError, match=r"does not tell its attention function .* window of 3 keys"):
                    model(ids())
            else:
                torch.testing.assert_close(model(ids()).logits, expected, atol=1e-4, rtol=1e-4)


def test_without_attaching_a_window_that_only_the_layers_tell_is_refused() -> None:
    """OLMoE's layers pass a window that its masks do not have."""
    sizes = {**SIZES, "num_key_value_heads": 2, "num_experts": 2, "num_experts_per_tok": 1}
    model = transformers.OlmoeForCausalLM(transformers.OlmoeConfig(**sizes, attn_implementation="symground")).eval()
    model.config.sliding_window = 3
    with pytest.raises(
        ValueError, match="mask has no sliding window, and OlmoeAttention tells .* of a sliding window of 3"
    ):
        model(ids())


#: What the code that makes a mask lets a row of padding see, of [S] keys.
ROWS_OF_PADDING: dict[str, Callable[[Tensor, int], Tensor]] = {
    "nothing": lambda row, i: torch.zeros_like(row),
    "all keys": lambda row, i: torch.ones_like(row),
    "itself": lambda row, i: torch.arange(len(row)) == i,
    "what others would": lambda row, i: row,
}


def _shown(at: Tensor, each: Tensor, causes: bool, window: int | None) -> Tensor:
    """The pairs [T,S] of queries at these positions [T] and keys [S] that a mask shows; a window is on both sides."""
    distance = at[:, None] - each
    return (distance.abs() < (window or len(each))) & ((distance >= 0) | (not causes))


@pytest.mark.parametrize("padding", ROWS_OF_PADDING)
@given(
    keys=st.integers(1, 9), new=st.integers(1, 9), window=st.none() | st.integers(1, 9), causes=st.booleans(),
    left=st.integers(0, 4), right=st.integers(0, 4),
)  # fmt: skip
def test_what_a_mask_of_pairs_says_whatever_its_rows_of_padding_see(
    padding: str, keys: int, new: int, window: int | None, causes: bool, left: int, right: int
) -> None:
    """What is read shows each valid query the same keys; two rows, the second without padding."""
    queries = min(new, keys)
    low, high = min(left, keys - 1), max(keys - right, min(left, keys - 1) + 1)
    at, each = torch.arange(keys - queries, keys), torch.arange(keys)
    pairs = _shown(at, each, causes, window)
    seen = pairs.repeat(2, 1, 1)
    seen[0] &= (each >= low) & (each < high)
    padded_rows = (at < low) | (at >= high)
    for i in padded_rows.nonzero()[:, 0].tolist():
        seen[0, i] = ROWS_OF_PADDING[padding](seen[0, i], int(at[i]))
    said = of_seen(seen[:, None])
    if said is None:  # refused: rows of padding that cannot be told from others
        assert padding in ("all keys", "itself")
        return
    assert said.key_range is not None
    shown = _shown(at, each, said.causal, said.window)
    bounds = said.key_range.expand(2, -1)
    for b in range(2):
        found = shown & (each >= bounds[b, 0]) & (each < bounds[b, 1])
        if said.segments is not None:  # a row of padding that sees itself alone is read as a text
            found &= said.segments[b, at, None] == said.segments[b]
        rows = ~padded_rows if b == 0 else torch.ones_like(padded_rows)
        assert torch.equal(found[rows], seen[b][rows])
