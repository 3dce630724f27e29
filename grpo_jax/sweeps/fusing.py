"""Whether each variant of a sweep is computed by the fused kernel, decided before its program is made."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.records import Recording
from grpo_jax.sweeps.layout import Layout, updates
from grpo_jax.sweeps.program import Request, arguments, own_numbers
from grpo_jax.sweeps.work import Work

FUSED = "yes"
BY_QUESTION = ", a lane for each question"
"""What is added where a run has several lanes."""
WORTH = 2e10
"""Optimizer steps of a sweep from which on a kernel is tried unasked: its compilation may take a minute. A
guess, to be settled on a GPU (``python -m benchmarks --fused``)."""
_tried: dict[Any, str | None] = {}
"""Kernels that this process has held against the general path -> what is wrong with them."""


def requests(work: Work, shape: Layout, fused: bool | None) -> tuple[list[Request], list[str]]:
    """What each variant's program is asked, and of each "yes" or why it is not fused.

    ValueError where ``fused`` is True and a variant cannot be.
    """
    if fused is not None and not isinstance(fused, bool):
        raise TypeError(f"fused is {fused!r}; it must be True, False or None")
    asked, answers = [], []
    for variant in range(len(work.configs)):  # no comprehension: a warning counts frames
        lanes, why = _answer(work, variant, shape, fused)
        asked.append(dataclasses.replace(work.request, lanes=lanes))
        answers.append(FUSED + BY_QUESTION * (lanes > 1) if lanes else f"no: {why}")
    return asked, answers


def _answer(work: Work, variant: int, shape: Layout, fused: bool | None) -> tuple[int, str]:
    """Lanes of each run; or 0, and why the general path is taken."""
    config, request = work.configs[variant], work.request
    if fused is False:
        return 0, "as asked"
    if fused is None and jax.default_backend() != "gpu":
        return 0, "not on a GPU"
    if fused is None and work.runs * updates(config, request.iterations) < WORTH:
        return 0, "too short to be worth compiling"
    from grpo_jax.fused import choice  # here: few sweeps need Pallas, which takes a while to import

    block: tuple[Any, Any, Any, Any] | None = None
    plan, tried = request.recording, len(_tried)
    reasons: list[str] = []
    wrong: list[str] = []
    for lanes in choice.forms(config):
        reason = choice.refusal(config, plan, devices=shape.devices, questions=lanes)
        if reason is None:
            block = block or _first_block(work, variant, choice.BLOCK)
            reason = choice.untraceable(*block, request.iterations, plan, lanes)
            failure = _wrong(block, plan, lanes) if reason is None else None
            if reason is None and failure is None:
                return lanes, ""
            wrong += [failure] if failure else []
        reasons += [reason] if reason else []
    why = "; ".join(dict.fromkeys(wrong or reasons))
    if fused and not wrong:
        raise ValueError(f"fused=True, but this sweep cannot be one kernel: {why}")
    if len(_tried) > tried:
        warnings.warn(f"the general path is taken, not the fused kernel: {why}", stacklevel=4)
    return 0, why


def _first_block(work: Work, variant: int, runs: int) -> tuple[Any, Any, Any, Any]:
    """Configuration, own numbers, seeds and root of the first runs, as the kernel takes them."""
    axes = work.axes[variant]
    index, seeds = work.part(axes, 0, runs)
    config, values, root = arguments(work.configs[variant], axes, work.root)
    return config, own_numbers(axes, values, index), jnp.asarray(seeds), root


def _wrong(given: tuple[Any, Any, Any, Any], plan: Recording, lanes: int) -> str | None:
    """What keeps a kernel that applies from being used; None where nothing does."""
    from grpo_jax.fused import choice

    shapes = tuple((np.shape(leaf), str(leaf.dtype)) for leaf in jax.tree.leaves(given))
    key = (jax.tree.structure(given), shapes, plan, lanes, jax.default_backend())
    if key not in _tried:
        try:
            _tried[key] = choice.disagreement(*given, plan, lanes)
        except Exception as error:  # whatever a compiler finds: the general path computes the same
            _tried[key] = f"it does not compile here ({choice.first_line(error)})"
    return _tried[key]
