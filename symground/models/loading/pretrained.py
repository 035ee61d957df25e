"""Loads a run's checkpoint, or any Hugging Face model, and attaches it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar, cast

import numpy as np
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from symground.errors import check_device, errors_named, flag, integer, is_integer, panics_named, require
from symground.files import (
    SUMS,
    checkpoint_folder,
    checkpoint_steps,
    damage,
    images_of,
    is_run,
    read_json,
    runs_of,
    study_of,
)
from symground.models.architectures import set_images
from symground.models.attachment import attach
from symground.models.loading.mamba_ssm import is_mamba_ssm, load_mamba_ssm

T = TypeVar("T")
#: The form of a model's name on the hub; some have no owner.
_ON_HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FILES = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".json")
#: Attention implementations of torch and symground. A configuration may instead name a repository of kernels.
_AT_HAND = (None, "eager", "sdpa", "flex_attention", "symground")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "half": torch.float16, "fp32": torch.float32,
           "float": torch.float32, "fp64": torch.float64, "double": torch.float64}  # fmt: skip


def load(
    path: str | Path,
    step: int | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a model, attach it, and set it to evaluation mode. For a run, the images of its study are set as well.

    The model may be a causal language model, or a vision-language model (LLaVA, Qwen-VL, …), whose text decoder is
    attached.

    Args:
        path: a run's folder, a folder in Hugging Face layout or a Mamba-2 that the mamba-ssm package saved, a .gguf
            file (with the gguf package), or a model's name on the hub, with or without an owner ("gpt2"). A local path
            takes precedence over a hub name.
        step: the step of the run's checkpoint; None is the last.
        device: the device of the model; None leaves it on the CPU.
        dtype: the dtype of the weights, such as "bfloat16" ("bf16"), or "auto"; None leaves it to transformers.
        device_map: spreads the layers over devices and host memory ("auto", or a map for accelerate), in place of
            ``device``; needs the accelerate package.
        trust_remote_code: run the code that comes with the model, if it has any. There is no prompt, and an attention
            kernel that the model's configuration names is not fetched.

    Raises:
        FileNotFoundError: the run has no checkpoints, the study's images are missing, or the path exists neither
            locally nor on the hub.
        ValueError: the path is a study (the message lists its runs), the run has no checkpoint at ``step`` (the message
            lists the steps), ``step`` is set for something that is not a run, weights are damaged (the message names
            the file) or outside of the folder, the dtype is not floating-point, this machine does not have the device,
            the model needs its own code or cannot be attached, or both ``device`` and ``device_map`` are set.
        ImportError: ``device_map`` without accelerate, or a .gguf file without gguf.
    """
    step = None if step is None else integer("step", step, 0)
    flag("trust_remote_code", trust_remote_code)
    if device is not None and device_map is not None:
        raise ValueError(f"device: device_map already places the weights; expected no device, got {device}")
    if device_map is not None:
        require("accelerate", "models spread over devices", "symground[spread]")
    if device is not None:
        check_device(device)
    numbers = _dtype(dtype)
    _check_path(path)
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
    elif folder.is_dir():
        _check_model_folder(folder)
    else:
        _check_there(path)
    wrong = damage(folder) if folder.is_dir() else None
    if wrong is not None:
        raise ValueError(f"{folder}: damaged, {wrong}; remove its {SUMS} if the change was meant")
    try:
        if folder.is_dir() and is_mamba_ssm(folder):
            if device_map is not None:
                raise ValueError(f"device_map: {folder} is mamba-ssm's, which is loaded whole; use device")
            model: PreTrainedModel = load_mamba_ssm(folder)
            if isinstance(numbers, torch.dtype):
                model = model.to(numbers)  # type: ignore[arg-type]
        else:
            how = {name: x for name, x in (("dtype", numbers), ("device_map", device_map)) if x is not None}
            model = _from_hub(
                path, lambda: _pretrained(folder if folder.exists() else str(path), trust_remote_code, how)
            )
    except Exception as error:
        if type(error).__name__ == "SafetensorError":
            raise ValueError(f"{folder}: its weights are damaged or cut short ({error})") from error
        if folder.is_file() and not isinstance(error, (ImportError, OSError)):  # a .gguf file
            raise ValueError(
                f"{folder}: expected a model in GGUF form, whole and of a kind that transformers reads "
                f"({type(error).__name__}: {error})"
            ) from error
        raise
    attach(model)
    if images is not None:
        if not (images / "features.npy").is_file():
            raise FileNotFoundError(f"{path}: the images of its study are gone from {images}")
        set_images(model, np.load(images / "features.npy", mmap_mode="c", allow_pickle=False))
    model.eval()
    return model.to(device) if device else model  # type: ignore[arg-type]


