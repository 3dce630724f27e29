"""What a hazard is: a condition on a setting, a size at that setting, and the claim that shows it."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from grpo_jax.check.setting import Setting
from grpo_jax.presets import PRESETS
from grpo_jax.presets.consequences import DISTANCE, HALF, KEPT, SMALL
from grpo_jax.presets.traits import convention
from grpo_jax.theory import Convention

WORSE, HARD, CUT, VOCABULARY = 0.7, SMALL, 0.1, 32_000
"""What the reference gives to the worse of two answers; the success rate of a hard prompt; the share of
answers that a budget cuts off; tokens that an engine chooses from. HALF, KEPT and DISTANCE are those of
``presets.consequences``: a middling success rate, a likely token, chi^2 of one token."""
__all__ = ["CUT", "DISTANCE", "HALF", "HARD", "KEPT", "VOCABULARY", "WORSE", "Finding", "Level"]
__all__ += ["named", "percent", "rule"]


class Level(enum.IntEnum):
    """How bad."""

    NOTE = 0
    KNOW = 1
    HAZARD = 2

    @property
    def word(self) -> str:
        """As it is printed and as ``--fail-on`` takes it."""
        return ("note", "worth knowing", "hazard")[self]


class Finding(NamedTuple):
    """One thing that a configuration does."""

    name: str
    level: Level
    claim: str
    """As the ledger numbers them."""
    what: str
    """The setting, in the library's words."""
    says: str
    """What it does, with its size."""
    size: float
    measures: str
    """What the size is."""


NAMES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "trl": {
            "beta": "beta",
            "spread": "scale_rewards",
            "group": "num_generations",
            "epochs": "num_iterations",
            "clip": "epsilon_high",
            "mean": "loss_type",
            "ratio": "importance_sampling_level",
            "mask": "mask_truncated_completions",
        },
        "verl": {
            "beta": "kl_loss_coef",
            "beta_reward": "kl_coef",
            "spread": "norm_adv_by_std_in_grpo",
            "group": "rollout.n",
            "epochs": "ppo_epochs, ppo_mini_batch_size",
            "clip": "clip_ratio_high",
            "mean": "loss_agg_mode",
            "ratio": "loss_mode",
        },
        "openrlhf": {
            "beta": "kl.init_coef",
            "spread": "estimator",
            "group": "n_samples_per_prompt",
            "epochs": "max_epochs, train.batch_size",
            "clip": "eps_clip_low_high",
            "mean": "token_level_loss",
            "ratio": "policy_loss_type",
        },
        "areal": {
            "beta": "kl_ctl",
            "spread": "reward_norm.std_level",
            "group": "n_samples",
            "epochs": "ppo_n_minibatches",
            "clip": "eps_clip_higher",
            "ratio": "importance_sampling_level",
            "mask": "mask_no_eos_with_zero",
        },
        "nemo_rl": {
            "beta": "reference_policy_kl_penalty",
            "spread": "normalize_rewards",
            "group": "num_generations_per_prompt",
            "epochs": "train_global_batch_size",
            "clip": "ratio_clip_max",
            "mean": "token_level_loss",
            "ratio": "sequence_level_importance_ratios",
            "mask": "overlong_filtering",
        },
        "open_instruct": {
            "beta": "beta",
            "spread": "advantage_normalization_type",
            "group": "num_samples_per_prompt_rollout",
            "epochs": "num_epochs, num_mini_batches",
            "clip": "clip_higher",
            "mean": "loss_denominator",
            "mask": "mask_truncated_completions",
        },
        "prime_rl": {"group": "group_size", "spread": "algorithm", "ratio": "ratio_type"},
    }
)
"""Library -> concept -> its own name for it."""
PLAIN: Mapping[str, str] = MappingProxyType(
    {
        "beta": "the penalty's weight",
        "spread": "the spread",
        "group": "the group size",
        "epochs": "optimizer steps on a batch",
        "clip": "the clip",
        "mean": "the denominator",
        "ratio": "the ratio",
        "mask": "the mask",
    }
)


def named(setting: Setting, concept: str, value: object = None) -> str:
    """The library's name of a concept, and its value."""
    own = NAMES.get(setting.library, {})
    word = own.get(concept) or own.get(concept.partition("_")[0]) or PLAIN[concept.partition("_")[0]]
    if value is None:
        option = word.rpartition(".")[2]
        default = inspect.signature(PRESETS[setting.library]).parameters.get(option)
        value = setting.options.get(option, None if default is None else default.default)
    if value is None or isinstance(value, bool):
        return word if value is None else f"{word} {str(value).lower()}"
    return f"{word} {value:g}" if isinstance(value, (int, float)) else f"{word} {value}"


def rule(setting: Setting) -> Convention | None:
    """The group's divisor as theory has it; None where there is none, or not one for all runs."""
    found = convention(setting.method)
    return None if found is None else Convention(ddof=found[0], added=found[1])


def percent(share: float) -> str:
    """A share, with a decimal where it is near either end."""
    return f"{100 * share:.3g} %"
