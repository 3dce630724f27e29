"""Policies: finite actions, sequence trees and networks behind one protocol (``grpo_jax.types.Policy``)."""

from grpo_jax.policies.actions import ActionPolicy
from grpo_jax.policies.adapter import NetworkPolicy
from grpo_jax.policies.neural import MLPPolicy
from grpo_jax.policies.transformer import TransformerPolicy
from grpo_jax.policies.tree import TreePolicy, share_rows

__all__ = ["ActionPolicy", "MLPPolicy", "NetworkPolicy", "TransformerPolicy", "TreePolicy", "share_rows"]
