"""What else differs between the methods of a comparison: the penalties and clips of their defaults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from grpo_jax.part import leaf_paths
from grpo_jax.surrogate import Method

SLOTS = {"penalty": "penalty", "gain": "clip"}
"""Slot -> what users call it."""


def differences(methods: Mapping[str, Method], swept: Iterable[str] = ()) -> list[str]:
    """A sentence for every slot of ``SLOTS`` in which the methods differ: what each of them has there.

    Args:
      methods: label -> method.
      swept: paths that the sweep sets for all of them; they do not differ.

    >>> from grpo_jax import methods
    >>> differences({"grpo": methods.grpo, "gspo": methods.gspo})[1]
    'clip: grpo Clip(low=0.2, high=0.2); gspo Clip(low=0.0003, high=0.0004)'
    """
    found = []
    for slot, word in SLOTS.items():
        held = {label: _spelt(slot, getattr(m, slot), set(swept)) for label, m in methods.items()}
        if len(set(held.values())) > 1:
            found.append(f"{word}: " + "; ".join(f"{label} {text}" for label, text in held.items()))
    return found


def _spelt(slot: str, part: Any, swept: set[str]) -> str:
    if part is None:
        return "none"
    numbers = [
        f"{path}={'swept' if f'method.{slot}.{path}' in swept else f'{leaf:g}'}"
        for path, leaf in leaf_paths(part).items()
        if np.ndim(leaf) == 0
    ]
    inner = getattr(part, "divergence", None) if slot == "penalty" else None
    name = type(part).__name__ if inner is None else type(inner).__name__
    return f"{name}({', '.join(numbers)})"
