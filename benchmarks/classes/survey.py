"""Every model class of the installed transformers with a language head: traced, refused by name, or not buildable.

    python -m benchmarks classes                   # all → benchmarks/results/classes.md
    python -m benchmarks classes --only Llama GPT2 --no-save

For each class a tiny random configuration is made from its defaults (`tiny.py`). If it builds, its logits and its trace
are compared with transformers' eager attention and autograd, in float32 and, where they differ, in float64. Each class
runs in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import inspect
import io
import multiprocessing
import os
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

import symground as sg
from benchmarks.classes.tiny import WORDS, tiny
from benchmarks.common.twins import twins
from symground.models.hooks import body

ROOT = Path(__file__).resolve().parents[2]
#: Kind of head → transformers' table of the classes that have it.
TABLES = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "image-text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "sequence to sequence": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "speech to text": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
}
#: Names of the number of frequency bands of a spectrum.
_BANDS = ("num_mel_bins", "feature_size", "input_feat_per_channel", "feature_projection_input_dim")
SECONDS = 120
MOST_PARAMETERS = 2**26
TRACED, REFUSED, UNBUILT, WRONG = "traced", "refused", "not buildable", "WRONG"


class Row(NamedTuple):
    """What became of a class."""

    name: str
    head: str
    outcome: str
    detail: str


def classes() -> Iterator[tuple[str, str]]:
    """(class, kind of head), each class once."""
    seen: set[str] = set()
    for head, table in TABLES.items():
        for names in getattr(modeling_auto, table).values():
            for name in (names,) if isinstance(names, str) else names:
                if name not in seen and hasattr(transformers, name):
                    seen.add(name)
                    yield name, head


def built(name: str, head: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The model under eager attention, and a copy to attach."""
    kind = getattr(transformers, name)
    config = tiny(kind.config_class, head == "causal")
    with torch.device("meta"):
        size = sum(x.numel() for x in kind._from_config(copy.deepcopy(config)).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"its tiny configuration has {size} parameters")
    return twins(kind, config)


