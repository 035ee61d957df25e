"""Hooks that check and complete the arguments of an attached model's call before its layers run."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from symground.models.architectures import NAME, NO_MATRIX, UNPADDED, MambaMixer
from symground.models.attachment.lookup import ATTACHED, OURS
from symground.models.hooks import (
    announce,
    body,
    cache_of,
    inner_stack,
    is_encoder_decoder,
    remember_when_checkpointing,
    stack,
)

#: Of the module that reads ids: whether positions are derived from a mask that comes without them.
_DERIVES = f"{OURS}derives"


def hook_calls(model: PreTrainedModel, written_out: bool) -> tuple[RemovableHandle, ...]:
    """Add the hooks; ``written_out`` is whether its attention runs under any implementation."""
    # RoBERTa and similar models number positions from after the padding id, and derive them from the ids.
    counted = any(
        (name.endswith("position_embeddings") and getattr(part, "padding_idx", None) is not None)
        or hasattr(part, "create_position_ids_from_input_ids")
        for name, part in body(model).named_modules()
    )
    own = [x for name, x in body(model).named_buffers() if name.endswith("position_ids") and x.ndim == 2]
    first = int(own[0][0, 0].item()) if own and not own[0].is_meta else 0  # Nystromformer's is 2
    names = tuple(inspect.signature(body(model).forward).parameters)
    object.__setattr__(body(model), _DERIVES, not counted and "position_ids" in names)
    hooks = (
        model.register_forward_pre_hook(partial(_check_call, written_out), with_kwargs=True),
        body(model).register_forward_pre_hook(partial(_prepare, names, first, written_out), with_kwargs=True),
    )
    inner = inner_stack(model)
    if inner is None:
        return hooks
    of_stack = tuple(inspect.signature(inner.forward).parameters)
    return *hooks, inner.register_forward_pre_hook(partial(_announce, of_stack), with_kwargs=True)


def _announce(names: tuple[str, ...], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Tell of a pass of the layers, which a head may call without the rest of the body (OPT's)."""
    announce(module, {**dict(zip(names, args, strict=False)), **kwargs})


def leave_positions(model: PreTrainedModel) -> None:
    """Leave the positions of a call with a mask to the model."""
    object.__setattr__(body(model), _DERIVES, False)


def _check_call(written_out: bool, module: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse ``output_attentions=True`` under our attention implementation, and a tap under another one."""
    asked = kwargs.get("output_attentions") or getattr(module.config, "output_attentions", False)
    implementation = stack(module).config._attn_implementation
    if kwargs.get("encoder_hidden_states") is not None and not module.config.is_encoder_decoder:
        raise ValueError(
            "encoder_hidden_states: expected None, since symground does not trace the cross-attention that reads them; "
            "symground.detach(model) gives the model back"
        )
    ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
    if is_encoder_decoder(module) and isinstance(ids, Tensor) and isinstance(mask, Tensor) and ids.shape != mask.shape:
        # transformers pads a mask that is too short with zeros.
        raise ValueError(f"attention_mask: expected shape {list(ids.shape)}, as input_ids has, got {list(mask.shape)}")
    if implementation in (NAME, UNPADDED) or written_out:
        if asked:
            raise ValueError(NO_MATRIX)
    elif not torch.compiler.is_compiling():
        for mixer in getattr(module, ATTACHED, ()):
            if not isinstance(mixer.module, MambaMixer) and not mixer.tap.idle:
                raise ValueError(
                    f"model: its attention was set to {implementation!r} within a block that silences or traces heads "
                    f"of layer {mixer.layer}, and would ignore the block; leave the block first"
                )


def _prepare(
    names: tuple[str, ...], first: int, written_out: bool, module: PreTrainedModel, args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:  # fmt: skip
    """The call's arguments with the positions of its mask; None, for no change, under another implementation."""
    remember_when_checkpointing(module)
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    announce(module, given)
    implementation = stack(module).config._attn_implementation
    if implementation not in (NAME, UNPADDED) and not written_out:
        return None
    inputs = given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
    cache = cache_of(given)
    mask = given.get("attention_mask")
    if mask is None and cache is None and isinstance(inputs, Tensor) and torch.compiler.is_compiling():
        # Under torch.compile, transformers cannot tell whether a row packs several texts, and builds a mask for them.
        if implementation == NAME and "attention_mask" not in names[: len(args)]:
            kwargs = {**kwargs, "attention_mask": inputs.new_ones(inputs.shape[:2], dtype=torch.long)}
        return args, kwargs
    if not isinstance(mask, Tensor) or not getattr(module, _DERIVES, False) or mask.ndim != 2 or inputs is None:
        return None
    if given.get("position_ids") is not None:
        return None
    read, new = 0 if cache is None else int(cache.get_seq_length()), inputs.shape[1]
    valid = mask.bool().int()  # a number above 1 marks a valid token too
    at = torch.arange(mask.shape[1], device=mask.device)
    positions = (at - valid.argmax(-1, keepdim=True)).clamp(min=0) + first  # padding at the right goes on counting
    # A mask may be as long as a key-value cache of fixed size, or only as long as the new tokens.
    positions = positions[:, read : read + new] if mask.shape[1] >= read + new else positions[:, -new:]
    if hasattr(module, "get_rope_index"):  # image positions have three axes; the model computes them
        if read or any(given.get(name) is not None for name in ("image_grid_thw", "video_grid_thw")):
            return None
        positions = positions.expand(3, -1, -1)
    if "position_ids" in names[: len(args)]:  # a positional None
        place = names.index("position_ids")
        return (*args[:place], positions, *args[place + 1 :]), kwargs
    return args, {**kwargs, "position_ids": positions}
