"""What a configuration does: small functions, each a condition, a size at the settings, and a claim."""

import jax

from grpo_jax.check.hazards import penalty, rewards, sampler, steps
from grpo_jax.check.hazards.finding import Finding, Level
from grpo_jax.check.setting import Setting

HAZARDS = (*sampler.HAZARDS, *penalty.HAZARDS, *steps.HAZARDS, *rewards.HAZARDS)

__all__ = ["HAZARDS", "Finding", "Level", "findings"]


def findings(setting: Setting) -> list[Finding]:
    """Everything that fires, the worst first."""
    with jax.enable_x64(True):
        found = [finding for hazard in HAZARDS if (finding := hazard(setting)) is not None]
    return sorted(found, key=lambda finding: -finding.level)
