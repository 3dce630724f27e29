"""Every method of the table: its gradient by hand, histograms, permutations, invariances, coupling, runs."""

from dataclasses import replace
from typing import NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from experiments.formulas.token_weights import FORMS, token_weights
from grpo_jax import methods, presets
from grpo_jax.part import leaf_paths, put
from grpo_jax.parts.gains import clip_mask
from grpo_jax.surrogate import Method, advantages, objective
from grpo_jax.types import Coupling, Rollout, coupling

NAMES = list(methods.METHODS)
SHAPE = (2, 6, 5)
EXTRA = {
    "trl vllm": presets.trl(
        loss_type="grpo", use_vllm=True, off_policy_mask_threshold=0.05, delta=1.5, beta=0.1
    ),
    "trl entropy": presets.trl(
        loss_type="luspo",
        importance_sampling_level="sequence",
        top_entropy_quantile=0.5,
        scale_rewards="batch",
    ),
    "trl vespo vllm": presets.trl(
        loss_type="vespo", use_vllm=True, vllm_importance_sampling_mode="token_truncate"
    ),
    "trl gmpo": presets.trl(loss_type="gmpo", beta=0.1, top_entropy_quantile=0.5),
    "trl gdpo": presets.trl(multi_objective_aggregation="normalize_then_sum", reward_weights=[0.7]),
    "trl rloo": presets.trl(loss_type="rloo", normalize_advantages=True, reward_clip_range=(0.1, 0.9)),
    "verl passk": presets.verl(
        adv_estimator="grpo_passk", rollout_is="sequence", rollout_is_threshold="0.01_99"
    ),
    "verl gmpo": presets.verl(loss_mode="geo_mean", rollout_is="token", adv_estimator="reinforce_plus_plus"),
    "verl kl": presets.verl(
        use_kl_loss=True, kl_loss_type="low_var_kl+", loss_agg_mode="seq-mean-token-sum-norm"
    ),
    "verl remax": presets.verl(loss_mode="dppo_tv", adv_estimator="remax", loss_agg_mode="token-sum"),
    "verl gdpo": presets.verl(
        loss_mode="dppo_kl", adv_estimator="gdpo", use_kl_loss=True, kl_loss_type="abs"
    ),
    "verl clip_cov": presets.verl(loss_mode="clip_cov", clip_cov_ratio=1.0, clip_cov_lb=0.0),
    "verl kl_cov": presets.verl(loss_mode="kl_cov", kl_cov_ratio=0.3, ppo_kl_coef=0.5),
    "verl dro": presets.verl(loss_mode="dro", dro_beta=0.2, adv_estimator="gpg", use_kl_in_reward=True),
    "openrlhf": presets.openrlhf(
        estimator="reinforce", gamma=0.9, kl_reward_coef=0.1, dual_clip=1.5, is_correction_level="token"
    ),
    "openrlhf kl": presets.openrlhf(
        estimator="reinforce_baseline",
        kl_loss_coef=0.1,
        kl_estimator="k3",
        unbiased_gradient=True,
        is_correction_level="seq",
        is_correction_gating="tv",
        is_correction_threshold=[0.1],
        overlong_buffer_len=2,
        max_new_tokens=5,
    ),
    "verl rejection": presets.verl(
        rollout_rs="token_k3,seq_mean_k2",
        rollout_rs_threshold="0.1,0.2",
        rollout_is="sequence",
        rollout_is_batch_normalize=True,
        use_kl_loss=True,
    ),
    "prime_rl": presets.prime_rl(length_penalty={}, kl_tau=0.1),
    "prime_rl kpop": presets.prime_rl(type="kpop", algorithm="max_rl", kpop_threshold=0.03),
    "prime_rl masked": presets.prime_rl(
        type="masked_is",
        ratio_type="sequence",
        sequence_mask_low=0.4,
        geo_mask_high=1.4,
        teacher_tau=0.1,
        kl_tau=0.1,
    ),
    "areal m2po": presets.areal(
        use_decoupled_loss=True,
        m2_threshold=0.1,
        rejection_sampling={"upper": 1.5, "lower": 0.5},
        reward_norm={"mean_level": "group", "std_level": "batch", "mean_leave1out": True},
        mask_no_eos_with_zero=True,
        c_clip=1.5,
    ),
    "areal gspo": presets.areal(
        use_decoupled_loss=True,
        importance_sampling_level="sequence",
        rejection_sampling={"level": "token", "metric": "kl_k3", "upper": 0.1},
        adv_norm={"mean_level": "batch", "std_level": "group"},
        gae_lambda=0.9,
        kl_estimator="k3",
    ),
    "nemo_rl": presets.nemo_rl(
        ratio_clip_c=1.5,
        reference_policy_kl_penalty=0.1,
        kl_output_clamp_value=0.2,
        use_on_policy_kl_approximation=True,
        use_importance_sampling_correction=True,
        truncated_importance_sampling_type="seq-mask-tis",
        truncated_importance_sampling_ratio=1.8,
        truncated_importance_sampling_ratio_min=0.6,
    ),
    "nemo_rl gdpo": presets.nemo_rl(
        adv_estimator="gdpo", reward_weights=[0.7], seq_logprob_error_threshold=2.0
    ),
    "nemo_rl reinforce++": presets.nemo_rl(
        adv_estimator="reinforce_plus_plus",
        use_kl_in_reward=True,
        reference_policy_kl_penalty=0.1,
        positive_example_nll_weight=0.2,
    ),
    "open_instruct": presets.open_instruct(
        rho_mask_tv_divergence=True, rho_mask_upper_bound=1.2, kl_estimator=3
    ),
    "openrlhf gspo": presets.openrlhf(policy_loss_type="gspo", is_correction_level="token", estimator="rloo"),
}
ALL = methods.METHODS | EXTRA


