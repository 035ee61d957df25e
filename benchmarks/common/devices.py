"""GPUs of CUDA that the kernels are compiled for, by architecture."""

from __future__ import annotations

from typing import NamedTuple


class Device(NamedTuple):
    """What Triton and the launchers ask of a GPU."""

    capability: int
    processors: int
    #: Bytes of shared memory that one program may have.
    shared: int


DEVICES = {
    "sm_80": Device(80, 108, 166_912),
    "sm_86": Device(86, 84, 101_376),
    "sm_90": Device(90, 132, 232_448),
    "sm_100": Device(100, 148, 232_448),
}
