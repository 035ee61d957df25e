"""Loading a run's checkpoint, or any Hugging Face model, ready to be traced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from symground.folders import checkpoint_folder, checkpoint_steps, images_of, is_run, study_of
from symground.models import lstm  # noqa: F401  (registers the architecture)
from symground.models.attach import attach
from symground.models.images import set_images
from symground.models.mamba_ssm import is_mamba_ssm, load_mamba_ssm
from symground.optional import require
from symground.sealed import SUMS, damage


def load(
    path: str | Path,
    step: int | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    device_map: Any = None,
) -> PreTrainedModel:
    """Load a model, attach it, and set it to evaluation; a run's is given the images of its study.

    A causal language model, or one that reads images and text (LLaVA, Qwen-VL, …), whose text decoder is attached.

    Args:
        path: a run's folder, a folder in Hugging Face layout or as the mamba-ssm package saves its Mamba-2, or a
            model's name on the hub.
        step: which checkpoint of the run; None takes its last.
        device: where to put it; None leaves it on the CPU.
        dtype: of the weights, such as "bfloat16"; None leaves it to transformers.
        device_map: spreads the layers over devices and host memory ("auto", or what accelerate takes), in place of
            ``device``; needs the accelerate package.

    Raises:
        FileNotFoundError: a run without checkpoints, a study whose images are gone, or a path that does not exist.
        ValueError: a step that the run has no checkpoint of (lists those it has), a ``step`` for something that is not
            a run, weights that are damaged (names the file), or both a ``device`` and a ``device_map``.
        ImportError: a ``device_map`` without accelerate.
    """
    if device is not None and device_map is not None:
        raise ValueError("device_map: it says where everything is; expected no device beside it")
    if device_map is not None:
        require("accelerate", "models spread over devices", "symground[spread]")
    folder = Path(path)
    images: Path | None = None
    if is_run(folder):
        images = images_of(study_of(folder) / "data")
        steps = checkpoint_steps(folder)
        if not steps:
            raise FileNotFoundError(f"{folder} has no checkpoint yet")
        if step is not None and step not in steps:
            raise ValueError(f"step: {folder} has checkpoints at {', '.join(map(str, steps))}; got {step}")
        folder = checkpoint_folder(folder, steps[-1] if step is None else step)
    elif step is not None:
        raise ValueError(f"step: {path} is not a run (no checkpoints/ beside a config.json), so it has no steps")
    elif folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is neither a run nor a model: it has no config.json")
    else:
        _check_there(path)
    wrong = damage(folder) if folder.is_dir() else None
    if wrong is not None:
        raise ValueError(f"{folder}: damaged, {wrong}; remove its {SUMS} if the change was meant")
    source = folder if folder.is_dir() else str(path)
    try:
        mamba_ssm = folder.is_dir() and is_mamba_ssm(folder)
        how = {name: x for name, x in (("dtype", dtype), ("device_map", device_map)) if x is not None}
        model = load_mamba_ssm(folder) if mamba_ssm else _auto(source).from_pretrained(source, **how)
    except Exception as error:
        if type(error).__name__ == "SafetensorError":
            raise ValueError(f"{folder}: its weights are damaged or cut short ({error})") from error
        raise
    attach(model)
    if images is not None:
        if not (images / "features.npy").is_file():
            raise FileNotFoundError(f"{path}: the images of its study are gone from {images}")
        set_images(model, np.load(images / "features.npy", mmap_mode="c", allow_pickle=False))
    model.eval()
    return model.to(device) if device else model  # type: ignore[arg-type]


def _check_there(path: str | Path) -> None:
    """Refuse what is neither a folder nor may be a name on the hub."""
    folder = Path(path)
    if not folder.exists() and (folder.is_absolute() or len(folder.parts) != 2 or Path(folder.parts[0]).exists()):
        raise FileNotFoundError(f"{path} does not exist, and is no model's name on the hub (owner/name)")


def _auto(source: str | Path) -> Any:
    """The class that reads a model: one with a vision tower is none of the causal language models."""
    config = AutoConfig.from_pretrained(source)
    sees = hasattr(config, "vision_config") and type(config) in AutoModelForImageTextToText._model_mapping
    return AutoModelForImageTextToText if sees else AutoModelForCausalLM


def load_processor(path: str | Path) -> Any:
    """The processor of a vision-language model: a folder, or a model's name on the hub.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: what is there is no processor of images and text.
    """
    _check_there(path)
    try:
        processor = AutoProcessor.from_pretrained(path)
    except (OSError, ValueError) as error:  # what a folder lacks of one, if not a hub that does not answer
        if not Path(path).is_dir():
            raise
        raise ValueError(f"{path}: expected a processor of images and text; {error}") from error
    if not (hasattr(processor, "image_processor") and hasattr(processor, "tokenizer")):
        raise ValueError(f"{path}: expected a processor of images and text, got {type(processor).__name__}")
    return processor


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a study, or of a run in it. FileNotFoundError when there is none."""
    for folder in (Path(path), study_of(path)):
        if (folder / "tokenizer.json").is_file():
            tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
            return tokenizer
    raise FileNotFoundError(f"{path}: no tokenizer.json there or in the study above it")
