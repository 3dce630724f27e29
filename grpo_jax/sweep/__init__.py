"""Sweeps: grids of settings times seeds, one compile per tree structure, labelled results."""

from grpo_jax.sweep.runner import sweep
from grpo_jax.sweep.storage import load

__all__ = ["load", "sweep"]