def batch() -> tuple[Tensor, Tensor]:
    """Ids and mask [2,9]; the first row has three tokens of padding at its left."""
    torch.manual_seed(1)
    ids, mask = torch.randint(1, WORDS - 10, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[0, :3] = 0
    return ids * mask, mask


def read_by(model: PreTrainedModel) -> dict[str, Tensor]:
    """The inputs of a model: ids and their mask, or the spectrum of a sound, and the text of an encoder-decoder.

    Raises:
        Exception: the model takes neither; the error is its own.
    """
    ids, mask = batch()
    both = bool(getattr(model.config, "is_encoder_decoder", False))
    text = {"decoder_input_ids": ids.flip(0), "decoder_attention_mask": mask.flip(0)} if both else {}
    given = [{"input_ids": ids, "attention_mask": mask, **text}]
    if model.main_input_name == "input_features":
        bands = next((getattr(model.config, x) for x in _BANDS if hasattr(model.config, x)), 8)
        frames = 2 * getattr(model.config, "max_source_positions", 16)
        given = [{"input_features": torch.randn(shape), **text} for shape in ((2, bands, frames), (2, frames, bands))]
    for n, inputs in enumerate(given):
        try:
            with torch.no_grad():
                model(**inputs)
            return inputs
        except Exception:
            if n == len(given) - 1:
                raise
    raise AssertionError


def examined(name: str, head: str) -> Row:
    try:
        eager, ours = built(name, head)
        given = read_by(eager)
    except Exception as error:
        return Row(name, head, UNBUILT, _said(error))
    try:
        ours = sg.attach(ours)
    except ValueError as error:
        return Row(name, head, REFUSED, _reason(error))
    except Exception as error:
        return Row(name, head, WRONG, f"attach: {_said(error)}")
    try:
        found = _compared(eager, ours, given)
        if found[0] == WRONG:  # perhaps by rounding; but padded rows of most eager attentions are NaN in float64
            given = {name: x.double() if x.is_floating_point() else x for name, x in given.items()}
            found = _compared(eager.double(), ours.double(), given)
        return Row(name, head, *found)
    except ValueError as error:
        if "expected padding on the right" not in str(error):
            return Row(name, head, REFUSED, f"trace: {error}")
    except Exception as error:
        return Row(name, head, WRONG, _said(error))
    outcome, detail = _compared(eager, ours, {name: x.flip(1) for name, x in given.items()})
    return Row(name, head, outcome, f"{detail}; padding on the right alone")


def _compared(eager: PreTrainedModel, ours: PreTrainedModel, given: dict[str, Tensor]) -> tuple[str, str]:
    targets = torch.tensor([5, 7])
    both = "decoder_input_ids" in given
    valid = given["decoder_attention_mask" if both else "attention_mask"].bool()
    p = (valid * torch.arange(valid.shape[1])).amax(-1)
    if "position_ids" in inspect.signature(body(eager).forward).parameters and not both:
        given = {**given, "position_ids": (valid.cumsum(-1) - 1).clamp(min=0)}
    out = eager(**given, output_attentions=True, use_cache=False)
    with torch.no_grad():
        logits = ours(**given, use_cache=False).logits
    wanted, found = out.logits[valid], logits[valid]
    if not _close(found, wanted):
        return WRONG, f"logits differ by {float((found - wanted).abs().max()):.2g}"
    traced = sg.trace(ours, targets=targets, rows=True, **given)
    surprisal = -out.logits[torch.arange(2), p].double().log_softmax(-1)[torch.arange(2), targets]
    if not _close(torch.tensor(traced.surprisal.values), surprisal):
        return WRONG, "surprisal differs"
    if both:
        source = torch.ones(2, traced.sizes.get("source", 9)) if "input_ids" not in given else given["attention_mask"]
        return _crossings(out, traced, surprisal, valid, source.bool())
    shown = getattr(out, "attentions", None) or ()
    attentions = [a for a in shown if isinstance(a, Tensor) and a.requires_grad and a.ndim == 4]
    if any(bool(a.min() < 0) for a in attentions):  # SqueezeBERT shows its scores instead
        attentions = []
    if "saliency" not in traced:
        return TRACED, "gradient × input"
    kinds = Counter(traced.kind.values.tolist())
    said = ", ".join(f"{count} × {kind}" for kind, count in sorted(kinds.items()))
    if traced.attrs["untraced"]:
        said += f"; not traced: {traced.attrs['untraced']}"
    if len(attentions) != kinds["attention"]:
        return TRACED, f"{said}; eager shows {len(attentions)} attentions, so logits alone were compared"
    if not attentions:
        return TRACED, f"{said}; logits alone were compared"
    gradients = torch.autograd.grad(surprisal.sum(), attentions)
    signed = torch.stack([(a * g).sum(1) for a, g in zip(attentions, gradients, strict=True)], 1).detach().abs()
    seen = valid[:, None, :, None]
    found = torch.tensor(traced.saliency.values[:, traced.kind.values == "attention"])
    if not _close(found * seen, signed * seen):
        return WRONG, "saliency differs"
    return TRACED, said


def _crossings(out: Any, traced: Any, surprisal: Tensor, valid: Tensor, of_source: Tensor) -> tuple[str, str]:
    """The three kinds of layers of an encoder-decoder."""
    shown = {"encoder_": out.encoder_attentions, "": out.decoder_attentions, "cross_": out.cross_attentions}
    flat = [a for of_kind in shown.values() for a in of_kind or ()]
    said = ", ".join(f"{len(of_kind or ())} × {kind or 'self_'}"[:-1] for kind, of_kind in shown.items())
    if not all(isinstance(a, Tensor) for a in flat) or any(not of_kind for of_kind in shown.values()):
        return TRACED, f"{said}; logits alone were compared"
    gradients = iter(torch.autograd.grad(surprisal.sum(), flat))
    for kind, of_kind in shown.items():
        signed = torch.stack([(a * next(gradients)).sum(1) for a in of_kind], 1).detach().abs()
        seen = (of_source if kind == "encoder_" else valid)[:, None, :, None]
        if not _close(torch.tensor(traced[f"{kind}saliency"].values) * seen, signed * seen):
            return WRONG, f"{kind}saliency differs"
    return TRACED, said


def _close(found: Tensor, wanted: Tensor) -> bool:
    wanted = wanted.detach().double()
    return bool((found.double() - wanted).norm() <= 1e-3 * wanted.norm() + 1e-5)


def _reason(error: ValueError) -> str:
    """What a refusal says, without what remains possible."""
    return str(error).removeprefix("model: ").partition("; symground.score")[0].partition("; docs/models.md")[0]


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"


def _run(name: str, head: str, queue: Any) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            queue.put(examined(name, head))
    except BaseException:
        queue.put(Row(name, head, WRONG, traceback.format_exc().splitlines()[-1]))


def isolated(name: str, head: str) -> Row:
    """`examined` in a process of its own, which may end or hang."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_run, args=(name, head, queue))
    process.start()
    try:
        return queue.get(timeout=SECONDS)
    except Exception:
        return Row(name, head, UNBUILT, f"no answer within {SECONDS} s")
    finally:
        process.kill()
        process.join()


def page(rows: list[Row]) -> str:
    """The table with its counts."""
    out = [
        "# Model classes of transformers", "",
        f"transformers {transformers.__version__}: every class with a causal, image-text, masked, sequence-to-sequence "
        "or speech head. A tiny random configuration is made from each class's defaults. *Traced* means that logits "
        "and saliency equal those of eager attention and autograd. Written by `python -m benchmarks classes`.", "",
        "| head | " + " | ".join((TRACED, REFUSED, UNBUILT, WRONG)) + " |", "|---" * 5 + "|",
    ]  # fmt: skip
    for head in TABLES:
        count = Counter(row.outcome for row in rows if row.head == head)
        out.append(f"| {head} | " + " | ".join(str(count[x]) for x in (TRACED, REFUSED, UNBUILT, WRONG)) + " |")
    count = Counter(row.outcome for row in rows)
    out.append("| all | " + " | ".join(str(count[x]) for x in (TRACED, REFUSED, UNBUILT, WRONG)) + " |")
    out += ["", "| class | head | outcome | |", "|---" * 4 + "|"]
    out += [f"| {row.name} | {row.head} | {row.outcome} | {row.detail.replace('|', '/')} |" for row in rows]
    return "\n".join(out) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="PREFIX", help="classes whose names begin so")
    parser.add_argument("--no-save", action="store_true")
    arguments = parser.parse_args()
    asked = [x for x in classes() if not arguments.only or x[0].startswith(tuple(arguments.only))]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        rows = list(pool.map(lambda x: isolated(*x), asked))
    text = page(rows)
    print(text)
    if not arguments.only and not arguments.no_save:
        (ROOT / "benchmarks" / "results" / "classes.md").write_text(text, encoding="utf-8")
    return int(any(row.outcome == WRONG for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
