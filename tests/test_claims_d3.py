"""Rules that judge D3, with numbers made up for the purpose, and the moments that they rest on."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from experiments.claims import d03_mismatch
from experiments.harness.verdict import Claim
from experiments.problems import mismatch_atlas, mismatches, trees
from experiments.problems.mismatches import ENGINES, EVERY, ROWS
from grpo_jax import Sequences
from grpo_jax.parts.sampler import BothBinaryKL, TotalVariation

pytestmark = pytest.mark.usefixtures("x64")

SPACE = Sequences(vocab=2, horizon=2)


def binary_kl(p, q):
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def by_hand(new, q, won):
    """Every row's factors of one answer, from the probabilities [T] of its tokens, by the formulas."""
    r, w, g = new / q, np.prod(new / q), np.prod(new / q) ** (1 / len(q))
    ones = np.ones_like(r)
    clip = np.where(r > 1.2, 0, r) if won else np.where(r < 0.8, 0, r)
    toward = new - q if won else q - new
    return {
        "none": ones,
        "token weights": r,
        "sequence weights": w * ones,
        "token TIS": np.minimum(r, 2),
        "sequence TIS": min(w, 2) * ones,
        "geometric TIS": min(g, 2) * ones,
        "token mask": np.where(r <= 2, r, 0),
        "sequence mask": (w if w <= 2 else 0) * ones,
        "geometric mask": r if 0.5 <= g <= 2 else 0 * r,
        "IcePop": np.where((r >= 0.2) & (r <= 5), r, 0),
        "PPO's clip": clip,
        "CISPO": np.minimum(r, 1.2),
        "DPPO (TV)": np.where(toward <= 0.1, np.minimum(r, 20), 0),
        "DPPO (KL)": np.where((toward <= 0) | (binary_kl(q, new) <= 0.1), np.minimum(r, 20), 0),
        "IPO": np.where(abs(new - q) <= 0.1, r, 0),
        "KPop": np.where(np.maximum(binary_kl(q, new), binary_kl(new, q)) <= 0.1, r, 0),
        "token TIS at 8": np.minimum(r, 8),
        "token mask at 8": np.where(r <= 8, r, 0),
        "DPPO (TV) at 0.2": np.where(toward <= 0.2, np.minimum(r, 20), 0),
        "IPO at 0.2": np.where(abs(new - q) <= 0.2, r, 0),
    }


def test_factors_are_the_published_formulas():
    rng = np.random.default_rng(1)
    new, q = rng.uniform(0.02, 0.95, (2, 4, 300, 1))
    new[:, ::3] = np.clip(q[:, ::3] + rng.normal(scale=0.08, size=q[:, ::3].shape), 0.01, 0.99)
    table = (np.arange(300) % 2.0)[:, None]
    found = np.asarray(mismatches.factors(jnp.log(new), jnp.log(q), jnp.asarray(table)))[..., 0]
    for place in range(300):
        want = by_hand(new[:, place, 0], q[:, place, 0], bool(table[place, 0]))
        assert list(want) == EVERY
        for row, name in enumerate(EVERY):
            np.testing.assert_allclose(found[row, :, place], want[name], atol=1e-9, err_msg=name)
    differ = np.abs(found[1] - found).max((1, 2)) > 0.01
    assert differ[np.arange(len(EVERY)) != 1].all(), "some mask never acted"


def test_moments_are_those_of_every_ordered_group():
    """Groups of three one by one: r − r̄ of the group, ∇log π by hand, two tables with other engines."""
    given = trees.problem(4, SPACE, tables=2, kind="binary", spread=1.0)
    far = given.logits + np.random.default_rng(2).normal(scale=0.9, size=given.logits.shape)
    found = mismatches.one_update(given, far, group_size=3)
    tokens = SPACE.support[0]
    nodes = np.stack([np.zeros(4, int), 1 + tokens[:, 0]], 1)
    for run in range(2):
        new, q = (
            np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (given.logits[..., run], far[..., run])
        )
        rewards, chance = given.table[:, run], q[nodes, tokens].prod(1)
        rows = [by_hand(new[n, t], q[n, t], r > 0) for n, t, r in zip(nodes, tokens, rewards, strict=True)]
        for row, name in enumerate(EVERY):
            scores = np.zeros((4, 3, 2))
            for answer, t in itertools.product(range(4), range(2)):
                node, token = nodes[answer, t], tokens[answer, t]
                scores[answer, node] += rows[answer][name][t] * (np.eye(2)[token] - new[node])
            first, second = np.zeros((3, 2)), 0.0
            for group in itertools.product(range(4), repeat=3):
                index = list(group)
                away = rewards[index] - rewards[index].mean()
                g = np.einsum("i,inv->nv", away, scores[index]) / 3
                first += chance[index].prod() * g
                second += chance[index].prod() * np.sum(g**2)
            np.testing.assert_allclose(found.mean[row, ..., run], first, atol=1e-12, err_msg=name)
            want = second - np.sum(first**2)
            np.testing.assert_allclose(found.variance[row, run], want, atol=1e-12, err_msg=name)
        gap = np.log(new / q)[nodes, tokens] ** 2
        out = np.array([rows[answer]["IPO"] == 0 for answer in range(4)])
        assert found.kept[ROWS.index("IPO"), run] == pytest.approx(1 - chance @ out.mean(1))
        lost = chance @ (gap * out).sum(1) / (chance @ gap.sum(1))
        assert found.lost[ROWS.index("IPO"), run] == pytest.approx(lost)


