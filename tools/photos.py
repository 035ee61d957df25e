"""A small LLaVA that reads photographs, trained from scratch on a CPU in minutes, and questions for it.

SYMGROUND_DATA=DATA python -m tools.photos train --out runs/photos
SYMGROUND_DATA=DATA python -m tools.photos questions --out runs/photos --count 400 --seed 1

An image is a collage of four crops of twelve photographs. The model is trained on POPE's question: is an object in the
image? It is tested on new crops of the same photographs, so the results say nothing about other photographs. ``train``
writes the model, its processor and ``metrics.json``. ``questions`` writes images and ``questions.json``, with one JSON
object per line.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageEnhance, ImageOps
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

#: COCO's id → the object of the question, the words for it in this photograph's captions only, and its box:
#: left, top, right, bottom as shares of the photograph.
OBJECTS = {
    62554: ("plate", "plates?", (0.00, 0.30, 0.75, 1.00)),
    99053: ("fork", "forks?", (0.70, 0.00, 1.00, 0.50)),
    126107: ("seagull", "seagulls?", (0.35, 0.03, 1.00, 0.52)),
    165518: ("motorcycle", "motorcycles?", (0.40, 0.28, 0.70, 0.80)),
    183709: ("crosswalk", "crosswalks?", (0.50, 0.53, 0.80, 0.90)),
    214753: ("horse", "horses?", (0.37, 0.38, 0.75, 0.76)),
    229358: ("mirror", "mirrors?", (0.40, 0.05, 0.72, 0.58)),
    397133: ("stove", "stoves?", (0.55, 0.48, 1.00, 0.85)),
    475678: ("suitcase", "suitcases?", (0.00, 0.10, 1.00, 1.00)),
    519208: ("elephant", "elephants?", (0.00, 0.00, 0.50, 1.00)),
    551780: ("clock", "clocks?", (0.35, 0.10, 0.70, 0.85)),
    553664: ("laptop", "laptops?", (0.40, 0.33, 0.90, 0.78)),
}
CELL, PATCH = 64, 16  # pixels; an image is 2 × 2 cells
SIZE = 2 * CELL
PATCHES = (SIZE // PATCH) ** 2
#: LLaVA-1.5's system message; half of the training has it.
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
#: LLaVA-1.5's chat template, which also accepts plain strings as contents.
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] + ' ' }}{% else %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@dataclass
class Collage:
    """An image, the photographs of its cells (row by row), and the boxes of their objects in pixels."""

    image: Image.Image
    photos: list[int]
    boxes: list[tuple[float, float, float, float]]


def photographs() -> dict[int, Image.Image]:
    """COCO's id → the photograph, scaled down; raises KeyError or ValueError if one does not fit ``OBJECTS``."""
    folder = Path(os.environ["SYMGROUND_DATA"]) / "coco" / "images"
    known = json.loads((folder / "captions.json").read_text())
    texts = dict.fromkeys(OBJECTS, "")
    for caption in known["annotations"]:
        texts[caption["image_id"]] += caption["caption"].lower() + "\n"
    for photo, (word, called, _) in OBJECTS.items():
        found = [other for other, text in texts.items() if re.search(rf"\b{called}\b", text)]
        if found != [photo]:
            raise ValueError(f"captions with {word!r} were expected of {photo} alone; they are of {found}")
    opened = {i["id"]: Image.open(folder / i["file_name"]).convert("RGB") for i in known["images"]}
    return {photo: ImageOps.scale(image, 256 / min(image.size)) for photo, image in opened.items()}


def collage(photos: dict[int, Image.Image], rng: random.Random, different: int = 4) -> Collage:
    """``different`` photographs in four cells, each a new square crop that contains the middle of its object."""
    cells = rng.sample(rng.sample(sorted(photos), different) * (4 // different), 4)
    made = Collage(Image.new("RGB", (SIZE, SIZE)), cells, [])
    for cell, photo in enumerate(made.photos):
        image, box = photos[photo], OBJECTS[photo][2]
        side = rng.uniform(0.3, 1.0) * min(image.size)
        middles = [(low + high) / 2 * length for low, high, length in zip(box[:2], box[2:], image.size, strict=True)]
        bounds = zip(middles, image.size, strict=True)
        x, y = (rng.uniform(max(0, at - 0.9 * side), min(length - side, at - 0.1 * side)) for at, length in bounds)
        part = image.resize((CELL, CELL), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side), reducing_gap=2)
        left, top, right, bottom = (
            min(max((share * length - start) / side, 0), 1) * CELL
            for share, length, start in zip(box, image.size * 2, (x, y) * 2, strict=True)
        )
        if rng.random() < 0.5:
            part, left, right = ImageOps.mirror(part), CELL - right, CELL - left
        row, column = divmod(cell, 2)
        made.image.paste(ImageEnhance.Brightness(part).enhance(rng.uniform(0.6, 1.4)), (column * CELL, row * CELL))
        made.boxes.append((left + column * CELL, top + row * CELL, right + column * CELL, bottom + row * CELL))
    return made


def question(word: str) -> str:
    """POPE's question about a word."""
    return f"Is there {'an' if word[0] in 'aeiou' else 'a'} {word} in the image?"


def messages(text: str, system: str | None = None) -> list[dict[str, object]]:
    """A conversation that asks ``text`` about one image, in the form of chat templates."""
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
    return [{"role": "system", "content": [{"type": "text", "text": system}]}, asked] if system else [asked]


def new_processor() -> LlavaProcessor:
    """A processor whose vocabulary has the lower-case words of the questions and the system message."""
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    texts = ["user: assistant: yes no", SYSTEM.lower(), *(question(word) for word, _, _ in OBJECTS.values())]
    words = [word for text in texts for word, _ in split.pre_tokenize_str(text.lower())]
    special = ["<pad>", "<s>", "</s>", "<image>", "<unk>"]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*special, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), split
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=["<image>"], padding_side="left",
    )  # fmt: skip
    images = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    return LlavaProcessor(
        images, fast, patch_size=PATCH, vision_feature_select_strategy="default",
        chat_template=TEMPLATE, num_additional_image_tokens=1,
    )  # fmt: skip


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """A LLaVA with a vision tower of one layer, which mixes patches little, and a text model of four layers."""
    vision = CLIPVisionConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4,
        image_size=SIZE, patch_size=PATCH, projection_dim=128,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, initializer_range=0.05, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=PATCHES, vision_feature_select_strategy="default", vision_feature_layer=-1,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config)


