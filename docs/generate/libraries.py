"""What every library computes at its defaults, loss by loss, read off the presets."""

from __future__ import annotations

from typing import NamedTuple

from grpo_jax.methods import effective
from grpo_jax.parts.advantages import NoBaseline
from grpo_jax.parts.others import Apart, Others
from grpo_jax.presets.registry import parse
from grpo_jax.presets.traits import centre, convention, denominator, divisor, find, kl, level
from grpo_jax.surrogate import Method

LOSSES = {
    "trl": ("dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo", "rloo", "gmpo"),
    "verl": (
        "vanilla",
        "gspo",
        "sapo",
        "cispo",
        "geo_mean",
        "kl_cov",
        "gpg",
        "dppo_tv",
        "dppo_kl",
    ),
    "openrlhf": ("ppo", "gspo"),
    "liger": (
        "dapo",
        "grpo",
        "bnpo",
        "dr_grpo",
        "cispo",
        "sapo",
        "luspo,importance_sampling_level=sequence,beta=0",
        "vespo",
    ),
    "prime_rl": ("default", "icepop", "ipo", "kpop", "masked_is"),
    "areal": (),
    "nemo_rl": ("grpo", "gdpo", "reinforce_plus_plus", "raw_reward"),
    "open_instruct": ("dapo", "cispo"),
}
"""Every loss by name that is modelled, with the options it needs; the library's own default first."""
MEANS = {"group": "the group's mean", "others": "the mean of the others", "batch": "the batch's mean"}
DIVISORS = {"level": "the group's mean", "batch": "the batch's σ", "nothing": "nothing"}
DENOMINATORS = {
    "PerSequence": "each answer's tokens, then answers",
    "PerToken": "all tokens of the batch",
    "Constant": "a constant",
    "TokenSum": "summed",
}
UNITS = {"token": "token", "mean": "answer, geometric mean", "whole": "answer, product"}
PLACES = {
    "reward": "in the reward",
    "returns": "in the returns",
    "advantage": "in the advantage, token by token",
    "loss": "in the loss",
    "ratio": "times the ratio",
}


class Line(NamedTuple):
    """One loss of one library; a slot that no word stands for is told as code between backticks."""

    spec: str
    less: str
    over: str
    ratio: str
    gain: str
    mean: str
    penalty: str
    corrections: str


def lines() -> list[Line]:
    """Library after library."""
    specs = [f"{library}:{loss}" for library, losses in LOSSES.items() for loss in losses] + ["areal"]
    return [line(spec) for spec in specs]


def line(spec: str) -> Line:
    """What a name of ``presets.parse`` computes."""
    method = parse(spec)
    return Line(
        spec,
        _baseline(method),
        _divisor(method),
        UNITS.get(level(method) or "") or _code(method, "ratio"),
        _code(method, "gain"),
        DENOMINATORS.get(denominator(method) or "") or _code(method, "reduction"),
        _penalty(method),
        _code(method, "corrections"),
    )


def _baseline(method: Method) -> str:
    if find(method.shaping, Apart):
        return _code(method, "shaping")
    if find(method.advantage, NoBaseline):
        return "nothing"
    return MEANS.get(centre(method) or "") or _code(method, "advantage")


def _divisor(method: Method) -> str:
    found, others = convention(method), find(method.advantage, Others)
    if found is not None:
        return f"σ, ddof {found[0]:g}" + (f", + {found[1]:g}" if found[1] else "")
    if others is not None:
        return f"σ of the others, ddof {others.ddof:g}, + {others.eps:g}"
    return DIVISORS.get(divisor(method) or "") or _code(method, "advantage")


def _penalty(method: Method) -> str:
    found = kl(method)
    if found is None:
        return _code(method, "penalty")
    place, kind, beta, _ = found
    return "none" if kind is None else f"{kind.__name__.lower()} {PLACES[place]}, β = {beta:g}"


def _code(method: Method, slot: str) -> str:
    found = effective(method, slot, defaults=True)
    return found if found == "none" else f"`{found}`"
