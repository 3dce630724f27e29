"""Trials of what comes from outside this package, before anything trains with it."""

from grpo_jax.user_parts.methods import check_method, keeps_runs_apart, respects_multiplicity, trial
from grpo_jax.user_parts.problems import check_optimizer, check_problem

__all__ = [
    "check_method",
    "check_optimizer",
    "check_problem",
    "keeps_runs_apart",
    "respects_multiplicity",
    "trial",
]
