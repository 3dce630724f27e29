"""Whether each variant of a sweep is computed by the fused kernel, decided before anything is compiled."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.sweeps.layout import Layout
from grpo_jax.sweeps.program import Request, arguments, own_numbers
from grpo_jax.sweeps.work import Work

FUSED = "yes"
_tried: dict[Any, str | None] = {}
"""Kernels that were held against the general path in this process -> what is wrong with them."""


def requests(work: Work, shape: Layout, fused: bool | None) -> tuple[list[Request], list[str]]:
    """What each variant's program is asked, and of each "yes" or why it is not fused.

    ValueError where ``fused`` is True and a variant does not allow it.
    """
    answers = [_answer(work, variant, shape, fused) for variant in range(len(work.configs))]
    return [dataclasses.replace(work.request, fused=answer == FUSED) for answer in answers], answers


def _answer(work: Work, variant: int, shape: Layout, fused: bool | None) -> str:
    if fused not in (None, True, False):
        raise TypeError(f"fused is {fused!r}; it must be True, False or None")
    if fused is False:
        return "no: as asked"
    if fused is None and jax.default_backend() != "gpu":
        return "no: not on a GPU"
    from grpo_jax.fused import choice  # Pallas is slow to import, and most sweeps end above

    plan, config = work.request.recording, work.configs[variant]
    reason = choice.refusal(config, plan, devices=shape.devices)
    given = _first_block(work, variant, choice.BLOCK) if reason is None else ()
    reason = reason or choice.untraceable(*given, work.request.iterations, plan)
    if reason is not None:
        if fused:
            raise ValueError(f"fused=True, but this sweep cannot be one kernel: {reason}")
        return f"no: {reason}"
    wrong = _wrong(given, plan)
    return FUSED if wrong is None else f"no: {wrong}"


def _first_block(work: Work, variant: int, lanes: int) -> tuple[Any, Any, Any, Any]:
    """``simulate``'s arguments for the first block of runs."""
    axes = work.axes[variant]
    index, seeds = work.part(axes, 0, lanes)
    config, values, root = arguments(work.configs[variant], axes, work.root)
    return config, own_numbers(axes, values, index), jnp.asarray(seeds), root


def _wrong(given: tuple[Any, Any, Any, Any], plan: Any) -> str | None:
    """What keeps a kernel that applies from being used, said once with a warning; None where nothing does."""
    shapes = tuple((np.shape(leaf), str(leaf.dtype)) for leaf in jax.tree.leaves(given))
    key = (jax.tree.structure(given), shapes, plan, jax.default_backend())
    if key not in _tried:
        from grpo_jax.fused import choice

        try:
            _tried[key] = choice.disagreement(*given, plan)
        except Exception as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            _tried[key] = f"it does not compile here ({said[0]})"
        if _tried[key] is not None:
            warnings.warn(f"the general path is taken, not the fused kernel: {_tried[key]}", stacklevel=6)
    return _tried[key]
