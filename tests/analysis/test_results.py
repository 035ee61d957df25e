"""Result tables: the rows of a run's step are replaced as a whole, and rows saved by another process are kept."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pandas as pd

from symground.analysis.results import Table, read_table


def rows(*values: float) -> pd.DataFrame:
    return pd.DataFrame({"value": values}, index=range(5, 5 + len(values)))


def test_rows_of_a_step_are_replaced_whole(tmp_path: Path) -> None:
    table = Table(tmp_path, "gain")
    table.add(rows(1.0, 2.0), "m", 0, 10)
    table.add(rows(3.0), "m", 0, 20)
    table.save()
    assert table.has("m", 0, 10)
    assert not table.has("m", 1, 10)
    again = Table(tmp_path, "gain")
    again.add(rows(4.0), "m", 0, 10)
    again.add(rows(), "m", 0, 20)
    again.save()
    assert read_table(tmp_path, "gain").to_dict("list") == {"model": ["m"], "seed": [0], "step": [10], "value": [4.0]}


def test_two_processes_that_fill_one_table_lose_nothing(tmp_path: Path) -> None:
    first, second = Table(tmp_path, "gain"), Table(tmp_path, "gain")
    for seed, table in enumerate((first, second)):
        table.add(rows(float(seed)), "m", seed, 10)
    for table in (first, second):
        table.save()
    assert read_table(tmp_path, "gain")["seed"].tolist() == [0, 1]


def test_a_run_is_dropped_and_the_others_stay(tmp_path: Path) -> None:
    table = Table(tmp_path, "gain")
    for seed in (0, 1):
        table.add(rows(1.0), "m", seed, 10)
    table.save()
    other = Table(tmp_path, "gain")
    other.drop("m", 0)
    other.save()
    assert read_table(tmp_path, "gain")["seed"].tolist() == [1]


def test_a_table_can_be_read_while_another_is_put_in_its_place(tmp_path: Path) -> None:
    """A reader that opened the file twice could read the footer of one table and the pages of another."""
    stop, failed = threading.Event(), []

    def write() -> None:
        step = 0
        while not stop.is_set():
            table = Table(tmp_path, "gain")
            table.add(pd.DataFrame({"gain": np.arange(1.0 + 997 * (step % 2))}), "gpt2", 0, 0)
            table.save()
            step += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(400):
            try:
                assert len(read_table(tmp_path, "gain")) in (0, 1, 998)
            except OSError as error:
                failed.append(error)
    finally:
        stop.set()
        writer.join()
    assert not failed
