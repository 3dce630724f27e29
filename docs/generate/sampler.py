"""The sampler map in numbers: the table that D7's committed run left beside its figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.problems.mismatches import CORRECTIONS
from grpo_jax.methods import describe

CLAIM = "D7"


def rows(figures: Path) -> list[tuple[str, ...]]:
    """Correction, mismatch, bias, variance, reward lost and reward won, as they stand on the page."""
    table = json.loads((figures / f"{CLAIM}.json").read_text(encoding="utf-8"))
    return [
        (row["correction"], row["mismatch"], _short(row["bias"]), _short(row["variance"]))
        + (_hundredths(row, "lost"), _hundredths(row, "won"))
        for row in table
    ]


def _short(value: float) -> str:
    """Three digits; what is rounding, and no more, is 0."""
    return "0" if abs(value) < 1e-9 else f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _hundredths(row: dict[str, Any], name: str) -> str:
    """A reward times 100 with its interval, no zero negative."""
    value, low, high = (round(100 * row[key], 2) + 0.0 for key in (name, f"{name} low", f"{name} high"))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def corrections() -> dict[str, str]:
    """What each row of the map is, as the expression that makes it."""
    return {name: describe(part, defaults=True) for name, part in CORRECTIONS.items()}
