"""The code, commands, links and tables of the README and the docs are right."""

from __future__ import annotations

import ast
import builtins
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import symground
from symground.cli import main
from symground.data import GeneratedSettings
from symground.data.scenes import GeneratedImagesSettings
from symground.recipes.dials import IMAGE_VALUES, VALUES
from symground.recipes.paper import RECIPES

ROOT = Path(symground.__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools import page_tables  # noqa: E402

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = ("data", "training", "analyses", "findings", "study")
DATA, TRAINING, ANALYSES, FINDINGS, STUDY, RESEARCH = (
    (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in (*COMMANDS, "research")
)


@pytest.mark.slow
def test_python_of_the_readme(tmp_path: Path, llava_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--generated.scenes", "600", "--generated.nouns", "4", "--models", "gpt2-4l", "--steps", "8"]
    assert (
        main(["demo", *arguments, "--batch-size", "2", "--draws", "1", "--intervene-contexts", "1", "--lens-fit", "2"])
        == 0
    )
    q = torch.randn(1, 2, 5, 4, requires_grad=True)
    names: dict[str, Any] = {
        "B": 1, "T": 5, "S": 5, "q": q, "k": q, "v": q, "loss": lambda out: out.square().sum(),
    }  # fmt: skip
    study, saliency, seeing = re.findall(r"```python\n(.*?)```", README, re.S)
    silencing, anyone, head, mamba = re.findall(r"```python\n(.*?)```", RESEARCH, re.S)
    shutil.copy(llava_folder / "0.png", tmp_path / "photo.png")
    exec(seeing.replace("llava-hf/llava-1.5-7b-hf", str(llava_folder / "model")), names)
    assert (tmp_path / "where.png").stat().st_size > 5000
    exec(study.replace("step=800", "step=8"), names)
    exec(silencing, names)
    assert "One example at a time" in Path("runs/demo/report.html").read_text(encoding="utf-8")
    names |= {"corpus": torch.randint(2, 50, (4, 16)), "ids": torch.tensor([[2, 5, 7]])}
    for block in re.findall(r"```python\n(.*?)```", ANALYSES, re.S):
        exec(block, names)
    for block in re.findall(r"```python\n(.*?)```", DATA, re.S):
        exec(block, names)
    assert len(names["table"]) == 4
    letters = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    config = GPT2Config(n_layer=1, n_embd=8, n_head=2, bos_token_id=None, eos_token_id=None, vocab_size=256)
    names |= {"tokenizer": PreTrainedTokenizerFast(tokenizer_object=letters), "model": GPT2LMHeadModel(config).eval()}
    exec(anyone, names)
    assert len(names["scores"]) == len(pd.read_parquet("scores")) == 9
    exec(saliency, names)
    assert names["probe"].grad.shape == (1, 5, 5)
    exec(
        head,
        names | {"hidden": q[0, 0], "weight": q[0, 1], "candidates": torch.tensor([0, 4]), "targets": torch.arange(5)},
    )
    x = q.detach().transpose(1, 2)  # [1,5,2,4]
    inputs = {"x": x, "dt": x[..., 0].exp(), "A": torch.tensor([-1.0, -2.0]), "B": x[:, :, :1], "C": x[:, :, 1:]}
    probe = torch.zeros(1).expand(1, 5, 5).requires_grad_()
    exec(f"{mamba}\ny.square().sum().backward()", names | inputs | {"probe": probe})
    assert probe.grad is not None
    assert probe.grad.abs().sum() > 0


@pytest.mark.parametrize("page", [README, DATA, TRAINING, ANALYSES, FINDINGS, STUDY], ids=["README", *COMMANDS])
def test_commands_of_the_readme_exist(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = re.sub(r"```python\n.*?```\n", "", page, flags=re.S)
    blocks = "".join(re.findall(r"```\n(.*?)```", page, re.S)).replace("\\\n", " ")
    commands = [line.partition("#")[0].split() for line in blocks.splitlines() if line.startswith("symground ")]
    assert len(commands) >= 2
    for _, name, *arguments in commands:
        recipe = arguments[:1] if arguments and arguments[0] in RECIPES else []
        assert main([name, *recipe, "--help"]) == 0
        known = capsys.readouterr().out
        for option in {word for word in arguments if word.startswith("--")} - {"--help"}:
            assert option in known, (name, option)


PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
#: Names that a reader of the README already has.
OWN = {"B", "T", "S", "q", "k", "v", "loss"}
MODULES = {"torch", "sg", "ops", "np", "pd"}


def names_of(block: str) -> tuple[set[str], set[str]]:
    """(names that it uses and does not make, names that it imports)."""
    nodes = list(ast.walk(ast.parse(block)))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    made = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    imports = [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
    imported = {alias.asname or alias.name for node in imports for alias in node.names}
    return {node.id for node in names} - made - imported - set(dir(builtins)), imported


@pytest.mark.parametrize("page", PAGES)
def test_python_of_a_page_imports_what_it_uses(page: str) -> None:
    """The README's blocks are independent; a block of another page may use names of earlier ones."""
    known: set[str] = set()
    for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S):
        wanted, imported = names_of(block)
        if page == "README.md":
            assert wanted <= OWN
        assert wanted & MODULES <= known, block
        known |= imported


def test_links_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]
    for page in pages:
        for link in re.findall(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert not link or (page.parent / link).exists(), (page.name, link)


@pytest.mark.parametrize(("page", "name"), list(page_tables.TABLES))
def test_tables_of_the_pages_are_those_of_the_results(page: str, name: str) -> None:
    """All their numbers are in JSON files of the repository; python -m tools.page_tables writes the tables."""
    assert page_tables.table(page, name) in (ROOT / page).read_text(encoding="utf-8")


def test_every_dial_is_told_with_its_default_and_its_values() -> None:
    told = dict(re.findall(r"^\| `(\w+)` \| (.*? \| .*?) \| ", DATA, re.M))
    for known, settings in ((VALUES, GeneratedSettings()), (IMAGE_VALUES, GeneratedImagesSettings())):
        for dial, values in known.items():
            default = getattr(settings, dial)
            assert told[dial] == f"{'none' if default is None else default} | {', '.join(map(str, values))}", dial
