"""What a library's penalty descends: its exact expected gradient, beside those of divergences.

A penalty's name says what it estimates, which is not what it descends (claims A3 and E1). Here both of a
preset's objectives, with its coefficient and with 0, are differentiated in expectation over all groups of a
small random tree; what the coefficient adds is held against ``divergences``. Nothing is read off the parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import methods, presets
from grpo_jax.config import Config, Loop
from grpo_jax.exact.divergences import FORWARD, divergence_gradients
from grpo_jax.exact.expectation import Exact
from grpo_jax.exact.gradient import expected_gradient
from grpo_jax.part import leaf_paths, put
from grpo_jax.policies import TreePolicy
from grpo_jax.presets.compare import random_batch
from grpo_jax.sequences import Sequences
from grpo_jax.surrogate import Method, advantages
from grpo_jax.tasks import SequenceTable

COEF = 0.04
"""The coefficient that every row is evaluated with; GRPO's own (arXiv:2402.03300)."""
DRIFT = 0.05
"""Standard deviation of logits since the answers were drawn, where a row is evaluated off-policy."""
NOTHING = "nothing"
EXACTLY = 1e-6
"""Sine of the angle between two gradients below which they are one."""

LIBRARIES: Mapping[str, str] = {
    "trl": "beta",
    "trl:grpo,importance_sampling_level=sequence": "beta",
    "trl:grpo,use_bias_correction_kl=False": "beta",
    "trl:gmpo": "beta",
    "trl:rloo": "beta",
    "trl:rloo,normalize_advantages=True": "beta",
    "liger": "beta",
    "verl,use_kl_loss=True": "kl_loss_coef",
    "verl,use_kl_loss=True,kl_loss_type=kl": "kl_loss_coef",
    "verl,use_kl_loss=True,kl_loss_type=abs": "kl_loss_coef",
    "verl,use_kl_loss=True,kl_loss_type=mse": "kl_loss_coef",
    "verl,use_kl_loss=True,kl_loss_type=low_var_kl+": "kl_loss_coef",
    "verl,use_kl_in_reward=True": "kl_coef",
    "verl,use_kl_in_reward=True,norm_adv_by_std_in_grpo=False": "kl_coef",
    "verl,use_kl_in_reward=True,norm_adv_by_std_in_grpo=False,kl_penalty=low_var_kl": "kl_coef",
    "verl,use_kl_in_reward=True,adv_estimator=reinforce_plus_plus": "kl_coef",
    "openrlhf,kl_estimator=k1": "kl_loss_coef",
    "openrlhf,kl_estimator=k2": "kl_loss_coef",
    "openrlhf,kl_estimator=k3": "kl_loss_coef",
    "openrlhf,kl_estimator=k3,unbiased_gradient=True": "kl_loss_coef",
    "openrlhf": "kl_reward_coef",
    "openrlhf,estimator=reinforce": "kl_reward_coef",
    "areal": "kl_ctl",
    "areal,kl_estimator=k3": "kl_ctl",
    "prime_rl": "kl_tau",
    "prime_rl:masked_is": "kl_tau",
    "nemo_rl": "reference_policy_kl_penalty",
    "nemo_rl,reference_policy_kl_type=k1": "reference_policy_kl_penalty",
    "nemo_rl,reference_policy_kl_type=k2": "reference_policy_kl_penalty",
    "nemo_rl,use_on_policy_kl_approximation=True": "reference_policy_kl_penalty",
    "nemo_rl:reinforce_plus_plus,use_kl_in_reward=True": "reference_policy_kl_penalty",
    "open_instruct": "beta",
    "open_instruct,filter_zero_std_samples=False": "beta",
    "open_instruct,filter_zero_std_samples=False,kl_estimator=0": "beta",
    "open_instruct,filter_zero_std_samples=False,kl_estimator=1": "beta",
    "open_instruct,filter_zero_std_samples=False,kl_estimator=3": "beta",
}
"""A library's setting, as ``presets.parse`` takes it -> the option that is its penalty's coefficient."""

