"""Tasks: prompts and verifiable rewards behind one protocol (``grpo_jax.types.Task``)."""

from grpo_jax.tasks.noise import Bernoulli, Gaussian
from grpo_jax.tasks.questions import Questions
from grpo_jax.tasks.sequences import SequenceReward, SequenceTable

__all__ = ["Bernoulli", "Gaussian", "Questions", "SequenceReward", "SequenceTable"]
