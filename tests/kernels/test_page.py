"""The page of the kernels' resources after a run under one Triton and another."""

from __future__ import annotations

from benchmarks.kernels.page import updated

HEAD = "| kernel | architecture | dtype | D | configuration | registers |\n|---|---|---|---|---|---|\n"


def table(registers: int, config: str = "64×64, 4, 2") -> str:
    return f"{HEAD}| dq | sm_90 | bfloat16 | 64 | {config} | {registers} |"


def test_the_newest_triton_has_the_table_and_each_without_a_fault_is_named() -> None:
    page = updated("", table(200), "3.9.0", faulty=False)
    page = updated(page, table(180), "3.10.0", faulty=False)
    page = updated(page, table(250), "3.6.0", faulty=False)
    assert "No configuration has a fault under Triton 3.6.0, 3.9.0, 3.10.0.\n" in page
    assert "compiled by Triton 3.10.0 " in page
    assert table(180) in page
    assert page.count("| dq |") == 1
    assert updated(page, table(250), "3.6.0", faulty=False) == page


def test_a_fault_removes_its_triton() -> None:
    page = updated(updated("", table(200), "3.9.0", faulty=False), table(250), "3.6.0", faulty=False)
    assert "under Triton 3.9.0.\n" in updated(page, table(255), "3.6.0", faulty=True)
    assert "fault" not in updated("", table(255), "3.6.0", faulty=True)


def test_another_configuration_voids_what_was_checked() -> None:
    page = updated(updated("", table(200), "3.9.0", faulty=False), table(190), "3.6.0", faulty=False)
    page = updated(page, table(150, "64×32, 4, 2"), "3.6.0", faulty=False)
    assert "under Triton 3.6.0.\n" in page
    assert "compiled by Triton 3.6.0 " in page
    assert table(200) not in page
