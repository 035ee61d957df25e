"""`AttentionCallback` in transformers' Trainer, against eager attention over the batches that were trained on."""

from __future__ import annotations

import copy
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

import symground as sg
from symground.integrations import AttentionCallback, attention_metrics
from symground.models.attachment import is_attached
from tests.models.attachment.builders import gpt2, ids, llama, mamba2

LENGTH = 9
ROOT = Path(__file__).parents[2]


class Texts(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Texts of different lengths, padded on the right."""

    def __init__(self, count: int = 32) -> None:
        g = torch.Generator().manual_seed(0)
        self.ids = torch.randint(3, 101, (count, LENGTH), generator=g)
        self.mask = (torch.arange(LENGTH) < torch.randint(2, LENGTH + 1, (count, 1), generator=g)).long()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        mask = self.mask[i]
        return {"input_ids": self.ids[i], "attention_mask": mask, "labels": self.ids[i].masked_fill(mask == 0, -100)}


class Kept(TrainerCallback):
    """A reporter: it stands before the callback, and keeps what it is told."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append({**logs, "step": state.global_step})


def trained(
    model: PreTrainedModel, folder: Path, callback: AttentionCallback, steps: int = 4, **more: Any
) -> tuple[Trainer, Kept, list[dict[str, Tensor]]]:
    """The Trainer after so many steps at a learning rate of 0, a reporter, and the batches in their order."""
    batches: list[dict[str, Tensor]] = []

    def collated(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        batches.append(batch)
        return batch

    kept = Kept()
    args = TrainingArguments(
        folder, max_steps=steps, learning_rate=0.0, logging_steps=100, use_cpu=True, disable_tqdm=True,
        save_strategy="no", **{"report_to": [], "per_device_train_batch_size": 2, **more},
    )  # fmt: skip
    trainer = Trainer(model, args, data_collator=collated, train_dataset=Texts(), callbacks=[kept, callback])
    trainer.train()
    return trainer, kept, batches


def by_hand(model: PreTrainedModel, batches: list[dict[str, Tensor]], threes: bool) -> dict[str, np.ndarray[Any, Any]]:
    """Entropy, mass on the first token and on the threes [L,H], of the words of all batches."""
    entropy, first, of_threes, words = [], [], [], 0
    eager = copy.deepcopy(model).eval()
    eager.set_attn_implementation("eager")
    for batch in batches:
        with torch.no_grad():
            out = eager(
                batch["input_ids"], attention_mask=batch["attention_mask"], output_attentions=True, use_cache=False
            )
        a = torch.stack(out.attentions, 1).double()  # [B,L,H,T,T]
        valid = batch["attention_mask"].bool()
        words += int(valid.sum())
        a = a * valid[:, None, None, :, None]
        entropy.append(-(a * a.clamp(min=1e-300).log()).sum((0, 3, 4)))
        first.append(a[..., 0].sum((0, 3)))
        place = (batch["input_ids"] % 3 == 0) & valid & (torch.arange(LENGTH) > 0)
        of_threes.append((a * place[:, None, None, None]).sum((0, 3, 4)))
    found = {"entropy": entropy, "mass/all/first": first, **({"mass/all/threes": of_threes} if threes else {})}
    return {name: (torch.stack(each).sum(0) / words).numpy() for name, each in found.items()}


def threes(inputs: Any) -> dict[str, Tensor]:
    return {"threes": inputs["input_ids"] % 3 == 0}


@pytest.mark.trains
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("build", [gpt2, llama])
def test_the_log_has_what_eager_attention_says_of_the_batches_of_a_step(
    build: Any, checkpointing: bool, accumulation: int, tmp_path: Path
) -> None:
    model = build()
    plain = {name: x.clone() for name, x in model.state_dict().items()}
    callback = AttentionCallback(every=2, groups=threes, by="head")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):  # it would change the inputs of later layers
            module.p = 0.0
    trainer, kept, batches = trained(
        model, tmp_path, callback, gradient_accumulation_steps=accumulation, gradient_checkpointing=checkpointing
    )
    history, told = (
        {log["step"]: log for log in logs if "loss" in log} for logs in (trainer.state.log_history, kept.logs)
    )
    assert not is_attached(model)
    assert all(torch.equal(x, plain[name]) for name, x in model.state_dict().items())
    for step in (2, 4):
        expected = by_hand(model, batches[(step - 1) * accumulation : step * accumulation], True)
        for logs in (history[step], told[step]):
            for name, values in expected.items():
                for layer, of_layer in enumerate(values):
                    for head, wanted in enumerate(of_layer):
                        assert logs[f"attention/{name}/layer{layer}/head{head}"] == pytest.approx(wanted, abs=1e-4)
    assert set(history) == set(told) == {2, 4}


@pytest.mark.trains
def test_training_is_the_same_with_the_callback(tmp_path: Path) -> None:
    """With dropout, to the last bit, and within rounding of training without symground."""
    ends = []
    for every in (None, 1, 10**6):
        torch.manual_seed(0)
        model = gpt2()
        callbacks = [] if every is None else [AttentionCallback(every=every)]
        args = TrainingArguments(
            tmp_path, max_steps=4, per_device_train_batch_size=2, learning_rate=1e-2, report_to=[], use_cpu=True,
            disable_tqdm=True, save_strategy="no", seed=3,
        )  # fmt: skip
        Trainer(model, args, train_dataset=Texts(), callbacks=callbacks).train()
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(ends[1], ends[2], strict=True))