PAPERS: Mapping[str, str] = {
    "grpo": "penalty.coef",
    "grpo_direct_kl": "penalty.coef",
    "grpo_v32": "penalty.coef",
    "grpo_kl_in_reward": "shaping.coef",
    "reinforce_plus_plus": "advantage.inner.kl_coef",
    "reinforce_plus_plus_baseline": "penalty.coef",
}
"""A method of ``methods.METHODS`` -> where its penalty's coefficient is."""


REPORT = """# What every penalty descends

Written by `python -m grpo_jax penalties`: exact gradients, over all groups of three answers of three tokens \
on a random tree with rewards 0 and 1, of what a coefficient of {coef:g} adds to each setting's loss. No \
entry is typed in. A coefficient of 0 is the setting's own default: there the row says what the penalty \
would descend.

- **place**: "reward" where advantages depend on the coefficient, else "loss".
- **descends**: the divergence whose gradient this is, up to a factor; after ≈ the nearest one, with the \
sine of the angle between the two. "Token by token" holds the chance to meet each prefix; a divergence \
without these words is that of whole answers.
- **off ∇KL(π‖π_ref)**: the sine of the angle to the gradient of KL(π‖π_ref) of whole answers, the \
divergence that papers write down.
- **off-policy**: the same where logits have moved by {drift:g} (standard deviation) since the answers were \
drawn, no clip touched.
- **÷ spread**: whether doubling all rewards changes the penalty's gradient. Where it does, β counts less \
the more rewards spread, and in a group whose rewards tie β does not count at all.

Answers have one length here, so that denominators only scale; clamps at ±10 and ±20 are not reached.

"""


class Descent(NamedTuple):
    """What a setting's penalty descends, and whether it is on."""

    on: str
    """Name of the nearest divergence where π_old = π; ``NOTHING`` where the gradient vanishes."""
    on_sine: float
    """Sine of the angle to that divergence's gradient."""
    off: str
    """The same where π has left the policy that sampled."""
    off_sine: float
    missed: float
    """Sine of the angle to ∇KL(π‖π_ref) of whole answers where π_old = π; 1 where they point apart."""
    in_reward: bool
    """Whether advantages depend on the coefficient."""
    divided: bool
    """Whether the gradient changes where all rewards are doubled: a spread of rewards divides it."""
    default: float
    """The setting's own coefficient."""


class Point(NamedTuple):
    """A random tree, three policies on it, and rewards 0 or 1."""

    policy: TreePolicy
    now: np.ndarray
    """[1, nodes, V]."""
    old: np.ndarray
    reference: np.ndarray
    rewards: np.ndarray
    """[1, S]."""


def point(seed: int = 0, *, horizon: int = 3, drift: float = DRIFT) -> Point:
    """Answers of ``horizon`` tokens out of three; π_old's logits lie ``drift`` (standard deviation) away."""
    rng = np.random.default_rng(seed)
    space = Sequences(vocab=3, horizon=horizon)
    shape = (1, space.offsets[-1], space.vocab)
    now, reference = rng.normal(size=(2, *shape))
    old = now + drift * rng.normal(size=shape)
    return Point(TreePolicy.uniform(space), now, old, reference, rng.integers(0, 2, (1, space.size)) * 1.0)


def setting(label: str, coef: Any = None) -> Method:
    """The method of a row, with this coefficient or its own."""
    if label in LIBRARIES:
        return presets.parse(label, **({} if coef is None else {LIBRARIES[label]: coef}))
    method = methods.get(label)
    return method if coef is None else put(method, PAPERS[label], coef)


def default(label: str) -> float:
    """The coefficient that a setting has unless told otherwise."""
    once, twice, own = (leaf_paths(setting(label, coef)) for coef in (COEF, 2 * COEF, None))
    path = next(path for path, leaf in once.items() if leaf != twice[path])
    return float(own.get(path, 0.0)) * COEF / float(once[path])


