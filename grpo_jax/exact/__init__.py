"""Exact expectations over groups by enumeration, through the same surrogate as sampled groups."""

from grpo_jax.exact import tree
from grpo_jax.exact.expectation import Exact
from grpo_jax.exact.gradient import expected_gradient, expected_objective

__all__ = ["Exact", "expected_gradient", "expected_objective", "tree"]
