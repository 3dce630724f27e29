"""The NumPy implementation on blocks of runs that stay in the cache: fairer than one usually writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from benchmarks.case import Case, Result
from benchmarks.implementations import with_numpy

NAME = "numpy, blocked"
NOTE = "one thread, blocks of about 8192 numbers an array"


def prepare(case: Case, draws: np.ndarray | None) -> Callable[[], Result]:
    """One block after another."""
    numbers = case.shape.questions * max(case.shape.actions, case.shape.group)
    width = min(max(16, 8192 // numbers), case.runs)
    starts = range(0, case.runs, width)
    blocks = [
        with_numpy.prepare(
            dataclasses.replace(case, runs=min(width, case.runs - first)),
            None if draws is None else draws[..., first : first + width],
        )
        for first in starts
    ]

    def run() -> Result:
        parts = [block() for block in blocks]
        return Result(*(np.concatenate(each, -1) for each in zip(*parts, strict=True)))

    return run
