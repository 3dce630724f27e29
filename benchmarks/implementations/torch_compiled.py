"""PyTorch through torch.compile (Inductor), gradient written by hand, an iteration in one graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.case import Case, Result, Unavailable
from benchmarks.implementations import with_torch

NAME = "torch.compile"
NOTE = "hand-written gradient, one graph an iteration; torch's own threads and generator"


def prepare(case: Case, draws: np.ndarray | None) -> Callable[[], Result]:
    """Compiles one iteration; shapes are fixed."""
    if with_torch.torch is None:
        raise Unavailable("torch is not installed")
    torch = with_torch.torch
    torch._dynamo.reset()
    step = torch.compile(
        lambda *arrays: with_torch.iteration(case, with_torch.by_hand, *arrays), dynamic=False, fullgraph=True
    )
    with torch.no_grad():
        inner = with_torch.sweep(case, draws, step)

    def run() -> Result:
        with torch.no_grad():
            return inner()

    return run
