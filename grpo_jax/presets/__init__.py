"""What published libraries compute, as methods: the library's own option names in, a ``Method`` out.

Versions: TRL 1.16.0, verl 0.9.1, OpenRLHF 0.11.2, Liger-Kernel 0.8.5, prime-rl 0.8.0, AReaL 1.0.4,
NeMo-RL 0.6.0, open-instruct 0.3.0.
``sampling`` reads the same options and says who samples.
"""

from grpo_jax.presets.areal import areal
from grpo_jax.presets.compare import Comparison, compare, diff
from grpo_jax.presets.consequences import Consequence, Settings, consequences
from grpo_jax.presets.engines import Sampling
from grpo_jax.presets.liger import liger
from grpo_jax.presets.nemo_rl import nemo_rl
from grpo_jax.presets.open_instruct import open_instruct
from grpo_jax.presets.openrlhf import openrlhf
from grpo_jax.presets.options import NotModelled
from grpo_jax.presets.prime_rl import prime_rl
from grpo_jax.presets.registry import PRESETS, parse, sampling
from grpo_jax.presets.trl import trl
from grpo_jax.presets.verl import verl

__all__ = [
    "PRESETS",
    "Comparison",
    "Consequence",
    "NotModelled",
    "Sampling",
    "Settings",
    "areal",
    "compare",
    "consequences",
    "diff",
    "liger",
    "nemo_rl",
    "open_instruct",
    "openrlhf",
    "parse",
    "prime_rl",
    "sampling",
    "trl",
    "verl",
]
