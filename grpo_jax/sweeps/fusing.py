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
    answers = []
    for variant in range(len(work.configs)):  # no comprehension: a warning counts frames
        answers.append(_answer(work, variant, shape, fused))
    return [dataclasses.replace(work.request, fused=answer == FUSED) for answer in answers], answers


def _answer(work: Work, variant: int, shape: Layout, fused: bool | None) -> str:
    config, request = work.configs[variant], work.request
    if fused is False:
        return "no: as asked"
    if fused is None and jax.default_backend() != "gpu":
        return "no: not on a GPU"
    if fused is None and work.runs * updates(config, request.iterations) < WORTH:
        return "no: too short to be worth compiling"
    from grpo_jax.fused import choice  # here: few sweeps need Pallas, which takes a while to import

    reason = choice.refusal(config, request.recording, devices=shape.devices)
    given = None if reason else _first_block(work, variant, choice.BLOCK)
    if given is not None:
        reason = choice.untraceable(*given, request.iterations, request.recording)
    if reason is not None and fused:
        raise ValueError(f"fused=True, but this sweep cannot be one kernel: {reason}")
    wrong = reason if given is None or reason else _wrong(given, request.recording)
    return FUSED if wrong is None else f"no: {wrong}"


def _first_block(work: Work, variant: int, runs: int) -> tuple[Any, Any, Any, Any]:
    """Configuration, own numbers, seeds and root of the first runs, as the kernel takes them."""
    axes = work.axes[variant]
    index, seeds = work.part(axes, 0, runs)
    config, values, root = arguments(work.configs[variant], axes, work.root)
    return config, own_numbers(axes, values, index), jnp.asarray(seeds), root


def _wrong(given: tuple[Any, Any, Any, Any], plan: Recording) -> str | None:
    """What keeps a kernel that applies from being used, said once with a warning; None where nothing does."""
    from grpo_jax.fused import choice

    shapes = tuple((np.shape(leaf), str(leaf.dtype)) for leaf in jax.tree.leaves(given))
    key = (jax.tree.structure(given), shapes, plan, jax.default_backend())
    if key not in _tried:
        try:
            _tried[key] = choice.disagreement(*given, plan)
        except Exception as error:  # whatever a compiler finds: the general path computes the same
            _tried[key] = f"it does not compile here ({choice.first_line(error)})"
        if _tried[key] is not None:
            warnings.warn(f"the general path is taken, not the fused kernel: {_tried[key]}", stacklevel=5)
    return _tried[key]
