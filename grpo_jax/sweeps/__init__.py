"""Sweeps: grids of settings times seeds, one compile per tree structure, labelled results."""

from grpo_jax.sweeps.runner import sweep
from grpo_jax.sweeps.shares import Unfinished
from grpo_jax.sweeps.storage import load

__all__ = ["Unfinished", "load", "sweep"]
