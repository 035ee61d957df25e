"""A frozen DINOv2 and its image preparation: from a file's bytes to the embeddings of patches."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from symground.data.vision.decoding import DAMAGE, MAX_MEGAPIXELS, open_picture
from symground.errors import check_device, require


class Dinov2:
    """The model and its image preparation."""

    def __init__(self, source: str, grid: int | None = None, device: str | None = None) -> None:
        """
        Args:
            source: a folder, or a name on the hub.
            grid: rows and columns to average patches to; None does not average.
            device: by default a GPU if there is one.

        Raises:
            FileNotFoundError: the model does not exist.
            ValueError: the model is of another kind, the device is not available, or the grid does not divide the
                model's.
        """
        transformers = require("transformers", "patch features")
        require("PIL.Image", "patch features")
        if device is not None:
            check_device(device)
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            config = transformers.AutoConfig.from_pretrained(source)
        except OSError as error:
            reason = str(error).strip().splitlines()[0]
            raise FileNotFoundError(
                f"model: expected a model's folder or its name on the hub, got {source} ({reason})"
            ) from None
        if config.model_type not in ("dinov2", "dinov2_with_registers"):
            raise ValueError(f"model: expected a DINOv2, got a {config.model_type} ({source})")
        self._model = transformers.AutoModel.from_pretrained(source).eval().requires_grad_(False).to(self._device)
        self._prepare = _preparation(transformers, source, config)
        side = self._prepare(np.zeros((8, 8, 3), np.uint8)).shape[-1]
        self._side = side // config.patch_size
        self._registers = getattr(config, "num_register_tokens", 0)
        self._grid = grid or self._side
        if self._side % self._grid:
            raise ValueError(f"grid: expected a divisor of {self._side}, the model's rows of patches; got {self._grid}")
        self.width = int(config.hidden_size)
        self.patches = self._grid**2
        self.description = {"patches": self.patches, "width": self.width, "pixels": side}

    def prepared(self, content: bytes, max_megapixels: int = MAX_MEGAPIXELS) -> Tensor | str:
        """[3,Y,X], or the reason why the image cannot be read."""
        image = require("PIL.Image", "patch features")
        try:
            with open_picture(io.BytesIO(content), max_megapixels) as opened:
                pixels: Tensor = self._prepare(np.asarray(opened.convert("RGB")))
                return pixels
        except image.UnidentifiedImageError:  # its message has a memory address
            return "not an image of a known format"
        except DAMAGE as error:
            return f"{type(error).__name__}: {error}"

    @torch.inference_mode()
    def patches_of(self, pixels: Tensor) -> NDArray[np.float16]:
        """[B,3,Y,X] → [B,P,E]."""
        hidden = self._model(pixel_values=pixels.to(self._device)).last_hidden_state
        patches = hidden[:, 1 + self._registers :].unflatten(1, (self._side, self._side))  # [B,Y,X,E]
        step = self._side // self._grid
        pooled = patches.unflatten(2, (-1, step)).unflatten(1, (-1, step)).mean((2, 4)).flatten(1, 2)
        found: NDArray[np.float16] = pooled.to(torch.float16).cpu().numpy()
        if not np.isfinite(found).all():
            raise ValueError("model: expected features that float16 can hold, got larger ones or NaN")
        return found


def _preparation(transformers: Any, source: str, config: Any) -> Any:
    """uint8 [Y,X,3] → [3,Y,X], by the model's own preparation."""
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError):  # a model without one
        side = min(224, int(config.image_size)) // config.patch_size * config.patch_size
        processor = transformers.BitImageProcessorPil(
            size={"shortest_edge": side * 8 // 7}, crop_size={"height": side, "width": side}, resample=3,
            image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
        )  # fmt: skip
    # Without this, a picture of 3 rows is taken for channels first.
    options = {"input_data_format": "channels_last", "return_tensors": "pt"}
    return lambda image: processor(images=image, **options)["pixel_values"][0]