def test_fresh_noise_averages_out_of_the_bias_and_into_the_variance():
    means = np.array([[3.0, 0.0], [-1.0, 0.0], [1.0, 3.0]])
    updates = [
        mismatches.Update(
            mean.reshape(1, 1, 2, 1), np.full((1, 1), float(v)), np.ones((1, 1)), np.zeros((1, 1))
        )
        for v, mean in enumerate(means)
    ]
    stays, fresh = mismatches.errors(updates, np.zeros((1, 2, 1)))
    scatter = means.var(0, ddof=1).sum()
    assert stays.bias.item() == pytest.approx((9 + 1 + 10) / 3)
    assert stays.variance.item() == pytest.approx(1.0)
    assert fresh.bias.item() == pytest.approx((means.mean(0) ** 2).sum() - scatter / 3)
    assert fresh.variance.item() == pytest.approx(1 + scatter)


def test_an_engine_of_the_table_is_the_engine_itself():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 2, 5)))
    at = (jnp.uint32(3), jnp.arange(5, dtype=jnp.uint32), jnp.uint32(2))
    for place, engine in enumerate(ENGINES.values()):
        chosen = mismatches.OneOf(kind=float(place))(logits, *at)
        np.testing.assert_array_equal(chosen, engine(logits, *at))


def test_an_expert_s_noise_has_the_size_of_the_others():
    logits = np.zeros((2000, 3, 4))
    for kind in ("fixed", "expert"):
        noise = mismatches.held(mismatches.engine(kind, 0.3), logits, root=0, draw=1)
        assert np.sqrt(np.mean(noise**2)) == pytest.approx(0.3, rel=0.06)
        shared = (noise == 0).all(1) | (noise != 0).all(1)
        assert shared.all()


def test_an_older_policy_is_behind_along_the_gradient_and_as_far_as_noise():
    given = trees.problem(0, Sequences(vocab=3, horizon=2), tables=5, kind="binary", spread=0.3)
    back = mismatch_atlas.older(given, 0.05)
    slope = mismatches.aim(given, group_size=2)
    assert (np.sum((given.logits - back) * slope, (0, 1)) > 0).all()
    steps = np.exp(given.logits) / np.exp(given.logits).sum(1, keepdims=True)
    nats = 0.5 * 0.05**2 * np.mean(1 - np.sum(steps**2, 1)) * 2
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (given.logits, np.asarray(back)))
    kl = (p * np.log(p / q)).sum(1)
    visits = np.concatenate([np.ones((1, 5)), p[0]])
    np.testing.assert_allclose(np.sum(visits * kl, 0), nats, rtol=1e-6)


def test_bands_of_masks():
    for rate, low, high in ((0.001, 0, 0.101), (0.3, 0.2, 0.4), (0.99, 0.89, 1)):
        want = np.array([low, high]) / rate
        np.testing.assert_allclose(d03_mismatch.band(TotalVariation(), rate), want, atol=0.01)
    grid = np.linspace(0, 1, 100_001)[1:-1]
    for rate in (0.001, 0.3, 0.99):
        kept = grid[np.maximum(binary_kl(grid, rate), binary_kl(rate, grid)) <= 0.1] / rate
        np.testing.assert_allclose(
            d03_mismatch.band(BothBinaryKL(), rate), [kept.min(), kept.max()], atol=2e-5 / rate
        )


