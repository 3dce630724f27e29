"""Parts from outside: a wrong shape, axis or a forgotten multiplicity never trains in silence."""

import dataclasses
import enum
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax import methods, train
from grpo_jax.collectors import choose
from grpo_jax.part import describe
from grpo_jax.records import recording
from grpo_jax.user_parts import keeps_runs_apart, respects_multiplicity
from grpo_jax.user_parts import methods as user_methods
from grpo_jax.user_parts.methods import points

FEW = 12
"""Programs that the trial of a method may be: one, and what it makes of constants; it has been a hundred."""
SHORT = {"iterations": 4, "record_every": 4, "progress": False}
SPACE = gj.Sequences(vocab=3, horizon=2, eos=2)


@gj.part
class Flat:
    """Forgets the axis of tokens."""

    def __call__(self, rollout, rewards):
        return rewards - jnp.mean(rewards, 1, keepdims=True)


@gj.part
class Rank:
    """Ranks entries as if each were one sample."""

    def __call__(self, rollout, rewards):
        rank = jnp.argsort(jnp.argsort(rewards, axis=1), axis=1)
        return (rank / rewards.shape[1] - 0.5)[:, :, None]


@gj.part
class Wins:
    """Mean over the group of sign(r_i − r_j), ties 0."""

    def __call__(self, rollout, rewards):
        weight = rollout.multiplicity[:, None]
        wins = jnp.sum(weight * jnp.sign(rewards[:, :, None] - rewards[:, None]), 2)
        return (wins / jnp.sum(weight, 2))[:, :, None]


@gj.part
class LastAxis:
    """Takes the last axis for the group's: right for one run, the mean over runs for several."""

    def __call__(self, rollout, rewards):
        return (rewards - jnp.mean(rewards, -1, keepdims=True))[:, :, None]


@gj.part
class WrongRatio:
    """Sums over tokens and drops their axis."""

    def __call__(self, rollout, logp):
        return jnp.sum(logp - rollout.old_logp, 2)


def configured(**slots):
    return gj.Config(
        policy=gj.ActionPolicy.uniform(contexts=2, actions=3),
        task=gj.Questions(table=[[1.0, 0.5, 0.0], [0.0, 1.0, 0.3]]),
        method=dataclasses.replace(methods.dapo, **slots),
        loop=gj.Loop(group_size=6),
    )


@pytest.mark.parametrize(
    "slots", [{"advantage": Flat()}, {"ratio": WrongRatio()}], ids=["advantage", "ratio"]
)
def test_a_shape_that_would_only_broadcast_is_refused(slots):
    config = dataclasses.replace(configured(**slots), expectation=gj.Sampled())
    with pytest.raises(ValueError, match=rf"{next(iter(slots))} gives shape .*must be \[P, N, T\]"):
        gj.sweep(config, seeds=6, **SHORT)
    with pytest.raises(ValueError, match="gives shape"):
        train.run(config, train.init(config, 0), iterations=1)


@pytest.mark.parametrize(
    ("slots", "says"),
    [
        (
            {"gain": methods.grpo.advantage},
            r"method\.gain is Normalized.*\(evaluation\)",
        ),
        ({"penalty": 0.1}, r"method\.penalty is 0\.1; it must be None or a Penalty"),
        ({"corrections": methods.cppo.corrections[0]}, r"method\.corrections is Prune.*a tuple"),
    ],
    ids=["gain", "penalty", "corrections"],
)
def test_a_part_in_the_wrong_slot_is_refused_by_name(slots, says):
    with pytest.raises(TypeError, match=says):
        gj.sweep(configured(**slots), **SHORT)


