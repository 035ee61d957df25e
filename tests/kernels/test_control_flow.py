"""Which instructions of machine code lie in loops, on small programs as nvdisasm prints them."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is not installed: kernel tests")

from benchmarks.kernels.control_flow import names_in_loops


def sass(*lines: str) -> str:
    """Instructions with addresses, and labels (which end in a colon) as they are."""
    printed = [line if line.endswith(":") else f"        /*{16 * i:04x}*/   {line} ;" for i, line in enumerate(lines)]
    return "\n".join(['.section .text.kernel,"ax",@progbits', ".text.kernel:", *printed])


def test_a_loop_is_what_lies_between_its_label_and_the_branch_back() -> None:
    code = sass("STL [R1], R2", ".L_x_0:", "LDL.64 R2, [R1]", "@P0 BRA `(.L_x_0)", "LDL R3, [R1]", "EXIT")
    assert names_in_loops(code) == ["LDL.64", "BRA"]


@pytest.mark.parametrize("divergence", ["BRA.DIV UR4, `(.L_x_1)", "@P1 BRA `(.L_x_1)", "BRA P1, `(.L_x_1)"])
def test_a_rare_path_at_the_end_that_jumps_back_makes_no_loop(divergence: str) -> None:
    code = sass(divergence, ".L_x_0:", "LDL R3, [R1]", "EXIT", ".L_x_1:", "STL [R1], R2", "BRA `(.L_x_0)")
    assert names_in_loops(code) == []


def test_a_rare_path_of_a_loop_is_part_of_it() -> None:
    code = sass(
        ".L_x_0:", "BRA.DIV UR4, `(.L_x_1)", ".L_x_2:", "FADD R2, R2, R3", "@!P0 BRA `(.L_x_0)", "LDL R3, [R1]", "EXIT",
        ".L_x_1:", "STL [R1], R2", "BRA `(.L_x_2)",
    )  # fmt: skip
    assert names_in_loops(code) == ["BRA.DIV", "FADD", "BRA", "STL", "BRA"]


def test_nothing_follows_an_exit_or_an_unconditional_branch() -> None:
    code = sass("BRA `(.L_x_1)", ".L_x_0:", "LDL R3, [R1]", "EXIT", ".L_x_1:", "@P0 EXIT", "BRA `(.L_x_0)")
    assert names_in_loops(code) == []
    assert names_in_loops(code.replace("EXIT ;\n.L_x_1", "@P1 EXIT ;\n.L_x_1")) == ["LDL", "EXIT", "EXIT", "BRA"]


def test_a_loop_of_loops_holds_what_is_between_them() -> None:
    code = sass(
        ".L_x_0:", "LDL R2, [R1]", ".L_x_1:", "FADD R2, R2, R3", "@P0 BRA `(.L_x_1)", "@P1 BRA `(.L_x_0)", "EXIT"
    )
    assert names_in_loops(code) == ["LDL", "FADD", "BRA", "BRA"]


def test_a_function_that_a_loop_calls_is_in_it() -> None:
    function = (".L_x_9:", "$__internal_0_$f:", "STL [R1], R2", "RET.REL.NODEC R20 `(kernel)")
    called = sass(".L_x_0:", "CALL.REL.NOINC `($__internal_0_$f)", "@P0 BRA `(.L_x_0)", "EXIT", *function)
    assert names_in_loops(called) == ["CALL.REL.NOINC", "BRA", "STL", "RET.REL.NODEC"]
    once = sass("CALL.REL.NOINC `($__internal_0_$f)", "EXIT", *function)
    assert names_in_loops(once) == []


def test_a_call_of_a_label_is_a_branch() -> None:
    code = sass(".L_x_0:", "LDL R2, [R1]", "@P1 CALL.REL.NOINC `(.L_x_1)", "BRA `(.L_x_0)", ".L_x_1:", "EXIT")
    assert names_in_loops(code) == ["LDL", "CALL.REL.NOINC", "BRA"]


def test_an_indirect_branch_is_refused() -> None:
    with pytest.raises(ValueError, match="BRX R2 -0x10"):
        names_in_loops(sass("BRX R2 -0x10", "EXIT"))
