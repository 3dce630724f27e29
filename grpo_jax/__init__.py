"""Exact, massively vmapped simulations of GRPO and its relatives.

>>> import grpo_jax as gj
>>> config = gj.Config(
...     policy=gj.ActionPolicy.uniform(contexts=1, actions=2),
...     task=gj.Questions(table=[[1.0, 0.0]]),
...     method=gj.methods.grpo,
...     optimizer=gj.SGD(learning_rate=0.1),
... )
>>> data = gj.sweep(config, {"kl_coef": [0.0, 0.04]}, seeds=4, iterations=50, progress=False)
>>> bool((data.expected_reward.isel(iteration=-1) > 0.5).all())
True
"""

from importlib.metadata import version

from grpo_jax import diagnostics, measures, methods, presets, theory, train
from grpo_jax.behavior import Age, Behavior, Noise, Proximal, Rounded
from grpo_jax.collectors import Counts, Sampled
from grpo_jax.config import Config, Loop
from grpo_jax.decoding import Decoding
from grpo_jax.exact import Exact
from grpo_jax.measures import measure
from grpo_jax.optimizers import SGD, Adam, AdamW, ClippedNorm, Custom, HeavyBall, Lion, RMSProp
from grpo_jax.part import number, part, static
from grpo_jax.policies import ActionPolicy, MLPPolicy, NetworkPolicy, TransformerPolicy, TreePolicy
from grpo_jax.refill import Refill
from grpo_jax.sequences import Sequences
from grpo_jax.surrogate import Method
from grpo_jax.sweeps import Unfinished, load, sweep
from grpo_jax.tasks import (
    Addition,
    Bernoulli,
    Copy,
    Countdown,
    Flips,
    Gaussian,
    Parity,
    Questions,
    Scratchpad,
    SequenceReward,
    SequenceTable,
    Sort,
    UnequalSuffixes,
    Verifiable,
    chance_level,
    from_function,
)
from grpo_jax.types import Rollout

__version__ = version("grpo_jax")

__all__ = [
    "SGD",
    "ActionPolicy",
    "Adam",
    "AdamW",
    "Addition",
    "Age",
    "Behavior",
    "Bernoulli",
    "ClippedNorm",
    "Config",
    "Copy",
    "Countdown",
    "Counts",
    "Custom",
    "Decoding",
    "Exact",
    "Flips",
    "Gaussian",
    "HeavyBall",
    "Lion",
    "Loop",
    "MLPPolicy",
    "Method",
    "NetworkPolicy",
    "Noise",
    "Parity",
    "Proximal",
    "Questions",
    "RMSProp",
    "Refill",
    "Rollout",
    "Rounded",
    "Sampled",
    "Scratchpad",
    "SequenceReward",
    "SequenceTable",
    "Sequences",
    "Sort",
    "TransformerPolicy",
    "TreePolicy",
    "UnequalSuffixes",
    "Unfinished",
    "Verifiable",
    "chance_level",
    "diagnostics",
    "from_function",
    "load",
    "measure",
    "measures",
    "methods",
    "number",
    "part",
    "presets",
    "static",
    "sweep",
    "theory",
    "train",
]
