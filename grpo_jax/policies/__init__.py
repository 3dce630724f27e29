"""Policies: finite actions, sequence trees and networks behind one protocol (``grpo_jax.types.Policy``)."""

from grpo_jax.policies.actions import ActionPolicy
from grpo_jax.policies.neural import MLPPolicy
from grpo_jax.policies.tree import TreePolicy, share_rows

__all__ = ["ActionPolicy", "MLPPolicy", "TreePolicy", "share_rows"]
