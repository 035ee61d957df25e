"""Every row of docs/chat.md, read from the page itself: what a CHAT mark becomes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from symground.data import ChatSettings
from symground.data.childes.chat import parse
from symground.data.childes.main_tier import spoken
from symground.data.words import base_of

PAGE = (Path(__file__).parents[3] / "docs" / "chat.md").read_text(encoding="utf-8")


def rows() -> Iterator[tuple[str, str, str]]:
    """(third column's name, what is written, what it becomes)."""
    column, section = "", ""
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if cells[1:2] == ["written"]:
            column = ("inline " if "within" in section else "") + cells[2]
        elif cells and not cells[0].startswith("---"):
            written, becomes = (cell.strip("`").replace("␕", "\x15").replace(r"\u0303", "\u0303") for cell in cells[1:])
            yield column, written, becomes
        elif line.startswith("## "):
            section = line


ROWS = list(rows())


@pytest.mark.parametrize(("column", "written", "becomes"), ROWS, ids=[row[1] for row in ROWS])
def test_a_row_of_the_page(column: str, written: str, becomes: str) -> None:
    main, tier = (written, "") if "ENV" not in column or "inline" in column else ("su", f"%act:\t{written}\n")
    text = f"@UTF8\n@Begin\n*MOT:\t{main}\n{tier}@End\n"
    settings = ChatSettings(inline_events="inline" in column)
    tokens = [token for turn in parse(text, settings).turns for token in turn]
    if "ENV" in column:
        said = [token for token in tokens if token.endswith(":<ENV>") or (tier and token == "[UNK]")]
    else:
        said = [token for token in tokens if token.endswith(":<LAN>") or token == "[UNK]"]
    assert " ".join(base_of(token) or token for token in said) == becomes


@pytest.mark.parametrize("beside", ["cup", "café"])
def test_unprintable_characters_do_not_divide_words(beside: str) -> None:
    for code in set(range(32)) - set(map(ord, "\t\n\r\x15")):
        assert spoken(f"wo{chr(code)}rd {beside}") == ["word", beside], code


def test_the_page_names_every_mark_of_the_code() -> None:
    from symground.data.childes import main_tier

    marks = {chr(code) for code in main_tier._TABLE if code > 32} | set("Ϋ\u1f29↫^:@$&#")
    written = "".join(row[1] for row in ROWS)
    assert marks <= set(written)
    assert len(ROWS) > 60
    assert len(re.findall(r"^## ", PAGE, re.MULTILINE)) == 6
