"""Tasks: prompts and verifiable rewards behind one protocol (``grpo_jax.types.Task``)."""

from grpo_jax.tasks.arithmetic import Addition
from grpo_jax.tasks.noise import Bernoulli, Flips, Gaussian
from grpo_jax.tasks.questions import Questions
from grpo_jax.tasks.sequences import SequenceReward, SequenceTable
from grpo_jax.tasks.verifiable import Problems, Verifiable

__all__ = [
    "Addition",
    "Bernoulli",
    "Flips",
    "Gaussian",
    "Problems",
    "Questions",
    "SequenceReward",
    "SequenceTable",
    "Verifiable",
]