class Batch(NamedTuple):
    rollout: Rollout
    logp: jax.Array


def batch(seed: int = 0, *, drift: float = 0.5, dtype: type = np.float64) -> Batch:
    """Ragged groups with holes, graded rewards, repeated tokens, off-policy; NaN where masked."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(SHAPE[2]) < rng.integers(2, SHAPE[2] + 1, SHAPE[:2])[:, :, None]).astype(dtype)
    mask[0, 0, 1] = 0
    logp = -rng.gamma(2.0, 0.5, SHAPE) - 0.01

    def near(scale: float) -> jax.Array:
        moved = np.minimum(logp + scale * rng.normal(size=SHAPE), -0.01)
        return jnp.asarray(np.where(mask > 0, moved, np.nan), dtype)

    rewards = rng.choice([0.0, 0.3, 1.0, 2.0], (*SHAPE[:2], 1))
    rewards[:, :3, 0] = (0.0, 1.0, 1.5)
    rollout = Rollout(
        prompts=jnp.arange(SHAPE[0]),
        tokens=jnp.asarray(rng.integers(0, 3, SHAPE)),
        mask=jnp.asarray(mask),
        rewards=jnp.asarray(rewards, dtype),
        multiplicity=jnp.ones(SHAPE[:2], dtype),
        sampling_logp=near(0.3),
        old_logp=near(drift),
        ref_logp=near(0.5),
        entropy=jnp.asarray(np.where(mask > 0, rng.gamma(2.0, 0.35, SHAPE), np.nan), dtype),
        baseline=jnp.full(SHAPE[:2], 0.5, dtype),
    )
    return Batch(rollout, jnp.asarray(np.where(mask > 0, logp, np.nan), dtype))


def gradient(method: Method, rollout: Rollout, logp: jax.Array) -> jax.Array:
    """∂J/∂log π_θ, runs summed."""
    advantage = advantages(method, rollout)
    return jax.grad(lambda at: jnp.sum(objective(method, rollout, advantage, at)))(logp)


def without_penalty(method: Method) -> Method:
    return replace(method, penalty=None)


def test_every_method_has_a_closed_form() -> None:
    assert list(FORMS) == NAMES


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_the_closed_form(name: str) -> None:
    method = without_penalty(methods.get(name))
    for seed in range(2):
        rollout, logp = batch(seed)
        expected = token_weights(name, rollout, logp)
        np.testing.assert_allclose(
            gradient(method, rollout, logp), expected.gradient, rtol=1e-9, atol=1e-12, err_msg=f"seed {seed}"
        )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", [n for n in NAMES if hasattr(methods.get(n).gain, "held")])
def test_clip_is_active_where_the_closed_form_was_checked(name: str) -> None:
    method, sides = methods.get(name), []
    for seed in range(2):
        rollout, logp = batch(seed)
        log_ratio = method.ratio(rollout, jnp.where(rollout.mask > 0, logp, rollout.old_logp))
        out = clip_mask(method.gain, jnp.nan_to_num(log_ratio), advantages(method, rollout))
        sides.append([bool(jnp.any(side & (rollout.mask > 0))) for side in out])
    one_sided = name in ("tic_grpo", "tic_grpo_truncated", "tic_grpo_length")
    assert np.any(sides, 0).tolist() == ([True, False] if one_sided else [True, True])


def repeated(x: np.ndarray, counts: tuple[int, ...]) -> np.ndarray:
    return np.repeat(np.asarray(x)[:, : len(counts)], counts, axis=1)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", list(ALL))
def test_histogram_is_its_samples(name: str) -> None:
    counts = (3, 1, 2)
    rollout, logp = batch(3)
    samples = jax.tree.map(lambda x: jnp.asarray(repeated(x, counts)), rollout._replace(prompts=None))
    samples = samples._replace(prompts=rollout.prompts)
    absent = jnp.full_like(rollout.multiplicity, 0).at[:, :3].set(jnp.asarray(counts, float))
    histogram = rollout._replace(
        multiplicity=absent, rewards=jnp.where(absent[:, :, None] > 0, rollout.rewards, jnp.nan)
    )
    method, spelled = ALL[name], jnp.asarray(repeated(logp, counts))
    value = [
        objective(method, r, advantages(method, r), at) for r, at in ((histogram, logp), (samples, spelled))
    ]
    np.testing.assert_allclose(value[0], value[1], rtol=1e-12, atol=1e-12)
    merged = np.add.reduceat(np.asarray(gradient(method, samples, spelled)), [0, 3, 4], axis=1)
    folded = np.asarray(gradient(method, histogram, logp))
    assert np.all(folded[:, 3:] == 0)
    np.testing.assert_allclose(folded[:, :3], merged, rtol=1e-11, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", list(ALL))
def test_order_of_a_group_does_not_matter(name: str) -> None:
    rollout, logp = batch(4)
    order = jnp.asarray([3, 1, 5, 0, 4, 2])
    moved = jax.tree.map(lambda x: x.at[0].set(x[0, order]), rollout._replace(prompts=None))
    moved = moved._replace(prompts=rollout.prompts)
    before, after = (
        gradient(ALL[name], rollout, logp),
        gradient(ALL[name], moved, logp.at[0].set(logp[0, order])),
    )
    np.testing.assert_allclose(after[0], before[0, order], rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(after[1], before[1], rtol=1e-10, atol=1e-13)


SHIFTED = {"reinforce", "max_rl", "max_rl_successes", "tic_grpo_length"}
"""Methods whose advantages change when a constant is added to every reward."""
LINEAR = {
    *("grpo_v32", "gtpo", "dr_grpo", "gpg", "rloo", "reinforce", "reinforce_baseline", "opo"),
}
"""Methods whose advantages are proportional to the rewards."""
MIXED = {"grpo_kl_in_reward", "reinforce_plus_plus"}
"""Methods with a divergence in the reward: neither."""


@pytest.mark.usefixtures("x64")
@hypothesis.settings(max_examples=8, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(scale=st.floats(0.3, 3.0), shift=st.floats(-3.0, 3.0))
def test_affine_maps_of_the_reward(scale: float, shift: float) -> None:
    rollout, _ = batch(5)
    hypothesis.assume(abs(scale - 1) > 0.1 and abs(shift) > 0.1)
    live = np.asarray(rollout.mask) > 0
    distinct = {repr((m.shaping, m.advantage)): n for n, m in methods.METHODS.items()}
    for name in distinct.values():
        method = methods.get(name)

        def at(rewards: jax.Array, method: Method = method) -> np.ndarray:
            return np.broadcast_to(advantages(method, rollout._replace(rewards=rewards)), live.shape)[live]

        base, moved, grown = at(rollout.rewards), at(rollout.rewards + shift), at(rollout.rewards * scale)
        assert np.allclose(moved, base, rtol=1e-7, atol=1e-9) == (name not in SHIFTED), name
        # 1e-8 inside the root of the whitening moves it by up to 1e-8/(2 variance scale²) < 1e-6
        kept, linear = (np.allclose(grown, x, rtol=1e-6, atol=1e-9) for x in (base, scale * base))
        assert linear == (name in LINEAR), name
        assert kept == (name not in LINEAR | MIXED), name


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", list(ALL))
def test_coupling_is_declared(name: str) -> None:
    method = ALL[name]
    rollout, logp = batch(6)
    rollout = rollout._replace(rewards=rollout.rewards.at[0, 0].set(3.0))
    other = rollout._replace(
        rewards=rollout.rewards.at[1].add(jnp.asarray([[0.5], [2.0], [0.0], [1.0], [0.0], [0.3]])),
        mask=rollout.mask.at[1, 0, 1:].set(0.0).at[1, 4].set(0.0),
        entropy=rollout.entropy.at[1].multiply(5.0),
    )
    before, after = gradient(method, rollout, logp)[0], gradient(method, other, logp)[0]
    unchanged = np.allclose(before, after, rtol=1e-12, atol=1e-15)
    assert unchanged == (coupling(method) < Coupling.BATCH)
    alone = rollout._replace(rewards=rollout.rewards.at[0, 3].add(1.7))
    inside = gradient(method, alone, logp)[0, 0]
    if coupling(method) == Coupling.NOTHING:
        np.testing.assert_array_equal(before[0], inside)
    else:
        assert not np.allclose(gradient(method, alone, logp)[0], before, rtol=1e-9)


def spread_numbers(method: Method) -> tuple[Method, list[Method]]:
    """A method whose every finite number is [R], and the R methods it stands for."""
    runs = [method, method]
    for path, value in leaf_paths(method).items():
        if np.isfinite(value):
            pair = (value, value * 0.9)
            method = put(method, path, jnp.asarray(pair))
            runs = [put(run, path, number) for run, number in zip(runs, pair, strict=True)]
    return method, runs


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", list(ALL))
def test_runs_behind_are_runs_alone(name: str) -> None:
    many, alone = spread_numbers(ALL[name])
    parts = [batch(seed) for seed in (7, 8)]
    rollout = jax.tree.map(lambda *own: jnp.stack(own, -1), *(p.rollout for p in parts))
    rollout = rollout._replace(prompts=jnp.arange(SHAPE[0]))
    logp = jnp.stack([p.logp for p in parts], -1)
    together = gradient(many, rollout, logp)
    values = objective(many, rollout, advantages(many, rollout), logp)
    for run, (method, part) in enumerate(zip(alone, parts, strict=True)):
        value = objective(method, part.rollout, advantages(method, part.rollout), part.logp)
        np.testing.assert_allclose(values[run], value, rtol=1e-12)
        np.testing.assert_allclose(together[..., run], gradient(method, *part), rtol=1e-11, atol=1e-13)


def test_table_names_every_method_and_paper() -> None:
    text = methods.table()
    assert text.count("\n") == len(NAMES) + 1
    assert all(f"| `{name}` |" in text for name in NAMES)
    rows = [line.replace("\\|", "") for line in text.splitlines()]
    assert all(row.count("|") == 5 for row in rows)


def test_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ValueError, match="dr_grpo"):
        methods.get("dr_gpro")
