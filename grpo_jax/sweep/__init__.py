"""Sweeps: grids of settings times seeds, one compile per tree structure, labelled results."""

from grpo_jax.sweep.sweep import sweep

__all__ = ["sweep"]
