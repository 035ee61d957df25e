"""The residual stream of a causal language model: the input of each layer and of the final norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from symground.models.architectures import LSTMForCausalLM
from symground.models.hooks import body, hooked, untapped
from symground.models.passes.layer_list import decoder_layers
from symground.models.trials import agree, hidden_states, readout, trial_ids


def residual_stream(model: PreTrainedModel, input_ids: Tensor, **inputs: Any) -> Tensor:
    """The input of each of L layers, and after them the input of the final norm, [L+1,B,T,D].

    An LSTM has no residual stream; for it, these are the embeddings and each layer's hidden states.

    Args:
        model: attached.
        input_ids: [B,T].
        inputs: further inputs of the model.

    Raises:
        ValueError: the model's layers are not in one list.
    """
    if isinstance(model, LSTMForCausalLM):
        return _of_lstm(model, input_ids)
    layers, _ = decoder_layers(model)
    found: list[Tensor] = []

    def given(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])

    def gives(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        found.append(out[0] if isinstance(out, (tuple, list)) else out)

    every = ((layer, given) for layer in layers)
    with hooked(*every, before=True, with_kwargs=True), hooked((layers[-1], gives)):
        hidden_states(model, input_ids, use_cache=False, **inputs)
    return torch.stack(found)


def final_norm(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """The function from the last layer's output to the final hidden states, located in the model as it is now.

    Raises:
        ValueError: no module of the model is this function.
    """
    if isinstance(model, LSTMForCausalLM):
        norm: nn.Module = model.model.norm
        return norm
    inside = {part for layer in decoder_layers(model)[0] for part in layer.modules()}
    others = (nn.Embedding, nn.ModuleList, PreTrainedModel)
    outside = [x for x in body(model).modules() if x not in inside and not isinstance(x, others)]
    called: list[tuple[nn.Module, Tensor]] = []

    def given(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            called.append((module, args[0]))

    with torch.no_grad(), untapped(), hooked(*((module, given) for module in outside), before=True):
        ids = trial_ids(model, 3).to(readout(model).weight.device)
        last, expected = residual_stream(model, ids)[-1], hidden_states(model, ids)
        # In an untrained model, a norm of the embeddings may compute the same function. So the modules whose input
        # was the last layer's output come first.
        at_the_end = [module for module, x in called if x.shape == last.shape and torch.equal(x, last)]
        for module in (nn.Identity(), *dict.fromkeys((*at_the_end, *(module for module, _ in called)))):
            try:
                found = module(last)
            except Exception:
                continue
            if isinstance(found, Tensor) and found.shape == expected.shape and agree(found, expected):
                return module
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
