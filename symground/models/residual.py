"""The residual stream of a causal language model: what each layer is given, and what the final norm is given."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from symground.models.lstm import LSTMForCausalLM
from symground.models.mixers import untapped
from symground.models.readout import agree, hidden_states, readout, trial_ids
from symground.models.replay import decoder_layers

_NORM = "_symground_final_norm"


def residual_stream(model: PreTrainedModel, input_ids: Tensor, **inputs: Any) -> Tensor:
    """[L+1,B,T,D]: what each of L layers is given, and after them what the final norm is given.

    An LSTM has no residual stream; what stands for it is the embedding, and each layer's hidden states.

    Args:
        model: attached.
        input_ids: [B,T].
        inputs: further inputs of the model.

    Raises:
        ValueError: a model whose layers are not in one list.
    """
    if isinstance(model, LSTMForCausalLM):
        return _of_lstm(model, input_ids)
    layers, _ = decoder_layers(model)
    found: list[Tensor] = []

    def given(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])

    def gives(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        found.append(out[0] if isinstance(out, tuple) else out)

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(given, with_kwargs=True).remove)
        stack.callback(layers[-1].register_forward_hook(gives).remove)
        hidden_states(model, input_ids, use_cache=False, **inputs)
    return torch.stack(found)


def final_norm(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """What makes the model's final hidden states of the last layer's output; found by trying, once per model.

    Raises:
        ValueError: no module of the model does.
    """
    if isinstance(model, LSTMForCausalLM):
        norm: nn.Module = model.model.norm
        return norm
    known: nn.Module | None = vars(model).get(_NORM)
    if known is None:
        known = _tried(model)
        object.__setattr__(model, _NORM, known)
    return known


def _tried(model: PreTrainedModel) -> nn.Module:
    layers = set(decoder_layers(model)[0])
    inside = {part for layer in layers for part in layer.modules()}
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), untapped(model):
            ids = trial_ids(model, 3).to(readout(model).weight.device)
            last, expected = residual_stream(model, ids)[-1], hidden_states(model, ids)
            for module in (nn.Identity(), *model.base_model.modules()):
                if module in inside or isinstance(module, (nn.Embedding, nn.ModuleList, PreTrainedModel)):
                    continue
                try:
                    found = module(last)
                except Exception:
                    continue
                if isinstance(found, Tensor) and found.shape == expected.shape and agree(found, expected):
                    return module
    finally:
        model.train(training)
    raise ValueError(
        f"model: no module of {type(model).__name__} makes its final hidden states of its last layer's output"
    )


def _of_lstm(model: LSTMForCausalLM, input_ids: Tensor) -> Tensor:
    whole = model.model.lstm
    one = nn.LSTM(whole.input_size, whole.hidden_size, batch_first=True, device="meta")
    found = [model.get_input_embeddings()(input_ids)]
    for layer in range(whole.num_layers):
        weights = {name: getattr(whole, name.replace("_l0", f"_l{layer}")) for name, _ in one.named_parameters()}
        found.append(functional_call(one, weights, (found[-1],))[0])
    return torch.stack(found)