class Packed:
    """Batches in which eight questions share an image, four with each answer; the questions do not see each other."""

    questions = 8

    def __init__(self, processor: LlavaProcessor, photos: dict[int, Image.Image], seed: int):
        self.processor, self.photos, self.rng = processor, photos, random.Random(f"training {seed}")
        tokenizer, self.image, self.parts = processor.tokenizer, processor.image_token_id, {}
        self.no, self.yes, self.end = tokenizer.convert_tokens_to_ids(["no", "yes", "</s>"])
        for system in (None, SYSTEM):
            for photo, (word, _, _) in OBJECTS.items():
                text = processor.apply_chat_template(messages(question(word), system), add_generation_prompt=True)
                ids = tokenizer(text.replace("<image>", "<image>" * PATCHES))["input_ids"]
                start = PATCHES + ids.index(self.image)
                self.parts[system, photo] = ids[:start], ids[start:]

    def batch(self, size: int, different: int, alone: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The model's inputs, and the two target words [size, 8, 2] of each question: its answer and the end token.

        With ``alone``, patches do not see each other, and in the text only the position that predicts an answer sees
        patches.
        """
        system = self.rng.choice([None, SYSTEM])
        made = [collage(self.photos, self.rng, different) for _ in range(size)]
        rows, answers = [], []
        for one in made:
            absent = self.rng.sample(sorted(self.photos.keys() - set(one.photos)), self.questions - 4)
            asked = self.rng.sample([*one.photos, *absent], self.questions)
            answers.append([self.yes if photo in one.photos else self.no for photo in asked])
            before, _ = self.parts[system, asked[0]]
            row = [self.parts[system, photo][1] + [said] for photo, said in zip(asked, answers[-1], strict=True)]
            rows.append(before + [token for part in row for token in part])
        start, length = len(before), len(row[0])
        place = torch.arange(len(rows[0]))
        block = (place - start).div(length, rounding_mode="floor").clamp(min=-1)  # -1: visible to all questions
        within = torch.where(block < 0, -1, (place - start) % length)
        seen = (place[:, None] >= place) & ((block[:, None] == block) | (block == -1))
        if alone:
            patch = torch.tensor(rows[0]) == self.image
            seen &= ~patch | (within == length - 2)[:, None] | (place[:, None] == place)
        pixels = self.processor.image_processor([one.image for one in made], return_tensors="pt")["pixel_values"]
        inputs = {
            "input_ids": torch.tensor(rows),
            "pixel_values": pixels,
            "position_ids": torch.where(block < 0, place, start + within).expand(size, -1),
            "attention_mask": seen.expand(size, 1, -1, -1),
            "logits_to_keep": (within >= length - 2).nonzero()[:, 0],
        }
        return inputs, torch.nn.functional.pad(torch.tensor(answers)[..., None], (0, 1), value=self.end)


def train(out: Path, steps: int, size: int, rate: float, seed: int) -> None:
    """Train the model, save it, and measure it."""
    torch.manual_seed(seed)
    since, processor, photos = time.perf_counter(), new_processor(), photographs()
    model, batches = new_model(processor.tokenizer), Packed(processor, photos, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(10 * step / steps, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    losses, right = [], []
    for step in range(1, steps + 1):
        done = step / steps
        # At first all four cells have one photograph. With four from the start, accuracy rises hundreds of steps later.
        different = 1 if done < 0.2 else batches.rng.choice([1, 2, 4]) if done < 0.4 else 4
        # Without this, the question's noun would read the image and the answer the noun, and not the patches.
        inputs, expected = batches.batch(size, different, alone=done < 0.7)
        logits = model(**inputs, use_cache=False).logits.unflatten(1, (-1, 2))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 2), expected.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        right.append((logits.argmax(-1) == expected)[..., 0].float().mean().item())
        if step % 50 == 0:
            print(f"step {step}  loss {sum(losses[-50:]) / 50:.3f}  accuracy {sum(right[-50:]) / 50:.3f}  "
                  f"{time.perf_counter() - since:.0f} s", flush=True)  # fmt: skip
    model.save_pretrained(out)
    processor.save_pretrained(out)
    seconds, parameters = time.perf_counter() - since, sum(p.numel() for p in model.parameters())
    metrics = measured(out, seed) | {"steps": steps, "seconds": round(seconds), "parameters": parameters}
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    print(json.dumps(metrics, indent=1))


def asked_of(photos: dict[int, Image.Image], count: int, seed: int) -> Iterator[tuple[Collage, str, str, int | None]]:
    """``count`` questions, two per image: (the image, the word, the label, the cell with the object or None)."""
    rng = random.Random(f"questions {seed}")
    for number in range(count):
        if number % 2 == 0:
            made = collage(photos, rng)
            cell = rng.randrange(4)
            yield made, OBJECTS[made.photos[cell]][0], "yes", cell
        else:
            yield made, OBJECTS[rng.choice(sorted(photos.keys() - set(made.photos)))][0], "no", None


def measured(folder: Path, seed: int, count: int = 1000) -> dict[str, object]:
    """POPE's scores on new questions, and where the saliency of right yes answers is.

    Saliency is |Σ_h A ∘ ∂L/∂A| at the position that predicts the answer. ``quadrant_share`` is the share of the
    patches' saliency in the quarter of the image that shows the object, by layer and over all (chance: 0.25).
    ``patch_share`` is the share of all positions' saliency that is on patches.
    """
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()
    processor = AutoProcessor.from_pretrained(folder)
    answers = processor.tokenizer.convert_tokens_to_ids(["no", "yes"])
    found, quadrants, patches = Counter(), [], []
    for made, word, label, cell in asked_of(photographs(), count, seed + 10**6):
        text = processor.apply_chat_template(messages(question(word)), add_generation_prompt=True)
        inputs = processor(images=made.image, text=text, return_tensors="pt")
        output = model(**inputs, output_attentions=True)
        scores = output.logits[0, -1].log_softmax(-1)
        said = {answers[0]: "no", answers[1]: "yes"}.get(scores.argmax().item(), "neither")
        found[label, said] += 1
        if label == said == "yes":
            pairs = zip(output.attentions, torch.autograd.grad(-scores[answers[1]], output.attentions), strict=True)
            row = torch.stack([(a * g)[0, :, -1].sum(0).abs().detach() for a, g in pairs])  # [layers, positions]
            image = row[:, inputs["input_ids"][0] == processor.image_token_id]
            patches.append(image.sum(1) / row.sum(1))
            half = SIZE // PATCH // 2
            cells = image.unflatten(1, (2, half, 2, half)).sum((2, 4)).flatten(1)  # [layers, 4]
            cells = torch.cat([cells, cells.sum(0, keepdim=True)])
            quadrants.append(cells[:, cell] / cells.sum(1))
    yes = sum(found[label, "yes"] for label in ("yes", "no"))
    *layers, over_all = [round(share, 3) for share in torch.stack(quadrants).mean(0).tolist()]
    return {
        "accuracy": (found["yes", "yes"] + found["no", "no"]) / count,
        "precision": round(found["yes", "yes"] / max(yes, 1), 4),
        "recall": round(found["yes", "yes"] / (count / 2), 4),
        "yes_ratio": yes / count,
        "questions": count,
        "quadrant_share": {"layers": layers, "all": over_all},
        "patch_share": [round(share, 3) for share in torch.stack(patches).mean(0).tolist()],
    }


def write_questions(out: Path, count: int, seed: int) -> None:
    """Write ``questions.json``, its images, and the photographs' authors."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (made, word, label, cell) in enumerate(asked_of(photographs(), count, seed)):
        name = f"{seed}-{number // 2:05d}.png"
        if number % 2 == 0:
            made.image.save(out / "images" / name)
        lines.append({
            "question_id": number + 1, "image": name, "text": question(word), "label": label, "object": word,
            "cells": cell, "box": None if cell is None else [round(edge, 1) for edge in made.boxes[cell]],
            "photos": made.photos,
        })  # fmt: skip
    (out / "questions.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    known = json.loads((Path(os.environ["SYMGROUND_DATA"]) / "coco" / "images" / "captions.json").read_text())
    credits = [f"{image['id']} {image['flickr_url']}\n" for image in known["images"]]
    (out / "images" / "CREDITS.txt").write_text("Cut from these photographs of COCO, CC BY 2.0:\n" + "".join(credits))
    print(f"{len(lines)} questions in {out / 'questions.json'}")


def main() -> None:
    """Train the model, or write questions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("train", "questions"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--batch", type=int, default=16, help="images per step, each with eight questions")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--count", type=int, default=400, help="number of questions, two per image")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.command == "train":
        train(asked.out, asked.steps, asked.batch, asked.rate, asked.seed)
    else:
        write_questions(asked.out, asked.count, asked.seed)


if __name__ == "__main__":
    main()
