"""Changes to a model that its next measurement must see."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm
from transformers import LlamaForCausalLM, PreTrainedModel


class Adapter(nn.Module):
    """A linear layer plus a low-rank product, like PEFT's adapters: its ``weight`` is that of the layer."""

    def __init__(self, base: nn.Linear, begun: bool) -> None:
        super().__init__()
        self.base_layer = base
        self.down, self.up = (nn.Linear(i, o, bias=False) for i, o in ((base.in_features, 2), (2, base.out_features)))
        nn.init.normal_(self.down.weight, std=0.5)
        nn.init.normal_(self.up.weight, std=0.5 if begun else 0.0)

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.base_layer(x) + self.up(self.down(x))
        return found


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


def by_position(x: Any) -> Any:
    """A change that differs between a text in two pieces and the whole text."""
    hidden = x[0] if isinstance(x, tuple) else x
    hidden = hidden * (1 + 0.2 * torch.arange(hidden.shape[1]))[:, None]
    return (hidden, *x[1:]) if isinstance(x, tuple) else hidden


def curved(x: Tensor) -> Tensor:
    return x + 0.3 * x.sin()


def replace_forward(module: nn.Module, change: Callable[[Any], Any]) -> None:
    before = module.forward
    module.forward = lambda *args, **kwargs: change(before(*args, **kwargs))  # type: ignore[method-assign]


def train(model: PreTrainedModel) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    ids = torch.randint(2, model.config.vocab_size, (4, 8), generator=torch.Generator().manual_seed(3))
    for _ in range(3):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()


def new_head(model: PreTrainedModel) -> None:
    torch.manual_seed(5)
    head = nn.Linear(32, model.config.vocab_size)
    nn.init.normal_(head.weight, std=0.4)
    nn.init.normal_(head.bias)
    model.set_output_embeddings(head)


def load_another(model: PreTrainedModel) -> None:
    other = LlamaForCausalLM(copy.deepcopy(model.config))
    model.load_state_dict(other.state_dict())


def on_layer(model: PreTrainedModel) -> nn.Module:
    return model.model.layers[0]


def projection(model: PreTrainedModel) -> nn.Module:
    return model.model.layers[0].self_attn.o_proj


def adapt(model: PreTrainedModel, begun: bool = True) -> None:
    torch.manual_seed(4)
    model.lm_head = Adapter(model.lm_head, begun)


def adapt_projection(model: PreTrainedModel) -> None:
    torch.manual_seed(4)
    model.model.layers[0].self_attn.o_proj = Adapter(projection(model), True)


CHANGES: dict[str, Callable[[PreTrainedModel], Any]] = {
    "adapter on the head": adapt,
    "adapter on a projection": adapt_projection,
    "hook on a layer": lambda m: on_layer(m).register_forward_hook(lambda _, args, out: by_position(out)),
    "hook before a layer": lambda m: on_layer(m).register_forward_pre_hook(
        lambda _, args: (by_position(args[0]), *args[1:])
    ),
    "hook on the head": lambda m: m.lm_head.register_forward_hook(lambda _, args, out: curved(out)),
    "hook before the head": lambda m: m.lm_head.register_forward_pre_hook(lambda _, args: (curved(args[0]),)),
    "hook on the norm": lambda m: m.model.norm.register_forward_hook(lambda _, args, out: curved(out)),
    "hook before a projection": lambda m: projection(m).register_forward_pre_hook(lambda _, args: (curved(args[0]),)),
    "hook on a projection": lambda m: projection(m).register_forward_hook(lambda _, args, out: curved(out)),
    "parametrized head": lambda m: parametrize.register_parametrization(m.lm_head, "weight", Doubled()),
    "parametrized projection": lambda m: parametrize.register_parametrization(projection(m), "weight", Doubled()),
    "weight norm on a projection": lambda m: weight_norm(projection(m)).parametrizations.weight.original0.data.mul_(2),
    "another head": new_head,
    "forward of a layer": lambda m: replace_forward(on_layer(m), by_position),
    "forward of the head": lambda m: replace_forward(m.lm_head, curved),
    "forward of a projection": lambda m: replace_forward(projection(m), curved),
    "other weights": load_another,
    "weights written to": lambda m: [p.data.mul_(1.3) for p in m.parameters()],
    "trained": train,
    "half precision": lambda m: m.bfloat16(),
}
