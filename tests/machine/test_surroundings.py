"""What is said of a driver and of CUDA's libraries that are not here, and of a stub that is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from symground.machine.parts import Part, run_one
from symground.machine.surroundings import Driver, built_for, doubled, driver, of_driver, versions

GOOD = Driver("/usr/lib/libcuda.so.550", "", 0, (12, 4))


@pytest.mark.parametrize(
    ("driver", "wanted", "available", "status", "said"),
    [
        (GOOD, "12.8", True, "right", "CUDA 12.4 at /usr/lib/libcuda.so.550"),
        (GOOD, None, False, "absent", "this torch is not built for CUDA"),
        (Driver(None, "cannot open shared object file", 0, None), "13.0", False, "absent", "install its driver"),
        (GOOD, "13.0", False, "wrong", "too old: it serves CUDA 12.4 at .*, and this torch is built for CUDA 13.0"),
        (
            GOOD._replace(path="/usr/cuda/stubs/libcuda.so"),
            "12.8",
            False,
            "wrong",
            "out of LD_LIBRARY_PATH",
        ),
        (GOOD._replace(result=34), "12.8", False, "wrong", "a stub"),
        (GOOD._replace(result=100), "12.8", False, "absent", "finds no GPU"),
        (GOOD._replace(result=803), "12.8", False, "wrong", "cuInit gives error 803"),
        (
            GOOD._replace(result=999, version=None),
            "12.8",
            False,
            "wrong",
            "error 999 [(]a CUDA that it does not",
        ),
        (GOOD._replace(version=None), "12.8", True, "right", "a CUDA that it does not tell at"),
        (GOOD._replace(said="undefined symbol: cuInit"), "12.8", False, "wrong", "no whole driver .undefined symbol"),
        (GOOD, "12.8", False, "wrong", "torch finds no GPU, although the driver does"),
    ],
)
def test_a_driver_and_what_to_do(driver: Driver, wanted: str | None, available: bool, status: str, said: str) -> None:
    found = of_driver(driver, wanted, available)
    assert found.status == status
    assert re.search(said, found.said)
    assert status == "right" or "everything runs on the CPU" in found.said


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (OSError("libcuda.so.1: cannot open shared object file: No such file or directory"), "absent"),
        (OSError("Error loading shared library libcuda.so.1: No such file or directory"), "absent"),  # musl
        (FileNotFoundError("Could not find module 'nvcuda.dll'"), "absent"),
        (OSError("/opt/libcuda.so.1: file too short"), "wrong"),
        (OSError("libcuda.so.1: wrong ELF class: ELFCLASS32"), "wrong"),
        (OSError("libnvidia-ptxjit.so.1: cannot open shared object file: No such file or directory"), "wrong"),
    ],
)
def test_a_driver_that_does_not_load_is_absent_or_broken(
    raised: OSError, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctypes.CDLL", Mock(side_effect=raised))
    found = of_driver(driver(), "12.8", False)
    assert found.status == status
    assert str(raised) in found.said


def test_gpus_that_the_user_hides_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "(CUDA_VISIBLE_DEVICES is '')" in of_driver(GOOD._replace(result=100), "12.8", False).said


MAPS = """
7f00-7f01 r-xp 00000000 08:01 1 {a}/libcudart.so.12
7f01-7f02 r--p 00000000 08:01 1 {a}/libcudart.so.12
7f02-7f03 r-xp 00000000 08:01 2 {b}
7f03-7f04 r-xp 00000000 08:01 3 /opt/libcublas.so.12
7f04-7f05 r-xp 00000000 08:01 4 /opt/libcublasLt.so.12
7f05-7f06 rw-p 00000000 00:00 0
"""


def test_two_cuda_libraries_are_named() -> None:
    assert not list(doubled(MAPS.format(a="/opt/cuda", b="/opt/cuda/libcudart.so.12")))
    (found,) = doubled(MAPS.format(a="/opt/cuda", b="/home/me/libcudart.so.11.8"))
    assert found.status == "wrong"
    assert "2 of libcudart: /home/me/libcudart.so.11.8, /opt/cuda/libcudart.so.12" in found.said


VERSION = "int cuDriverGetVersion(int* version) { *version = 13010; return 0; }"
#: What a libcuda does → what is said of it.
DRIVERS = {
    "int cuInit(unsigned flags) { return 34; }" + VERSION: "libcuda is a stub for building, ",
    "int cuInit(unsigned flags) { return 100; }" + VERSION: "the driver finds no GPU",
    "int cuInit(unsigned flags) { return 999; } int cuDriverGetVersion(int* version) { return 999; }": (
        "cuInit gives error 999 (a CUDA that it does not tell at "
    ),
    "int cuInit(unsigned flags) { return 0; }": "undefined symbol: cuDriverGetVersion",
    VERSION: "undefined symbol: cuInit",
    "#include <stdlib.h>\nint cuInit(unsigned flags) { abort(); }" + VERSION: (
        "its process was ended by SIGABRT when the driver was asked, so everything runs on the CPU"
    ),
    "#include <stdlib.h>\nint cuInit(unsigned flags) { exit(0); }" + VERSION: "its process ended early (exit code 0)",
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs a C compiler on Linux")
@pytest.mark.parametrize("code", DRIVERS)
def test_a_driver_that_fails_is_named(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "stubs" if "34" in code else tmp_path
    folder.mkdir(exist_ok=True)
    (tmp_path / "driver.c").write_text(code)
    library = folder / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", str(tmp_path / "driver.c"), "-o", str(library)], check=True)
    (tmp_path / "sitecustomize.py").write_text("import torch; torch.version.cuda = '13.0'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
    (found,), about = run_one(Part("driver", "cuda", what="driver"), 1)
    assert found.part == "driver"
    assert found.status == ("absent" if "100" in code else "wrong")
    assert DRIVERS[code] in found.said
    assert "everything runs on the CPU" in found.said
    assert about.get("device") is None


def test_the_versions_of_everything_are_there() -> None:
    found = versions()
    assert {"symground", "python", "torch", "triton", "cores"} <= found.keys()
    assert all(found.values())
    assert built_for(torch).startswith(("CPUs", "CUDA", "ROCm"))
