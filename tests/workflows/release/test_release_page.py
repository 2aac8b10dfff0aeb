"""The recipe of docs/howto/release.md is what a recipe has when it says nothing, and a schedule, which is then none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from sparsefeed.workflows.release.config import Gate, Guardrails, ReleaseConfig, Schedule

PAGE = (Path(__file__).parents[3] / "docs" / "howto" / "release.md").read_text("utf-8")


def test_the_pages_settings_are_the_defaults() -> None:
    settings: dict[str, Any] = {}
    for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL):
        settings |= yaml.safe_load(block)["release"]
    schedule = settings.pop("schedule")
    assert ReleaseConfig.model_validate(settings) == ReleaseConfig()
    assert set(settings["guardrails"]) | {"ks"} == set(Guardrails.model_fields)
    assert set(settings["gate"]) == set(Gate.model_fields)
    assert set(Schedule.model_validate(schedule).model_dump(exclude_none=True)) == set(Schedule.model_fields)
    assert Schedule().model_dump(exclude_none=True) == {}