def pull(label: str, at: Point, *, group_size: int = 3) -> np.ndarray:
    """What the penalty adds to the expected gradient of the loss, over its coefficient: [3, 1, nodes, V].

    On-policy, off-policy, and on-policy with all rewards doubled; exact, over all groups of ``group_size``.
    """
    places = np.repeat([[0, 1, 2]], 2, 0).ravel()
    now, anchor = (np.stack([x] * 6, -1) for x in (at.now, at.reference))
    old = np.stack([(at.now, at.old, at.now)[i] for i in places], -1)
    rewards = np.stack([(at.rewards, at.rewards, 2 * at.rewards)[i] for i in places], -1)
    config = Config(
        policy=at.policy,
        task=SequenceTable(space=at.policy.space, table=rewards),
        method=setting(label, jnp.repeat(jnp.array([COEF, 0.0]), 3)),
        loop=Loop(group_size=group_size),
        expectation=Exact(cells=0),
    )
    found = np.asarray(expected_gradient(config, now, old=old, reference=anchor))
    return np.stack([found[..., i + 3] - found[..., i] for i in range(3)]) / COEF


def sine(gradient: np.ndarray, direction: np.ndarray) -> float:
    """Sine of the angle between two gradients; 1 where they point apart, or where one of them is 0.

    Arrays of one shape.
    """
    norms = np.linalg.norm(gradient) * np.linalg.norm(direction)
    cosine = float((gradient * direction).sum() / norms) if norms else 0.0
    return math.sqrt(max(1 - cosine**2, 0.0)) if cosine > 0 else 1.0


def nearest(gradient: np.ndarray, divergences: Mapping[str, np.ndarray]) -> tuple[str, float]:
    """The divergence whose gradient a gradient is closest to, by the angle, and the angle's sine.

    Arrays of one shape.
    """
    if np.linalg.norm(gradient) < EXACTLY * np.linalg.norm(divergences[FORWARD]):
        return NOTHING, 0.0
    sines = {name: sine(gradient, direction) for name, direction in divergences.items()}
    name = min(sines, key=sines.__getitem__)
    return name, sines[name]


def descent(label: str, at: Point) -> Descent:
    """What the penalty of a row descends at a point."""
    on, off, doubled = pull(label, at)
    now, old, reference = (jnp.asarray(x)[..., None] for x in (at.now, at.old, at.reference))
    here, there = (
        {name: np.asarray(gradient)[..., 0] for name, gradient in found.items()}
        for found in (divergence_gradients(at.policy, now, reference, old=q) for q in (now, old))
    )
    batch, _ = random_batch()
    with_it, without = (advantages(setting(label, coef), batch) for coef in (COEF, 0.0))
    return Descent(
        *nearest(on, here),
        *nearest(off, there),
        missed=sine(on, here[FORWARD]),
        in_reward=not bool(jnp.allclose(with_it, without, atol=1e-9)),
        divided=not np.allclose(on, doubled, atol=EXACTLY * np.abs(here[FORWARD]).max()),
        default=default(label),
    )


def rows() -> dict[str, Descent]:
    """What the penalty of every setting descends, in double precision."""
    with jax.enable_x64(True):
        at = point()
        return {label: descent(label, at) for label in (*LIBRARIES, *PAPERS)}


def table(found: Mapping[str, Descent] | None = None) -> str:
    """All settings as a Markdown table."""
    found = rows() if found is None else found
    lines = [
        "| setting | coefficient | place | where the policy sampled, descends | off ∇KL(π‖π_ref) "
        "| off-policy, descends | ÷ spread |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, row in found.items():
        cells = [
            f"`{label}`",
            f"{row.default:g}",
            "reward" if row.in_reward else "loss",
            _named(row.on, row.on_sine),
            "–" if row.on == NOTHING else _share(row.missed),
            _named(row.off, row.off_sine),
            "yes" if row.divided else "no",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _share(apart: float) -> str:
    return "0" if apart < EXACTLY else f"{apart:.2f}"


def _named(name: str, apart: float) -> str:
    return name if apart < EXACTLY else f"≈ {name} ({_share(apart)})"


def report() -> str:
    """The table with what it says: docs/penalties.md."""
    return REPORT.format(coef=COEF, drift=DRIFT) + table() + "\n"