def _pretrained(source: str | Path, trust: bool, how: dict[str, Any]) -> PreTrainedModel:
    """The model as transformers loads it, without fetching the kernels that its configuration names."""
    place, where = _source(source)
    config = AutoConfig.from_pretrained(place, trust_remote_code=trust, **where)
    if where and hasattr(transformers, "GgufConfig"):  # otherwise newer versions fetch a kernel and keep weights packed
        how = {**how, "quantization_config": transformers.GgufConfig(dequantize=True)}
    _keep_to(config)
    # A model with a vision tower is not among the causal language models.
    sees = hasattr(config, "vision_config") and type(config) in AutoModelForImageTextToText._model_mapping
    kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    model: PreTrainedModel = kind.from_pretrained(place, config=config, trust_remote_code=trust, **where, **how)
    return model


def _source(path: str | Path) -> tuple[str | Path, dict[str, str]]:
    """The arguments of transformers for a path; for a .gguf file, they are its folder and its name."""
    file = Path(path)
    if file.suffix.lower() != ".gguf" or not file.is_file():
        return path, {}
    require("gguf", "models in GGUF form", "symground[gguf]")
    return file.parent, {"gguf_file": file.name}


def _keep_to(config: PreTrainedConfig) -> None:
    """Remove attention implementations outside `_AT_HAND` from a configuration and its sub-configurations."""
    if config._attn_implementation not in _AT_HAND:
        config._attn_implementation_internal = None
    for name in config.sub_configs:
        if getattr(config, name, None) is not None:
            _keep_to(getattr(config, name))


def _dtype(dtype: str | torch.dtype | None) -> str | torch.dtype | None:
    if dtype is None or dtype == "auto":
        return dtype
    found = _DTYPES.get(dtype, getattr(torch, dtype, None)) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f"dtype: expected a type of floating-point numbers, such as 'bfloat16', 'float16' or 'float32', or 'auto'; "
            f"got {dtype!r}"
        )
    return found


