"""Processors of three forms: LLaVA, LLaVA-NeXT, Qwen2-VL."""

from __future__ import annotations

from typing import Any

import pytest

FORMS = ("llava", "next", "qwen")


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def processor(request: pytest.FixtureRequest, form: str) -> Any:
    return request.getfixturevalue(f"{form}_processor")
