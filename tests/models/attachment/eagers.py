"""What the tests of families share: a padded batch, and the comparison with transformers' eager attention."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

import symground as sg

TARGETS = torch.tensor([5, 7])


def padded(side: str, first: int = 1) -> tuple[Tensor, Tensor]:
    """Ids from ``first`` on and the mask [2,9]; the first row has three tokens of padding."""
    torch.manual_seed(1)
    ids, mask = torch.randint(first, 101, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[0, : 3 if side == "left" else None] = 0
    if side == "right":
        mask[0, :6] = 1
    return ids * mask, mask  # RoBERTa counts its positions by the padding's id, 0


def check_logits_and_saliency(
    eager: PreTrainedModel, ours: PreTrainedModel, ids: Tensor, mask: Tensor, places: dict[str, Tensor],
    of_ours: dict[str, Tensor], tolerance: float,
) -> None:  # fmt: skip
    """Logits within ``tolerance``, surprisal, layer saliency and signed rows; each model gets its own positions."""
    out = eager(ids, attention_mask=mask, output_attentions=True, **places)
    with torch.no_grad():
        logits = ours(ids, attention_mask=mask, **of_ours).logits
    valid = mask.bool()
    torch.testing.assert_close(logits[valid], out.logits[valid], atol=tolerance, rtol=tolerance)
    p = (mask * torch.arange(9)).argmax(-1)
    surprisal = -out.logits[torch.arange(2), p].log_softmax(-1)[torch.arange(2), TARGETS]
    gradients = torch.autograd.grad(surprisal.sum(), out.attentions)
    signed = torch.stack([(a * g) for a, g in zip(out.attentions, gradients, strict=True)], 1).detach()  # [B,L,H,T,T]
    traced = sg.trace(ours, ids, TARGETS, mask, rows=True, **of_ours)
    np.testing.assert_allclose(traced.surprisal, surprisal.detach(), atol=1e-4, rtol=1e-4)
    seen = valid[:, None, :, None].numpy()  # rows of padding are not compared
    np.testing.assert_allclose(traced.saliency * seen, signed.sum(2).abs().numpy() * seen, atol=1e-5, rtol=1e-3)
    rows = torch.stack([signed[i, :, :, p[i]] for i in range(2)])
    np.testing.assert_allclose(traced.rows, rows, atol=1e-5, rtol=1e-3)