@pytest.mark.trains
def test_saliency_is_that_of_the_trainings_own_loss(tmp_path: Path) -> None:
    model = llama()
    _, kept, (batch, *_) = trained(
        model,
        tmp_path,
        AttentionCallback(every=1, groups=threes, by="head", saliency=True),
        steps=1,
        per_device_train_batch_size=8,
    )
    (log,) = [log for log in kept.logs if log["step"] == 1 and "loss" in log]
    eager = copy.deepcopy(model).eval()
    eager.set_attn_implementation("eager")
    out = eager(**batch, output_attentions=True, use_cache=False)
    grads = torch.autograd.grad(out.loss, out.attentions)
    flow = torch.stack([(a * g).abs() for a, g in zip(out.attentions, grads, strict=True)], 1)  # [B,L,H,T,T]
    valid = batch["attention_mask"].bool()
    at, last = torch.arange(LENGTH), valid.sum(-1, keepdim=True) - 1
    place = (batch["input_ids"] % 3 == 0) & valid & (at > 0)
    other = valid & (at > 0) & ~place & (at != last)
    for key, of_key in (("first", at.expand_as(valid) == 0), ("threes", place)):
        into = torch.einsum("bi,blhij,bj->lh", other.float(), flow, of_key.float())
        share = into / torch.einsum("bi,blhij->lh", other.float(), flow)
        for (layer, head), wanted in np.ndenumerate(share.detach().numpy()):
            assert log[f"attention/flow/other/{key}/layer{layer}/head{head}"] == pytest.approx(wanted, abs=1e-4)


