"""Shared fixtures: a tiny corpus, a tiny GPT-2 and a tiny LSTM, and the real corpora if they are there."""

from __future__ import annotations

import os

import torch

# Before anything imports Triton (transformers does): without a GPU its kernels run on CPU tensors, in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# No test needs the hub. Without a network, each name that is looked up there would be tried again for 20 seconds.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import transformers
from hypothesis import HealthCheck, settings
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel

import symground as sg
from benchmarks.common.smollm2 import NotToBeHadError
from benchmarks.common.smollm2 import smollm2 as folder_of_smollm2
from symground.data import Corpus, CorpusBuilder, GeneratedSettings, Question, add_scenes, write_questions
from symground.files import write_json
from symground.models.architectures.lstm import LSTMConfig, LSTMForCausalLM
from tests.interpreter import quicken

if find_spec("triton"):
    quicken()

# Examples are drawn from a fixed seed and take as long as they take: a test never fails for being slow.
settings.register_profile(
    "symground", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("symground")
settings.register_profile("quick", max_examples=10)  # --hypothesis-profile quick, as `make check` has it

# A process that a test starts is not a worker of this run. pytest-benchmark measures nothing in a worker.
os.environ.pop("PYTEST_XDIST_WORKER", None)

# No test cuts the power, so written data need not reach the disk. Each of thousands of calls takes milliseconds.
os.fsync = lambda _: None

# The models are tiny. A second thread gains nothing, and on a busy machine each thread waits for the other.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the real corpora. The test is skipped if SYMGROUND_DATA is not set."""
    folder = os.environ.get("SYMGROUND_DATA")
    if not folder:
        pytest.skip("SYMGROUND_DATA is not set: real-data test")
    return Path(folder)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of a small model with learnt weights. The test is skipped if it cannot be had."""
    try:
        return folder_of_smollm2()
    except NotToBeHadError as error:
        pytest.skip(f"SmolLM2 cannot be had: {error}")


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    builder = CorpusBuilder()
    add_scenes(builder, GeneratedSettings(scenes=1000, nouns=6))
    return builder.build()


@pytest.fixture
def gpt2() -> GPT2LMHeadModel:
    """A tiny attached GPT-2 with random weights, in evaluation mode."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=101, n_positions=32, n_embd=24, n_layer=3, n_head=3, initializer_range=0.3,
        attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0, bos_token_id=None, eos_token_id=None, pad_token_id=1,
    )  # fmt: skip
    return sg.attach(GPT2LMHeadModel(config)).eval()


@pytest.fixture
def lstm() -> LSTMForCausalLM:
    torch.manual_seed(0)
    return sg.attach(LSTMForCausalLM(LSTMConfig(vocab_size=101, hidden_size=16, num_hidden_layers=2))).eval()


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """The folder of a study with a tiny corpus to train on."""
    builder = CorpusBuilder()
    add_scenes(builder, GeneratedSettings(scenes=60, nouns=4))
    builder.write(tmp_path / "study" / "data").tokenizer.save_pretrained(tmp_path / "study")
    write_json(tmp_path / "study" / "config.json", {})
    return tmp_path / "study"


#: LLaVA-1.5's form: the picture comes first, a space follows each turn, and the answer's turn may be continued.
LLAVA_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' if m['role'] != 'system' }}"
    "{% for part in m['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in m['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
#: In Qwen2-VL's form.
QWEN_TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OBJECTS = ("zebra", "boat", "clock", "umbrella")


def bpe(*special: str) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE in which a word and the space before it are one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=["<pad>", "<s>", *special], initial_alphabet=alphabet)
    texts = [f"USER: Is there a {word} in the image? ASSISTANT: Yes No" for word in OBJECTS]
    tokenizer.train_from_iterator([*texts, "system You are a helpful assistant. user"] * 20, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>")


@pytest.fixture(scope="session")
def llava_processor() -> transformers.LlavaProcessor:
    """LLaVA-1.5's: 4 × 4 patches of the square in the middle of a picture."""
    sides = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    return transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(**sides), bpe("<image>"), patch_size=4, chat_template=LLAVA_TEMPLATE,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip


@pytest.fixture(scope="session")
def next_processor() -> transformers.LlavaNextProcessor:
    """LLaVA-NeXT's: 4 × 4 patches of the whole picture, then of up to 2 × 2 tiles, without their padding."""
    image_processor = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16},
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
    )  # fmt: skip
    return transformers.LlavaNextProcessor(
        image_processor, bpe("<image>"), patch_size=4, chat_template=LLAVA_TEMPLATE,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip


class QwenProcessor(transformers.Qwen2VLProcessor):
    """Qwen2-VL's without its part for videos, which needs torchvision."""

    def __init__(self, image_processor: object, tokenizer: object, chat_template: str | None = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = (
            tokenizer.convert_tokens_to_ids(token) for token in (self.image_token, self.video_token)
        )
        transformers.ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


@pytest.fixture(scope="session")
def qwen_processor() -> QwenProcessor:
    """Qwen2-VL's: pictures in their own shape. A token is four patches of 4 × 4 pixels."""
    special = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    image_processor = transformers.Qwen2VLImageProcessor(
        patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 64, "longest_edge": 4096}
    )
    return QwenProcessor(image_processor, bpe(*special), chat_template=QWEN_TEMPLATE)


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory: pytest.TempPathFactory, llava_processor: transformers.LlavaProcessor) -> Path:
    """A folder with "model" (a tiny LLaVA with random weights and its processor), pictures, and questions.json."""
    folder = tmp_path_factory.mktemp("llava")
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16,
            patch_size=4, projection_dim=8,
        ),
        text_config=transformers.LlamaConfig(
            vocab_size=len(llava_processor.tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=None,
        ),
        image_token_id=llava_processor.image_token_id, vision_feature_layer=-1,
    )  # fmt: skip
    model = transformers.LlavaForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    model.save_pretrained(folder / "model")
    llava_processor.save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    questions = []
    for i in range(6):
        pixels = rng.integers(0, 255, (20, 30, 3) if i % 2 else (24, 18, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        for j, word in enumerate(OBJECTS):
            text = f"Is there {'an' if word[0] in 'aeiou' else 'a'} {word} in the image?"
            kind = "popular" if j < 2 else "random"
            questions.append(Question(f"{i}.png", text, "yes" if (i + j) % 2 else "no", word, kind))
    write_questions(folder / "questions.json", questions)
    return folder