def _check_model_folder(folder: Path) -> None:
    """Refuse a folder that contains no model, or whose files name weights outside of it."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is neither a run nor a model: it has no config.json")
    config = read_json(folder / "config.json")
    if not {"model_type", "ssm_cfg", "auto_map", "architectures"} & set(config):
        try:
            runs = ", ".join(map(str, runs_of(folder)))
        except FileNotFoundError:
            raise ValueError(
                f"{folder}: its config.json is not that of a model, since it names no model_type"
            ) from None
        raise ValueError(f"{folder} is a study; symground.load takes one of its runs: {runs}")
    for index in sorted(folder.glob("*.index.json")):
        weights = read_json(index).get("weight_map")
        if not isinstance(weights, dict):
            raise ValueError(f"{index}: expected a weight_map from weights to files")
        for name in sorted(set(map(str, weights.values()))):
            if any(path.is_absolute() or path.anchor or ".." in path.parts for path in _paths(name)):
                raise ValueError(f"{index}: it names the file {name!r}, outside of the model's folder")


def _paths(name: str) -> tuple[PurePosixPath, PureWindowsPath]:
    return PurePosixPath(name), PureWindowsPath(name)


def _check_path(path: Any) -> None:
    if not isinstance(path, (str, Path)):
        raise ValueError(f"path: expected a folder, a file or a name on the hub, got {type(path).__name__}")


def _check_there(path: str | Path) -> None:
    """Refuse a path that does not exist and cannot be a name on the hub."""
    _check_path(path)
    file = Path(path)
    if file.is_file() and file.suffix.lower() != ".gguf":
        raise ValueError(f"{path} is a file; expected a folder with a config.json, a .gguf file, or a name on the hub")
    named = _ON_HUB.fullmatch(str(path)) and not str(path).lower().endswith(_FILES)
    if not str(path) or not (file.exists() or named):
        raise FileNotFoundError(f"{path} does not exist, and is no model's name on the hub (owner/name, or name)")


def _from_hub(path: str | Path, get: Callable[[], T]) -> T:
    """Call ``get``. If the hub has no such model, the error says that no local path exists either."""
    try:
        with panics_named(f"{path}: a file there that cannot be read"):
            return get()
    except OSError as error:
        if Path(path).exists():
            raise
        raise FileNotFoundError(
            f"{path} does not exist here, and the hub gives no model of that name: {error}"
        ) from error


def told_heads(path: str | Path) -> tuple[int, int] | None:
    """The numbers of layers and of heads in each that a model's configuration tells, without its weights.

    None: it does not tell, as those of a hybrid, or there is none that can be read.
    """
    config = _told(path)
    if config is None:
        return None
    config = config.get_text_config()
    layers: Any = getattr(config, "num_hidden_layers", None)
    heads: Any = getattr(config, "num_attention_heads", None)
    kinds = getattr(config, "layer_types", None) or ()
    mixed = any("mamba" in name or "ssm" in name for name in vars(config)) or any("attention" not in x for x in kinds)
    return None if mixed or not (is_integer(layers) and is_integer(heads)) else (layers, heads)


def told_encoder_decoder(path: str | Path) -> bool:
    """Whether a model's configuration tells, without its weights, that it is an encoder-decoder."""
    return bool(getattr(_told(path), "is_encoder_decoder", False))


def _told(path: str | Path) -> PreTrainedConfig | None:
    """The configuration of a model, without its weights; None if there is none that can be read."""
    steps = checkpoint_steps(Path(path)) if is_run(path) else []
    place, where = _source(checkpoint_folder(Path(path), steps[-1]) if steps else path)
    try:
        found: PreTrainedConfig = AutoConfig.from_pretrained(place, trust_remote_code=False, **where)
    except (OSError, ValueError):
        return None
    return found


def load_processor(path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The processor of a vision-language model.

    Args:
        path: a folder, or a model's name on the hub.
        trust_remote_code: run the code that comes with it, if it has any.

    Raises:
        FileNotFoundError: the path exists neither locally nor on the hub.
        ValueError: the path has no processor of images and text.
    """
    flag("trust_remote_code", trust_remote_code)
    _check_there(path)
    try:
        processor = _from_hub(path, lambda: AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code))
    except (OSError, ValueError) as error:  # the folder lacks files of a processor, or the hub does not answer
        if not Path(path).is_dir():
            raise
        raise ValueError(f"{path}: expected a processor of images and text; {error}") from error
    if not (hasattr(processor, "image_processor") and hasattr(processor, "tokenizer")):
        raise ValueError(f"{path}: expected a processor of images and text, got {type(processor).__name__}")
    return processor


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer of a study, of a run in it, of a model's folder, of a .gguf file, or of a name on the hub.

    Args:
        path: the folder, the file or the name. A local path takes precedence over a hub name.
        trust_remote_code: run the code that comes with it, if it has any.

    Raises:
        FileNotFoundError: there is no tokenizer at the path.
        ImportError: a .gguf file without the gguf package.
    """
    _check_path(path)
    flag("trust_remote_code", trust_remote_code)
    here = Path(path)
    if here.is_dir():
        for folder in (here, study_of(here)):
            if (folder / "tokenizer.json").is_file():
                with errors_named(f"{folder / 'tokenizer.json'}: no tokenizer that can be read"):
                    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
                return tokenizer
        if not any((here / name).is_file() for name in ("tokenizer_config.json", "tokenizer.model", "vocab.json")):
            raise FileNotFoundError(f"{path}: no tokenizer.json there or in the study above it")
    _check_there(path)
    place, where = _source(path)
    found = _from_hub(path, lambda: AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code, **where))
    return cast(PreTrainedTokenizerFast, found)
