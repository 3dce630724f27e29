"""Sampler corrections of open-instruct 0.3.0 and NeMo-RL 0.6.0 as single parts, against what these computed.

What surrounds the correction is written out as a method; ``test_golden`` has the same cases by the presets.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.parts.advantages import GroupSpread, Normalized
from grpo_jax.parts.gains import Clip
from grpo_jax.parts.ratios import SequenceMean, Token
from grpo_jax.parts.reductions import PerToken
from grpo_jax.parts.sampler import MismatchRatio, SamplerMask, SamplerMismatch
from grpo_jax.surrogate import Method, loss
from grpo_jax.types import Evaluation, Rollout

pytestmark = pytest.mark.usefixtures("x64")

FOLDER = Path(__file__).parent / "golden"
OPEN = {"advantage": Normalized(scale=None), "gain": Clip(low=0.2, high=0.272)}
NEMO = {"advantage": Normalized(scale=GroupSpread(ddof=1.0), eps=1e-6), "gain": Clip()}
GEOMETRIC = MismatchRatio(ratio=SequenceMean())
CASES = {
    # rho_clamp_lower_bound .8, rho_clamp_upper_bound 1.25
    "open-instruct__dapo__9a0f1b__0": (OPEN, SamplerMismatch(ratio=Token(clamp=10.0), low=0.8, high=1.25)),
    # rho_mask_lower_bound .5, rho_mask_upper_bound 1.5, no clamp: IcePop
    "open-instruct__dapo__37d633__0": (OPEN, SamplerMask(low=0.5, high=1.5)),
    # rho_mask_sequence_level: the weight is the sequence's, too; its clamp at 2 lies outside the band
    "open-instruct__dapo__96dc81__0": (
        OPEN,
        SamplerMask(ratio=SequenceMean(), statistic=GEOMETRIC, low=0.8, high=1.2),
    ),
    # use_importance_sampling_correction alone
    "nemo-rl__grpo__6a438e__0": (NEMO, SamplerMismatch(high=np.inf)),
    # truncated_importance_sampling_type "tis"
    "nemo-rl__grpo__2c36c9__0": (NEMO, SamplerMismatch(high=1.3)),
    "nemo-rl__grpo__9c6c68__0": (NEMO, SamplerMismatch(low=0.8, high=1.3)),
}


def recorded(name: str) -> tuple[dict[str, np.ndarray], Rollout, jax.Array]:
    file = dict(np.load(FOLDER / f"{name}.npz"))
    size = int(file["group_size"])

    def grouped(x: np.ndarray) -> jax.Array:
        return jnp.asarray(x.reshape(-1, size, *x.shape[1:]))

    mask = grouped(file["mask"])
    rollout = Rollout(
        prompts=jnp.arange(mask.shape[0]),
        tokens=jnp.zeros(mask.shape, int),
        mask=mask,
        rewards=grouped(file["rewards"][:, None]),
        multiplicity=jnp.ones(mask.shape[:2]),
        sampling_logp=grouped(file["sampling_logp"]),
        old_logp=grouped(file["old_logp"]),
        ref_logp=grouped(file["ref_logp"]),
    )
    return file, rollout, grouped(file["logp"])


@pytest.mark.parametrize("name", CASES)
def test_a_correction_is_the_library_s(name: str) -> None:
    surrounding, correction = CASES[name]
    file, rollout, logp = recorded(name)
    method = Method(corrections=(correction,), reduction=PerToken(), **surrounding)
    value, grad = jax.value_and_grad(loss, argnums=2)(method, rollout, logp)
    np.testing.assert_allclose(value, file["expected_loss"], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(grad.reshape(file["mask"].shape), file["expected_grad"], rtol=1e-9, atol=1e-9)
    bare = loss(Method(reduction=PerToken(), **surrounding), rollout, logp)
    assert abs(bare - value) > 1e-4


def test_nemo_rl_s_sequence_mask_keeps_token_weights() -> None:
    """The mode "seq-mask-tis" within [.8, 1.2]: the recorded weight of every token."""
    file, rollout, logp = recorded("nemo-rl__grpo__9e2962__0")
    clean = rollout._replace(
        old_logp=jnp.where(rollout.mask > 0, rollout.old_logp, 0),
        sampling_logp=jnp.where(rollout.mask > 0, rollout.sampling_logp, 0),
    )
    correction = SamplerMask(ratio=Token(), statistic=GEOMETRIC, low=0.8, high=1.2)
    found = np.asarray(correction(Evaluation(clean, logp, logp, jnp.ones(())))).reshape(file["mask"].shape)
    live = file["mask"] > 0
    np.testing.assert_allclose(found[live], file["expected_is_ratio"][live], rtol=1e-9)
    assert (found[live] == 0).any()
    assert (found[live] != 0).any()
