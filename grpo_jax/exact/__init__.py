"""Exact expectations over groups by enumeration, through the same surrogate as sampled groups."""

from grpo_jax.exact import values
from grpo_jax.exact.expectation import Exact, moves_cells
from grpo_jax.exact.gradient import expected_gradient, expected_objective
from grpo_jax.exact.law import Law, gradient_law, step_law
from grpo_jax.exact.preference import expected_preference

__all__ = [
    "Exact",
    "Law",
    "expected_gradient",
    "expected_objective",
    "expected_preference",
    "gradient_law",
    "moves_cells",
    "step_law",
    "values",
]
