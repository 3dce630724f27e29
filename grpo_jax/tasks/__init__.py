"""Tasks: prompts and verifiable rewards behind one protocol (``grpo_jax.types.Task``)."""

from grpo_jax.tasks.arithmetic import Addition, Parity
from grpo_jax.tasks.chance import Chance, chance_level
from grpo_jax.tasks.countdown import Countdown
from grpo_jax.tasks.noise import Bernoulli, Flips, Gaussian
from grpo_jax.tasks.own import from_function
from grpo_jax.tasks.questions import Questions
from grpo_jax.tasks.scratchpad import Scratchpad
from grpo_jax.tasks.sequences import SequenceReward, SequenceTable
from grpo_jax.tasks.strings import Copy, Sort, UnequalSuffixes
from grpo_jax.tasks.verifiable import Problems, Verifiable

__all__ = [
    "Addition",
    "Bernoulli",
    "Chance",
    "Copy",
    "Countdown",
    "Flips",
    "Gaussian",
    "Parity",
    "Problems",
    "Questions",
    "Scratchpad",
    "SequenceReward",
    "SequenceTable",
    "Sort",
    "UnequalSuffixes",
    "Verifiable",
    "chance_level",
    "from_function",
]
