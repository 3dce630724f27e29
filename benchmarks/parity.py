"""Every implementation computes the same sweep: same draws, double precision, a clip that holds samples."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import jax
import numpy as np

from benchmarks.case import Case, Shape, Unavailable

PARITY = Case(Shape(8, 4, 8, 8), runs=48, iterations=6, learning_rate=0.3, double=True)
TOLERANCE = 1e-9


def parity(modules: Sequence[ModuleType], case: Case = PARITY) -> dict[str, float]:
    """Name -> greatest difference of any diagnostic of any run from the first module's.

    RuntimeError where one differs by more than ``TOLERANCE``, or where the clip never held a sample.
    """
    with jax.enable_x64(True):
        draws = case.draws()
        reference, found = None, {}
        for module in modules:
            try:
                seen = np.stack(module.prepare(case, draws)(), 1)
            except Unavailable:
                continue
            reference = seen if reference is None else reference
            found[module.NAME] = float(np.abs(seen - reference).max())
    if reference is None or reference[:, 3].mean() < 0.01:
        raise RuntimeError("the clip is idle, so parity would prove little")
    different = {name: gap for name, gap in found.items() if not gap <= TOLERANCE}
    if different:
        raise RuntimeError(f"implementations differ: {different}")
    return found