RANK = """
import os, sys
from pathlib import Path
import torch
from symground.integrations import AttentionCallback
from tests.integrations.test_trainer import threes, trained
from tests.models.attachment.builders import llama

folder = Path(sys.argv[1])
trainer, kept, batches = trained(
    llama(), folder, AttentionCallback(every=2, groups=threes), gradient_accumulation_steps=2, ddp_backend="gloo"
)
rank = int(os.environ["RANK"])
assert trainer.args.world_size == 2
torch.save((kept.logs, batches), folder / f"rank{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.trains
@pytest.mark.slow
def test_of_several_processes_the_first_logs_its_own_part(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(2):
        of_rank = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}  # fmt: skip
        place = {**os.environ, **of_rank, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        running.append(subprocess.Popen([sys.executable, "-c", RANK, str(tmp_path)], env=place, stderr=subprocess.PIPE))
    for process in running:
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said.decode()[-3000:]
    (logs, batches), (others, of_second) = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert not any("attention" in name for log in others for name in log)
    assert not torch.equal(batches[0]["input_ids"], of_second[0]["input_ids"])
    of_step = {log["step"]: log for log in logs if "loss" in log}
    for step in (2, 4):
        for name, values in by_hand(llama(), batches[2 * step - 2 : 2 * step], True).items():
            for layer, wanted in enumerate(values.mean(1)):
                assert of_step[step][f"attention/{name}/layer{layer}"] == pytest.approx(wanted, abs=1e-4)


@pytest.mark.trains
@pytest.mark.slow
def test_a_model_that_the_trainer_compiles(tmp_path: Path) -> None:
    torch._dynamo.reset()
    _, kept, batches = trained(
        llama(), tmp_path, AttentionCallback(every=2, groups=threes, saliency=True), torch_compile=True,
        torch_compile_backend="eager",
    )  # fmt: skip
    of_step = {log["step"]: log for log in kept.logs if "loss" in log}
    for step in (2, 4):
        assert "attention/flow/other/threes/layer1" in of_step[step]
        for name, values in by_hand(llama(), batches[step - 1 : step], True).items():
            for layer, wanted in enumerate(values.mean(1)):
                assert of_step[step][f"attention/{name}/layer{layer}"] == pytest.approx(wanted, abs=1e-4)
    torch._dynamo.reset()


@pytest.mark.trains
def test_it_reaches_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trained(llama(), tmp_path, AttentionCallback(every=2, by=(0.0, 0.5, 1.0)), report_to=["tensorboard"])
    (file,) = tmp_path.rglob("events.out.tfevents*")
    board = event_accumulator.EventAccumulator(str(file.parent))
    board.Reload()
    tags = {tag for tag in board.Tags()["scalars"] if "attention/" in tag}
    names = {tag[tag.index("attention/") :] for tag in tags}
    assert {"attention/entropy/q0", "attention/largest_logit/q0.5", "attention/mass/all/first/q1"} <= names
    assert {event.step for tag in tags for event in board.Scalars(tag)} == {2, 4}


def test_a_loop_of_ones_own() -> None:
    model = sg.attach(llama())
    first = torch.zeros(2, 9, dtype=torch.bool)
    first[:, 0] = True
    with sg.observe(model, {"first": first, "rest": ~first}, rows=None, summary=True, flow=True) as seen:
        model(ids(), labels=ids()).loss.backward()
    found = seen.dataset()
    logged = attention_metrics(seen)
    assert logged == attention_metrics(found)
    assert logged["attention/entropy/layer1"] == pytest.approx(float(found.entropy.sel(layer=1).mean()))
    assert logged["attention/largest_logit/layer0"] == pytest.approx(float(found.score.sel(layer=0).max()))
    assert logged["attention/mass/rest/first/layer0"] + logged["attention/mass/rest/rest/layer0"] == pytest.approx(1)
    assert logged["attention/flow/rest/first/layer0"] + logged["attention/flow/rest/rest/layer0"] == pytest.approx(1)
    assert set(attention_metrics(seen, by=[0.5], prefix="heads")) >= {"heads/entropy/q0.5", "heads/flow/rest/rest/q0.5"}
    padded = torch.ones(2, 9).long()
    padded[0, :4] = 0
    seen = sg.attention(model, ids(), padded, summary=True)
    by_hand = float(seen.entropy.isel(layer=0).values[np.broadcast_to(padded.bool()[:, None], (2, 4, 9))].mean())
    assert attention_metrics(seen)["attention/entropy/layer0"] == pytest.approx(by_hand, rel=1e-5)


def test_mamba_2_logs_mass_alone() -> None:
    model = sg.attach(mamba2())
    groups = {"first": torch.arange(9).expand(2, -1) == 0}
    logged = attention_metrics(sg.attention(model, ids(), groups=groups, summary=True))
    assert set(logged) == {f"attention/mass/{q}/first/layer{n}" for q in ("all", "prediction", "first") for n in (0, 1)}


@pytest.mark.trains
@pytest.mark.parametrize("build", [gpt2, llama])
def test_left_padding_is_trained_as_without_the_callback(build: Any, tmp_path: Path) -> None:
    """GPT-2's positions are absolute: they stay those that it has without a mask."""
    mask = (torch.arange(LENGTH) >= 4).long()
    g = torch.Generator().manual_seed(1)
    rows = [{"input_ids": torch.randint(3, 101, (LENGTH,), generator=g), "attention_mask": mask} for _ in range(4)]
    rows = [{**row, "labels": row["input_ids"].masked_fill(torch.arange(LENGTH) < 5, -100)} for row in rows]
    losses = []
    for callbacks in ([], [AttentionCallback(every=1)]):
        model = build()
        args = TrainingArguments(
            tmp_path, max_steps=1, per_device_train_batch_size=2, learning_rate=0.0, logging_steps=1, report_to=[],
            use_cpu=True, disable_tqdm=True, save_strategy="no",
        )  # fmt: skip
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        trainer = Trainer(model, args, train_dataset=rows, callbacks=callbacks)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.trains
def test_mixed_precision_and_adapters(tmp_path: Path) -> None:
    _, kept, batches = trained(llama(), tmp_path, AttentionCallback(every=2), bf16=True)
    (log,) = [log for log in kept.logs if log["step"] == 2 and "loss" in log]
    wanted = by_hand(llama(), batches[1:2], False)["entropy"].mean(1)
    for layer, value in enumerate(wanted):
        assert log[f"attention/entropy/layer{layer}"] == pytest.approx(value, rel=0.05)
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["q_proj"], r=2, task_type="CAUSAL_LM"))
    _, kept, batches = trained(adapted, tmp_path, AttentionCallback(every=2))
    (log,) = [log for log in kept.logs if log["step"] == 2 and "loss" in log]
    wanted = by_hand(llama(), batches[1:2], False)["entropy"].mean(1)  # an adapter begins with no effect
    for layer, value in enumerate(wanted):
        assert log[f"attention/entropy/layer{layer}"] == pytest.approx(value, abs=1e-4)
    assert not is_attached(adapted.get_base_model())