@pytest.mark.parametrize(
    ("where", "value", "verdict"),
    [
        ({}, 0.0, "reproduced"),
        ({"mask": "KPop", "rate": 0.001, "end": "greatest"}, 9.0, "refuted"),
        ({"mask": "KPop", "rate": 0.99, "end": "least"}, 0.5, "refuted"),
        ({"mask": "KPop", "rate": 0.99, "end": "greatest"}, 3.0, "reproduced"),
    ],
)
def test_a_band_is_wide_above_for_rare_tokens_and_tight_below_for_confident_ones(where, value, verdict):
    axes = {"mask": ["KPop", "IPO"], "rate": [0.001, 0.99], "end": ["least", "greatest"]}
    ratio = xr.DataArray(np.array([[[0.1, 20], [0.9, 1]], [[0.1, 10], [0.8, 1]]]), axes, tuple(axes))
    if where:
        ratio.loc[where] = value
    claim = Claim("D3", "It holds.")
    d03_mismatch.judge_bands(ratio, claim)
    assert claim.rows[0].verdict().verdict == verdict


def masses(**changed: float) -> xr.DataArray:
    """Masses of draws in which the abstract's two halves hold for every kind and size."""
    plain = {
        "stopped": 0.2, "within": 0.7, "rare within": 0.1, "rare within, stopped": 0.05, "rare beyond": 0.1,
        "rare beyond, stopped": 0.03, "rare beyond, stopped by DPPO": 0.02, "common beyond": 0.1,
        "common beyond, stopped": 0.02,
    }  # fmt: skip
    values = np.array(list({**plain, **changed}.values()))
    noisy = values[:, None] * (1 + 0.01 * np.random.default_rng(0).normal(size=(len(plain), 20)))
    axes = {"kind": ["fixed", "expert", "older"], "noise": mismatch_atlas.NOISE, "what": list(plain)}
    full = np.broadcast_to(noisy, (3, 4, *noisy.shape)).copy()
    return xr.DataArray(full, axes, (*axes, "batch"))


@pytest.mark.parametrize(
    ("changed", "first", "second"),
    [
        ({}, "reproduced", "reproduced"),
        ({"rare within, stopped": 0.02}, "refuted", "reproduced"),
        ({"rare within, stopped": 0.02, "within": 0.4}, "not judged", "reproduced"),
        ({"common beyond, stopped": 0.06}, "reproduced", "refuted"),
        ({"rare beyond, stopped": 0.08}, "refuted", "reproduced"),
    ],
)
def test_each_half_of_the_abstract_falls_by_itself(changed, first, second):
    claim = Claim("D3", "Rare tokens are over-penalized.")
    d03_mismatch.judge_clip(masses(**changed), claim)
    if first == "not judged":
        assert "refutes" not in claim.roles.values()
    else:
        assert claim.verdict().verdict == first
    assert claim.rows[0].verdict().verdict == second


@pytest.mark.parametrize(
    ("kind", "within", "verdict"),
    [
        ("fixed", 0.7, "refuted"),
        ("older", 0.7, "refuted"),
        ("older", 0.4, "qualified"),
        ("expert", 0.7, "qualified"),
    ],
)
def test_one_kind_and_size_alone_changes_the_verdict(kind, within, verdict):
    mass = masses()
    mass.loc[{"kind": kind, "noise": 0.4, "what": "rare within, stopped"}] *= 0.3
    mass.loc[{"kind": kind, "noise": 0.4, "what": "within"}] = within
    claim = Claim("D3", "Rare tokens are over-penalized.")
    d03_mismatch.judge_clip(mass, claim)
    assert claim.verdict().verdict == verdict


def test_where_hardly_a_draw_is_stopped_nothing_is_judged():
    mass = masses()
    mass.loc[{"noise": 0.1, "what": "rare within, stopped"}] = 0
    mass.loc[{"noise": 0.1, "what": "stopped"}] = 0.001
    claim = Claim("D3", "Rare tokens are over-penalized.")
    d03_mismatch.judge_clip(mass, claim)
    assert claim.verdict().verdict == "reproduced"


def cells(tables: int = 60) -> xr.Dataset:
    """An atlas in which all rows err alike, and each drops a tenth, with four fifths of the KL."""
    axes = {
        "kind": list(mismatch_atlas.KINDS), "noise": mismatch_atlas.NOISE, "horizon": mismatch_atlas.HORIZONS,
        "row": EVERY,
    }  # fmt: skip
    one = xr.DataArray(np.ones([*map(len, axes.values()), tables]), axes, (*axes, "table"))
    around = 1 + 0.01 * xr.DataArray(np.random.default_rng(3).normal(size=tables), dims="table")
    return xr.Dataset(
        {"bias": one.copy(), "variance": one.copy(), "kept": 0.9 * one, "lost": 0.8 * one * around}
    )


def users(data: xr.Dataset) -> dict[str, str]:
    """The verdict on each sentence by its source."""
    claim = Claim("D3", "It holds.")
    d03_mismatch.judge_users(data, claim)
    d03_mismatch.judge_lengths(data.kept.sel(kind="fixed"), claim)
    d03_mismatch.judge_kl(data, claim)
    verdicts = [row.verdict().verdict for row in claim.rows]
    return dict(zip(("1930", "1030", "product", "geometric", "2458"), verdicts, strict=True))


