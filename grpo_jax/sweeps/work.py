"""What a sweep is to compute, checked: configurations, grids and seeds, shapes and labels of the results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from grpo_jax.config import Config
from grpo_jax.part import describe
from grpo_jax.sweeps.axes import Axis, size
from grpo_jax.sweeps.dataset import own_dims, own_labels, own_shapes
from grpo_jax.sweeps.layout import Layout
from grpo_jax.sweeps.program import Program, Request
from grpo_jax.sweeps.request import check_names

Place = tuple[int, int]
"""Variant and first run of a part."""


class Work:
    """What is to be computed: configurations by variant, grids and seeds, checked; shapes of the results."""

    def __init__(
        self,
        configs: Sequence[Config],
        axes: Sequence[list[Axis]],
        variants: Sequence[Axis],
        seeds: np.ndarray,
        request: Request,
        root: int,
        reasons: Sequence[str],
    ) -> None:
        self.configs, self.axes, self.seeds, self.request = configs, axes, seeds, request
        self.root, self.reasons = root, reasons
        plan = request.recording
        shapes = [own_shapes(c, plan) for c in configs]
        for name in shapes[0]:
            if len({s[name] for s in shapes}) > 1:
                raise ValueError(f"{name} has another shape in every variant; sweep them apart")
        self.shapes = shapes[0]
        self.labels = own_labels(configs, plan, self.shapes)
        check_names(
            [*variants, *axes[0]], {n: own_dims(n, made, self.shapes[n]) for n, made in plan.measures}
        )
        self.variants = variants
        self.settings = size(axes[0])
        self.runs = self.settings * len(seeds)

    @property
    def expectations(self) -> list[str]:
        """Name of every variant's expectation."""
        return [type(c.expectation).__name__ for c in self.configs]

    def by_variant(self, texts: Sequence[str]) -> str:
        """A text for every variant as one: itself where all share it, else "this in a, b; that in c"."""
        users: dict[str, list[str]] = {}
        for place, text in zip(np.ndindex(*(axis.size for axis in self.variants)), texts, strict=True):
            at = zip(self.variants, place, strict=True)
            users.setdefault(text, []).append("/".join(str(a.labels[a.name][i]) for a, i in at))
        if len(users) == 1:
            return texts[0]
        return "; ".join(f"{text} in {', '.join(labels)}" for text, labels in users.items())

    @property
    def numbers(self) -> int:
        """Numbers that one run records."""
        plan = self.request.recording
        each = sum(int(np.prod(shape, dtype=int)) for shape in self.shapes.values())
        return each * (len(plan.iterations(self.request.iterations)) if plan.average_from is None else 1)

    def places(self, shape: Layout) -> list[Place]:
        """All parts in order, variant after variant."""
        return [(v, first) for v in range(len(self.configs)) for first in range(0, self.runs, shape.runs)]

    def part(self, axes: Sequence[Axis], first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Index [axes, count] and seeds [count] of the runs from ``first`` on; the last run fills up."""
        run = np.minimum(np.arange(first, first + count), self.runs - 1)
        sizes = [axis.size for axis in axes]
        place = np.unravel_index(run // len(self.seeds), sizes) if sizes else np.zeros((0, count))
        return np.asarray(place, np.int32), self.seeds[run % len(self.seeds)]


def manifest(work: Work, shape: Layout, programs: Sequence[Program]) -> dict[str, Any]:
    """What the parts on disk belong to; a folder that holds another is refused with the difference."""

    def digest(value: Any) -> str:
        return hashlib.sha256(json.dumps(value).encode()).hexdigest()

    plan = work.request.recording
    return {
        "configurations": [digest(describe(c)) for c in work.configs],
        "axes": [
            {"name": a.name, "paths": a.paths, "values": digest([v.tolist() for v in a.values])}
            for a in work.axes[0]
        ],
        "seeds": digest(work.seeds.tolist()),
        "root": work.root,
        "iterations": work.request.iterations,
        "record_every": plan.every,
        "record": [name for name, _ in plan.measures],
        "average_from": plan.average_from,
        "record_start": plan.start,
        "chunk_size": shape.chunk_size,
        "chunks": shape.chunks,
        "programs": [p.hash for p in programs],
        "precision": str(jax.dtypes.canonicalize_dtype(float)),
    }