SLOTS = ("grpo", "gspo", "tic_grpo", "dapo_dynamic", "reinforce_plus_plus", "max_rl_successes", "gtpo")
"""Methods of which every kind of slot is used by one."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in SLOTS else pytest.mark.slow) for n in methods.METHODS]
)
def test_every_method_heeds_multiplicity_and_keeps_runs_apart(name):
    assert respects_multiplicity(methods.METHODS[name])
    assert keeps_runs_apart(methods.METHODS[name])


@gj.part
class Halved:
    """The reward, halved: a part from outside that nothing has tried yet."""

    def __call__(self, rollout):
        return jnp.sum(rollout.rewards, 2) / 2


def test_a_trial_is_a_program_and_not_one_for_each_operation(caplog):
    method = dataclasses.replace(methods.grpo, shaping=Halved())
    with jax.log_compiles():
        assert keeps_runs_apart(method)
    compiled = [r for r in caplog.records if "Finished XLA compilation" in r.getMessage()]
    assert 0 < len(compiled) <= FEW


def test_ever_new_classes_of_parts_leave_few_programs_behind(monkeypatch):
    monkeypatch.setattr(user_methods, "HELD", 2)
    for weight in (1.0, 2.0, 3.0):

        @gj.part
        class Own:
            def __call__(self, rollout, weight=weight):
                return weight * jnp.sum(rollout.rewards, 2)

        assert keeps_runs_apart(dataclasses.replace(methods.grpo, shaping=Own()))
        assert user_methods._program._cache_size() <= 2


def test_a_mean_over_the_last_axis_is_refused():
    with pytest.raises(ValueError, match=r"LastAxis mixes runs: .* axis 1 for a group"):
        gj.sweep(configured(advantage=LastAxis()), seeds=4, **SHORT)


def test_a_part_that_forgets_multiplicity_is_sampled_and_refused_elsewhere():
    assert isinstance(choose(configured(advantage=Wins())).expectation, gj.Counts)
    forgetful = configured(advantage=Rank())
    assert isinstance(choose(forgetful).expectation, gj.Sampled)
    with pytest.raises(ValueError, match=r"Rank gives Counts\(\) another objective"):
        gj.sweep(dataclasses.replace(forgetful, expectation=gj.Counts()), **SHORT)


def test_counts_and_samples_of_an_own_part_train_alike():
    config = configured(advantage=Wins())
    counted, sampled = (
        gj.sweep(dataclasses.replace(config, expectation=e), seeds=3, **SHORT)
        for e in (gj.Counts(), gj.Sampled())
    )
    np.testing.assert_allclose(counted.expected_reward, sampled.expected_reward, rtol=1e-5)


def tree(function):
    return gj.Config(policy=gj.TreePolicy.uniform(SPACE), task=gj.SequenceReward(function=function))


def test_what_all_runs_share_is_recorded_for_each():
    data = gj.sweep(tree(lambda prompts, tokens, mask: 3.0), seeds=5, record=["reward", "tied"], **SHORT)
    np.testing.assert_array_equal(data.reward, np.full((5, 1), 3.0))
    np.testing.assert_array_equal(data.tied, np.ones((5, 1)))


def test_a_reward_that_sums_over_runs_is_refused():
    wrong = tree(lambda prompts, tokens, mask: jnp.sum((tokens == 1) * mask, -1))
    with pytest.raises(ValueError, match=r"reward function gives shape .*T is axis 2, not the last"):
        gj.sweep(wrong, seeds=2, **SHORT)


def test_broken_runs_are_counted_aloud(capsys):
    broken = tree(lambda prompts, tokens, mask: jnp.sum(mask, 2) * jnp.nan)
    gj.sweep(broken, seeds=3, iterations=2, record=["reward"])
    assert "3 of 3 runs turned non-finite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("axes", "options", "error", "says"),
    [
        ({"seed": [1, 2]}, {}, ValueError, "dimension of every sweep"),
        ({"kl_coef": [0.1]}, {}, ValueError, r"'kl_coef' means method\.penalty\.coef.*does not have"),
        (None, {"seeds": [0.2, 1.7]}, TypeError, r"seeds holds 0\.2; .*whole numbers"),
        (None, {"variants": {"method": ["grpo"]}}, TypeError, r"methods\.get"),
    ],
    ids=["reserved", "absent alias", "fractional seeds", "names for methods"],
)
def test_a_sweep_says_what_is_wrong(axes, options, error, says):
    with pytest.raises(error, match=says):
        gj.sweep(configured(), axes, **options, **SHORT)


def test_one_string_is_no_list_of_diagnostics():
    with pytest.raises(TypeError, match="list of names"):
        recording(configured(), "entropy", None, iterations=1)


def test_a_method_where_the_configuration_belongs_is_refused():
    with pytest.raises(TypeError, match="it must be a Config"):
        gj.sweep(methods.grpo, **SHORT)


def test_none_is_no_number():
    with pytest.raises(TypeError, match=r"AdamW\.learning_rate is None"):
        gj.AdamW(learning_rate=None)


# trials at the numbers that a sweep puts in


@gj.part
class Drifting:
    """Weighs entries by their multiplicity, but for a share: as if each entry were one sample."""

    share: float = gj.number(0.0)
    leak: float = gj.number(0.0)

    def __call__(self, rollout, rewards):
        weight = (1 - self.share) * rollout.multiplicity + self.share
        mean = jnp.sum(weight * rewards, 1, keepdims=True) / jnp.sum(weight, 1, keepdims=True)
        return (rewards - mean - self.leak * jnp.mean(rewards, -1, keepdims=True))[:, :, None]


@gj.part
class Tabled:
    """Thresholds for the reward, a table; ``forgetful`` of multiplicities where a number says so."""

    levels: object = gj.number(rank=1)
    forgetful: float = gj.number(0.0)

    def __call__(self, rollout, rewards):
        steps = self.levels.reshape(self.levels.shape[:1] + (1, 1) + self.levels.shape[1:])
        passed = jnp.sum(rewards[None] > steps, 0).astype(rewards.dtype)
        weight = jnp.where(self.forgetful > 0, 1.0, rollout.multiplicity)
        return (passed - jnp.sum(weight * passed, 1, keepdims=True) / jnp.sum(weight, 1, keepdims=True))[
            :, :, None
        ]


@gj.part
class Fixed:
    """A table for the batch at hand, which no other batch fits."""

    table: object = gj.number(rank=2)

    def __call__(self, rollout, rewards):
        return (self.table * rewards)[:, :, None]


def swept(path, values):
    return [{f"method.{path}": np.asarray(values, float)}]


def test_a_part_is_tried_at_swept_values():
    """At its own share of 0 it heeds multiplicities; the sweep asks for others."""
    config = configured(advantage=Drifting())
    assert isinstance(choose(config, swept("advantage.share", [0.0])).expectation, gj.Counts)
    for values in ([0.0, 0.5], [0.5, 0.0], [0.0, 0.5, 0.0001]):
        assert isinstance(choose(config, swept("advantage.share", values)).expectation, gj.Sampled)
        with pytest.raises(ValueError, match=r"Drifting gives Counts\(\) another objective"):
            choose(dataclasses.replace(config, expectation=gj.Counts()), swept("advantage.share", values))
    with pytest.warns(UserWarning, match="identical along 'share'"):  # of samples each counts once
        data = gj.sweep(config, {"share": [0.0, 0.5]}, seeds=2, **SHORT)
    assert data.attrs["expectation"] == "Sampled"
    assert "Drifting is not known to heed multiplicities" in data.attrs["because"]


def test_runs_mixed_at_a_swept_value_are_refused():
    with pytest.raises(ValueError, match=r"Drifting mixes runs at advantage\.leak = 0\.1"):
        gj.sweep(configured(advantage=Drifting()), {"leak": [0.0, 0.1]}, **SHORT)
    per_run = configured(advantage=Drifting(leak=np.array([0.0, 0.0, 0.2])))
    with pytest.raises(ValueError, match="Drifting mixes runs"):
        train.init(per_run, np.arange(3))


def test_extremes_inside_a_long_axis_and_both_ends_are_tried():
    values = np.sin(np.linspace(0.1, 6.0, 5001))
    grid = points([{"method.a": values}, {"method.b": np.arange(7.0)}, {"other": np.arange(3.0)}], "method.")
    assert set(grid) == {"a", "b"}
    assert {values[0], values[-1], values.min(), values.max()} <= set(grid["a"])
    assert {0.0, 6.0} <= set(grid["b"])
    zipped = points([{"method.a": np.arange(3.0), "method.b": np.arange(3.0) ** 2}], "method.")
    assert {(a, b) for a, b in zip(*zipped.values(), strict=True)} == {(0.0, 0.0), (1.0, 1.0), (2.0, 4.0)}


def test_tables_are_tried_too():
    good, bad = (Tabled(levels=[0.1, 0.6], forgetful=f) for f in (0.0, 1.0))
    assert isinstance(choose(configured(advantage=good)).expectation, gj.Counts)
    assert isinstance(choose(configured(advantage=bad)).expectation, gj.Sampled)
    levels = [{"method.advantage.levels": np.array([[0.1, 0.6], [0.2, 0.7]])}]
    assert keeps_runs_apart(configured(advantage=good).method, levels)
    assert respects_multiplicity(configured(advantage=good).method, levels)


def test_what_cannot_be_tried_is_sampled_unless_asked_otherwise():
    config = configured(advantage=Fixed(table=np.ones((2, 3))))
    assert respects_multiplicity(config.method) is None
    assert isinstance(choose(config).expectation, gj.Sampled)
    asked = dataclasses.replace(config, expectation=gj.Counts())
    assert choose(asked).expectation == gj.Counts()


@gj.part
class Root:
    """√(1 − excess)·A·s: NaN beyond 1."""

    excess: float = gj.number(0.0)

    def __call__(self, at):
        return jnp.sqrt(1 - self.excess) * at.advantages * jnp.exp(at.log_ratio)


def test_a_gain_that_gives_nan_is_refused():
    """It would train nothing, and every parameter would stay finite."""
    with pytest.raises(ValueError, match=r"Root gives NaN on a small batch.*\(in method\.gain\)"):
        gj.sweep(configured(gain=Root(excess=2.0)), **SHORT)
    with pytest.raises(ValueError, match=r"Root gives NaN .* at gain\.excess = 1\.5 \(in method\.gain\)"):
        gj.sweep(configured(gain=Root()), {"excess": [0.5, 1.5]}, **SHORT)
    assert keeps_runs_apart(configured(gain=Root(excess=0.5)).method)


def test_a_part_of_one_s_own_is_described_in_json():
    class Mood(enum.Enum):
        CALM = 1

    @gj.part
    class Odd:
        mood: object = gj.static(Mood.CALM)
        call: object = gj.static(functools.partial(print, 1))
        key: object = None
        held: object = None

        def __call__(self, rollout, rewards):
            return rewards[:, :, None]

    odd = Odd(key=jax.random.key(0), held={"a": np.ones(2, np.float32), "b": jnp.ones(1, jnp.bfloat16)})
    found = json.loads(json.dumps(describe(configured(advantage=odd))))["method"]["advantage"]
    assert found == {
        "kind": "Odd", "mood": "CALM", "call": "partial", "key": [0, 0], "held": {"a": [1.0, 1.0], "b": [1.0]}
    }  # fmt: skip