def ruled() -> xr.Dataset:
    """Every sentence holds."""
    data = cells()
    data["bias"].loc[{"row": "IPO"}] = 0.5
    data["bias"].loc[{"row": "token mask at 8"}] = 0.5
    data["kept"].loc[{"row": "sequence mask", "horizon": 6}] = 0.5
    return data


def test_users_sentences_hold():
    assert set(users(ruled()).values()) == {"reproduced"}


@pytest.mark.parametrize(
    ("variable", "where", "value", "source", "verdict"),
    [
        ("bias", {"kind": "older", "noise": 0.4, "row": "IPO"}, 2.0, "1930", "refuted"),
        ("bias", {"kind": "fixed", "noise": 0.4, "row": "IPO"}, 2.0, "1930", "qualified"),
        ("bias", {"kind": "expert", "horizon": 4, "row": "token mask at 8"}, 2.0, "1030", "refuted"),
        ("bias", {"kind": "older", "horizon": 4, "row": "token mask at 8"}, 2.0, "1030", "qualified"),
        ("bias", {"row": "token mask"}, 2.0, "1030", "reproduced"),
        ("bias", {"row": "token mask at 8"}, 1.005, "1030", "not testable here"),
        ("kept", {"horizon": 1, "noise": 0.8, "row": "geometric mask"}, 0.8, "geometric", "refuted"),
        ("kept", {"horizon": 1, "noise": 0.8, "row": "geometric mask"}, 0.86, "geometric", "reproduced"),
        ("kept", {"horizon": 1, "noise": 0.8, "row": "geometric mask"}, 0.8, "product", "reproduced"),
        ("kept", {"horizon": 1, "noise": 0.8, "row": "sequence mask"}, 0.4, "product", "refuted"),
        ("kept", {"horizon": 1, "noise": 0.8, "row": "sequence mask"}, 0.4, "geometric", "reproduced"),
        ("lost", {"kind": "expert", "noise": 0.8, "row": "IPO at 0.2"}, 0.4, "2458", "refuted"),
        ("lost", {"kind": "expert", "noise": 0.4, "row": "IPO at 0.2"}, 0.4, "2458", "qualified"),
        ("lost", {"row": "IPO"}, 0.4, "2458", "reproduced"),
    ],
)  # fmt: skip
def test_one_setting_alone_changes_a_verdict(variable, where, value, source, verdict):
    data = ruled()
    data[variable].loc[where] = value
    assert users(data)[source] == verdict


def test_a_mask_that_drops_nothing_says_nothing_about_lengths():
    data = ruled()
    data["kept"].loc[{"row": ["sequence mask", "geometric mask"], "noise": [0.1, 0.2, 0.4]}] = 1.0
    claim = Claim("D3", "It holds.")
    d03_mismatch.judge_lengths(data.kept.sel(kind="fixed"), claim)
    for row in claim.rows:
        assert [name[:9] for name, role in row.roles.items() if role == "refutes"] == ["noise 0.8"]


def test_lengths_are_judged_by_intervals_over_tables():
    data = ruled()
    here = {"row": "geometric mask", "noise": 0.8, "horizon": 1}
    data["kept"].loc[here] = 0.84 + 0.2 * np.random.default_rng(0).uniform(-1, 1, 60)
    assert users(data)["geometric"] == "not testable here"


def test_errors_that_hardly_differ_are_not_compared():
    data = ruled()
    data["bias"].loc[{"row": "IPO", "kind": "older", "noise": 0.1}] = 1.005
    assert users(data)["1930"] == "reproduced"


def test_dominated_everywhere_is_by_one_other_and_in_every_setting():
    what = xr.DataArray(
        np.ones((2, 2, len(ROWS))), {"what": ["bias", "variance"], "row": ROWS}, ("what", "T", "row")
    )
    assert mismatch_atlas.dominated(what) == {}
    lost = what.copy()
    lost.loc[{"row": "CISPO"}] = 1.5
    assert set(mismatch_atlas.dominated(lost)) == {"CISPO"}
    lost[{"T": 1}].loc[{"row": "CISPO", "what": "bias"}] = 0.5
    assert mismatch_atlas.dominated(lost) == {}


def test_a_row_is_told_under_who_beats_most():
    losers = {"a": ["c"], "b": ["e", "c"], "d": ["e"], "f": ["c", "e"], "g": ["h"]}
    assert mismatch_atlas.winners(losers) == {"c": ["a", "b", "f"], "e": ["d"], "h": ["g"]}
    assert mismatch_atlas.winners({}) == {}
