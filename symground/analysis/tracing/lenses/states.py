"""What each depth of a model predicts: its residual stream, read by the final norm and the vocabulary head."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from symground import ops
from symground.analysis.probing import Examples
from symground.models.passes import final_norm, residual_stream
from symground.models.trials import Readout, verified_readout

#: The most logits that are held at once.
_AT_ONCE = 2**24


class Reading:
    """What each depth of a model predicts."""

    def __init__(self, model: PreTrainedModel, translators: tuple[Tensor, Tensor] | None) -> None:
        """``translators`` are the weights [L,D,D] and biases [L,D] of a lens; None is the plain logit lens."""
        self._model, self._given = model, translators
        self._head, self._norm = verified_readout(model), final_norm(model)

    @property
    def words(self) -> int:
        """The size of the vocabulary."""
        return self._head.weight.shape[0]

    def surprisal(self, examples: Examples, positions: Tensor, candidates: Tensor) -> Tensor:
        """[L+1,B,R,K] in nats of candidates [B or 1,R or 1,K] after the positions [B,R] of the examples."""
        head, device = self._head, self._head.weight.device
        given = examples.given(slice(0, len(examples.input_ids)), device)
        stream = self._stream(examples.input_ids, given)  # [L+1,B,T,D]
        stream = stream.take_along_dim(positions.to(device)[None, ..., None], 2)  # [L+1,B,R,D]
        depths, batch, count, _ = stream.shape
        stream = stream.flatten(1, 2)
        shared = candidates.shape[:2] == (1, 1)
        candidates = candidates.to(device)
        candidates = candidates[0, 0] if shared else candidates.expand(batch, count, -1).flatten(0, 1)
        each = _of_depths(stream[:-1].contiguous(), self._translators(stream), self._norm, head, candidates)
        last = head.surprisal(self._norm(stream[-1]), candidates)[None]
        return torch.cat([each, last]).view(depths, batch, count, -1)

    def predictions(self, ids: Tensor, follows: Tensor, given: Mapping[str, Tensor], top: int) -> tuple[Tensor, ...]:
        """Of ids [B,T]: the likeliest tokens and their probabilities [L+1,B,T,top], entropy [L+1,B,T], and surprisal.

        ``follows`` [B,T] are the tokens whose surprisal it is.
        """
        device = self._head.weight.device
        stream = self._stream(ids, {name: x.to(device) for name, x in given.items()})
        translators, wanted = self._translators(stream), follows.to(device).flatten()
        found = []
        for depth, h in enumerate(stream.flatten(1, 2)):  # [B·T,D]
            if translators is not None and depth < len(stream) - 1:
                weight, bias = translators
                h = h + functional.linear(h, weight[depth], bias[depth])
            rows = max(1, _AT_ONCE // self.words)
            pieces = [
                _read_off(self._head.logits(x), w, top)
                for x, w in zip(self._norm(h).split(rows), wanted.split(rows), strict=True)
            ]
            found.append([torch.cat(x).unflatten(0, ids.shape) for x in zip(*pieces, strict=True)])
        return tuple(torch.stack(x) for x in zip(*found, strict=True))

    def _stream(self, ids: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        stream = residual_stream(self._model, ids.to(self._head.weight.device), **given)
        depths, *_, width = stream.shape
        if self._given is not None and self._given[0].shape != (depths - 1, width, width):
            raise ValueError(
                f"lens: expected translators [{depths - 1},{width},{width}] for this model, got "
                f"{list(self._given[0].shape)}"
            )
        return stream

    def _translators(self, stream: Tensor) -> tuple[Tensor, Tensor] | None:
        return None if self._given is None else (self._given[0].to(stream), self._given[1].to(stream))


def _read_off(logits: Tensor, wanted: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of logits [M,V]: the likeliest ids and their probabilities [M,top], entropy [M], and surprisal [M] of ids [M]."""
    log_p = logits.float().log_softmax(-1)
    best = log_p.topk(top)
    surprisal = -log_p.gather(1, wanted[:, None])[:, 0]
    return best.indices, best.values.exp(), torch.special.entr(log_p.exp()).sum(-1), surprisal


def _of_depths(
    stream: Tensor, translators: tuple[Tensor, Tensor] | None, norm: Callable[[Tensor], Tensor], head: Readout,
    candidates: Tensor,
) -> Tensor:  # fmt: skip
    """[L,B,K] surprisal of the candidates at each depth of the stream [L,B,D]."""
    if head.module is None and stream.dtype == head.weight.dtype:
        return ops.lens_surprisal(stream, translators, norm, head.weight, candidates, bias=head.bias)
    if translators is not None:
        weight, bias = translators
        stream = stream + torch.einsum("lbd,led->lbe", stream, weight) + bias[:, None]
    return torch.stack([head.surprisal(norm(h), candidates) for h in stream])
