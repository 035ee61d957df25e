"""The kernels of registered ops, called below the dispatcher."""

from __future__ import annotations

from typing import Any

import torch


def below(function: Any, *arguments: Any, **named: Any) -> Any:
    """What an op's kernel itself gives, whatever the device of the arguments; modes that are active see its calls."""
    return function.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *arguments, **named)
