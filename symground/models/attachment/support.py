"""The layers of a transformers decoder whose attention symground can compute; other kinds are refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel

from symground.models.architectures import is_written_out, mamba_mixers
from symground.models.attachment.lookup import instead, is_cross_attention, is_unused
from symground.models.hooks import WITH_VISION, Mixer, is_encoder_decoder, stack, stacks, vision_tower
from symground.ops.attention.mixing import MAX_HEAD_SIZE

#: Matches the class names of transformers' modules that mix positions.
_MIXES = re.compile("attention|attn|mixer|delta|recurrent|lightning|ssm|lstm|mamba|rwkv|shortconv", re.IGNORECASE)
#: In the names of modules that make a bias of scores.
_BIAS = "RelativePositionBias"
#: Matches those of these names that are parts which do not mix positions, or the models around them.
_BESIDE = re.compile("norm|rotary|embedding|mlp|feedforward|experts|router|model$|forcausallm", re.IGNORECASE)


def mixers_of(model: PreTrainedModel) -> tuple[Mixer, ...]:
    """The mixers of a model, of attention and Mamba-2, ordered by their numbers.

    Those of the text have the model's numbers. The Mamba-2 of layers that have attention too (Falcon-H1, Zamba2) is
    numbered on after all layers of the text, by its layer, and a vision tower after these.
    """
    biased = {type(m).__name__ for of in stacks(model).values() for m in of.modules() if _BIAS in type(m).__name__}
    if biased:
        raise ValueError(
            f"model: {', '.join(sorted(biased))} of {type(model).__name__} adds a number for each pair of positions to "
            f"the scores, which symground's attention does not compute; {instead(model)}"
        )
    of_text, of_vision = attention_layers(model)
    mamba = list(mamba_mixers(model))
    if not (of_text or of_vision or mamba):
        raise ValueError(_unknown(model, _what_mixes(model)))
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", 0)  # some may be of another kind
    after = max([layers, *(mixer.layer + 1 for mixer in of_text), *(module.layer_idx + 1 for module in mamba)])
    with_attention = {mixer.layer for mixer in of_text}
    for module in mamba:
        number = module.layer_idx + (after if module.layer_idx in with_attention else 0)
        of_text.append(Mixer(number, module.num_heads, module))
    after = max([after, *(mixer.layer + 1 for mixer in of_text)])
    of_vision = [replace(mixer, layer=after + n) for n, mixer in enumerate(of_vision)]
    return tuple(sorted((*of_text, *of_vision), key=lambda mixer: mixer.layer))


def attention_layers(model: PreTrainedModel) -> tuple[list[Mixer], list[Mixer]]:
    """The attention of the text, with its numbers, and of a vision tower, counted from 0."""
    name = type(model).__name__
    found = []
    for layer, module, role in _attentions(model):
        config = getattr(module, "config", None)
        for applies, variant in _unlike(module):
            if applies:
                raise ValueError(f"model: {name} {variant}, which symground does not support; {instead(model)}")
        counts = [getattr(module, of, None) for of in ("num_heads", "num_attention_heads", "n_heads", "n_head")]
        heads = next((x for x in counts if x), getattr(config, "num_attention_heads", None))
        if not isinstance(heads, int) or (config is None and not is_written_out(module)):
            raise ValueError(_unknown(model, [type(module).__name__]))
        found.append(Mixer(layer, heads, module, role))
    of_text = [mixer for mixer in found if mixer.kind != "vision"]
    return of_text, [mixer for mixer in found if mixer.kind == "vision"]


def _attentions(model: PreTrainedModel) -> list[tuple[int, nn.Module, str]]:
    """(number, module, role) of each attention; if the modules have no number (layer_idx), they are counted.

    All attentions of an encoder-decoder are counted, and so are those of a vision tower. Attention that is written out
    is found where no module of its role calls an attention function.
    """
    paths, roles = {}, {}
    for of_stack, part in stacks(model).items():
        for path, module in part.named_modules():
            if type(module).__name__.endswith(("Attention", "MLA")) and not is_unused(model, path, module):
                paths[module], roles[module] = path, "cross" if is_cross_attention(path, module) else of_stack
    found = []
    for role in dict.fromkeys(roles.values()):
        of_role = [module for module in roles if roles[module] == role]
        calling = [module for module in of_role if not is_written_out(module)]
        found += calling or [m for m in of_role if not any(part in roles for part in list(m.modules())[1:])]
    order = list(roles)
    found.sort(key=order.index)
    if is_encoder_decoder(model):
        return [(n, module, roles[module]) for n, module in enumerate(found)]
    of_text = [module for module in found if roles[module] != "vision"]
    numbers = [_number(module, paths[module]) for module in of_text]
    given = [(n, module, roles[module]) for n, module in zip(numbers, of_text, strict=True) if n is not None]
    given = given or [(n, module, roles[module]) for n, module in enumerate(of_text)]
    of_vision = [module for module in found if roles[module] == "vision"]
    return given + [(n, module, "vision") for n, module in enumerate(of_vision)]


def _number(module: nn.Module, path: str) -> int | None:
    """The number that a module says; where it says -1 (Zamba2's attention), that of the layer in its path."""
    number = getattr(module, "layer_idx", None)
    of_layer = re.search(r"\d+", path)
    if isinstance(number, int) and number < 0 and of_layer:
        return int(of_layer.group())
    return number if isinstance(number, int) else None


def untraced_of(model: PreTrainedModel, found: tuple[Mixer, ...]) -> tuple[str, ...]:
    """Class names of the modules that mix positions and are none of these mixers, judged by name.

    If a vision tower is traced, those between it and the text count too (a Q-Former), and a head that pools it does not
    where the text reads its patches.
    """
    traced = {part for mixer in found for part in mixer.module.modules()}
    with_vision = getattr(model, WITH_VISION, False)
    places = [model] if with_vision else list(stacks(model).values())
    tower = vision_tower(model) if with_vision and model.get_output_embeddings() is not None else None
    pooling = () if tower is None else [m for m in tower.modules() if type(m).__name__.endswith("PoolingHead")]
    pooled = {part for head in pooling for part in head.modules()}
    named = {
        module: path for of in places for path, module in of.named_modules()
        if _MIXES.search(type(module).__name__) and not _BESIDE.search(type(module).__name__)
        and module not in traced and module not in pooled and not is_unused(model, path, module)
    }  # fmt: skip
    whole = {
        module for module in named
        if any(part in traced or (part in named and part is not module) for part in module.modules())
    }  # fmt: skip
    return tuple(sorted({type(module).__name__ for module in named if module not in whole}))


def _unknown(model: PreTrainedModel, parts: Sequence[str]) -> str:
    return (
        f"model: the layers of {type(model).__name__} mix positions by {', '.join(parts)}: symground knows no heads "
        f"of softmax attention there; {instead(model)}"
    )


def _what_mixes(model: PreTrainedModel) -> list[str]:
    """Class names of the modules that mix positions, judged by name; if none matches, those of the layers."""
    decoder = stack(model)
    lists = [part for part in decoder.modules() if isinstance(part, nn.ModuleList) and len(part)]
    inside = {type(part).__name__ for layers in lists for layer in layers for part in layer.modules()}
    named = sorted(name for name in inside if _MIXES.search(name) and not name.endswith(("Layer", "Block")))
    return (
        named or sorted({type(layer).__name__ for layers in lists[:1] for layer in layers}) or [type(decoder).__name__]
    )


def _unlike(module: nn.Module) -> Iterator[tuple[bool, str]]:
    """For each difference from `ops.attention`: whether the attention module has it, and its name."""
    kind = type(module)
    yield (getattr(module, "head_dim", None) or 0) > MAX_HEAD_SIZE, f"has heads wider than {MAX_HEAD_SIZE}"
    yield kind.__name__.startswith("DiffLlama"), "has two attention matrices a head"
    yield "BlockSparse" in kind.__name__, "lets each query see some blocks of keys, which differ by head"
    yield getattr(module, "indexer", None) is not None, "lets an indexer choose the keys that each query sees"