@pytest.mark.trains
def test_packed_texts_have_their_own_first_words(tmp_path: Path) -> None:
    lists = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in Texts(4).ids]
    found = []
    for collator in (None, transformers.DataCollatorWithFlattening()):
        kept = Kept()
        args = TrainingArguments(
            tmp_path, max_steps=1, per_device_train_batch_size=4, learning_rate=0.0, logging_steps=1, report_to=[],
            use_cpu=True, disable_tqdm=True, save_strategy="no",
        )  # fmt: skip
        rows = lists if collator else [{name: torch.tensor(x) for name, x in row.items()} for row in lists]
        callback = AttentionCallback(every=1)
        Trainer(llama(), args, train_dataset=rows, callbacks=[kept, callback], data_collator=collator).train()
        found.append(kept.logs[0])
    for name in ("attention/entropy/layer0", "attention/mass/all/first/layer1", "attention/largest_logit/layer0"):
        assert found[0][name] == pytest.approx(found[1][name], abs=1e-4)


@pytest.mark.trains
def test_what_else_happens_in_a_step_is_not_read(tmp_path: Path) -> None:
    """Generation within the loss, as in reinforcement learning, and an exception in the middle of a step."""

    class Generates(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            with torch.no_grad():
                model.generate(inputs["input_ids"][:, :4], max_new_tokens=3, do_sample=False)
            return super().compute_loss(model, inputs, *args, **kwargs)

    class Stops(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            super().compute_loss(model, inputs, *args, **kwargs)
            raise KeyboardInterrupt

    def run(kind: type[Trainer], callback: AttentionCallback, model: PreTrainedModel) -> list[dict[str, float]]:
        kept = Kept()
        args = TrainingArguments(
            tmp_path, max_steps=1, per_device_train_batch_size=2, learning_rate=0.0, logging_steps=1, report_to=[],
            use_cpu=True, disable_tqdm=True, save_strategy="no",
        )  # fmt: skip
        kind(model, args, train_dataset=Texts(), callbacks=[kept, callback]).train()
        return kept.logs

    plain, generates = (run(kind, AttentionCallback(every=1), llama())[0] for kind in (Trainer, Generates))
    assert {n: x for n, x in plain.items() if "attention" in n} == pytest.approx(
        {n: x for n, x in generates.items() if "attention" in n}, abs=1e-5
    )
    model, callback = llama(), AttentionCallback(every=1, saliency=True)
    with pytest.raises(KeyboardInterrupt):
        run(Stops, callback, model)
    model.eval().generate(ids(), max_new_tokens=3)  # nothing of it is read
    callback.close()
    assert not is_attached(model)
    assert any("attention" in name for name in run(Trainer, callback, model)[0])


WRONG: dict[str, dict[str, Any]] = {
    "prefix: expected a word, got": {"prefix": ""},
    "every: expected an integer of at least 1, got 0": {"every": 0},
    "by: expected one of 'layer', 'head'; got 'heads'": {"by": "heads"},
    "by: expected 'layer', 'head' or quantiles from 0 to 1": {"by": []},
    r"by: expected a number in \[0, 1\], got 2": {"by": [2.0]},
    "groups: expected a function of the inputs of a pass": {"groups": {"a": torch.ones(2, 9)}},
    "saliency: expected True or False": {"saliency": "yes"},
}


@pytest.mark.parametrize("message", WRONG)
def test_bad_arguments_are_named(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionCallback(**WRONG[message])


@pytest.mark.trains
def test_bad_groups_and_dropout_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="groups: 'first' is a group of the callback itself"):
        trained(llama(), tmp_path, AttentionCallback(1, lambda inputs: {"first": inputs["input_ids"] > 3}))
    with pytest.raises(ValueError, match=r"saliency: expected an attention dropout of 0, .*GPT2Attention\) drops 0.1"):
        trained(gpt2(), tmp_path, AttentionCallback(50, saliency=True))  # before the first step
    for wrong, says in ((None, "a mapping from names"), ({"a": torch.ones(2, 3)}, r"groups\['a'\]: expected a mask")):
        with pytest.raises(ValueError, match=says):
            trained(llama(), tmp_path, AttentionCallback(1, lambda inputs, wrong=wrong: wrong))
    config = transformers.ViTConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(ValueError, match="model: expected one that reads one text, got ViT"):
        trained(transformers.ViTForImageClassification(config), tmp_path, AttentionCallback())
    groups = {"all": torch.ones(2, 9).bool()}
    with pytest.raises(ValueError, match="seen: expected groups of other names than 'all'"):
        attention_metrics(sg.attention(sg.attach(llama()), ids(), groups=groups))
    with pytest.raises(ValueError, match="seen: expected what symground.observe or symground.attention gives"):
        attention_metrics({"entropy": 3})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seen: expected entropy, mass or flow"):
        attention_metrics(sg.attention(sg.attach(llama()), ids()))
