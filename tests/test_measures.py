"""Measures of one's own: named axes, per step, averaged, from the start; wrong ones are refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import grpo_jax as gj
from grpo_jax import measures, train
from grpo_jax.sweeps import runner

pytestmark = pytest.mark.usefixtures("x64")

TABLE = np.array([[1.0, 0.5, 0.0], [-1.0, 1.0, 1.0]])
CONFIG = gj.Config(
    policy=gj.ActionPolicy.uniform(contexts=2, actions=3),
    task=gj.Questions(table=TABLE),
    loop=gj.Loop(group_size=4, inner_steps=3),
    optimizer=gj.SGD(learning_rate=0.8),
    expectation=gj.Sampled(),
)
RUN = {"seeds": 3, "iterations": 12, "progress": False}


def softmax(logits):
    weight = np.exp(logits - logits.max(-2, keepdims=True))
    return weight / weight.sum(-2, keepdims=True)


@gj.measure("context", "answer", labels={"answer": ["best", "second", "worst"]}, about="probability")
def policy(view):
    return view.probabilities


@gj.measure("context", "answer", per="step")
def logits(view):
    return view.params


@gj.measure("prompt", "entry", per="step")
def actions(view):
    return view.batch.rollout.tokens[:, :, 0].astype(float)


@pytest.fixture(scope="module")
def every():
    """Everything of every iteration, in double precision."""
    with jax.enable_x64(True):
        return gj.sweep(
            CONFIG,
            {"clip_high": [0.1, 0.4]},
            measure={"policy": policy, "logits": logits, "actions": actions},
            record=[
                "expected_reward", "prompt_reward", "probabilities", "surrogate", "clip_fraction_high",
                "clip_fraction_low", "step_ratio", "step_clip_mask", "step_surrogate",
            ],
            **RUN,
        )  # fmt: skip


def test_own_axes_are_named_and_labelled(every):
    assert every.policy.dims == ("clip_high", "seed", "iteration", "context", "answer")
    assert list(every.answer.values) == ["best", "second", "worst"]
    assert list(every.context.values) == [0, 1]
    assert every.policy.attrs["about"] == "probability"
    assert every.logits.dims[-3:] == ("inner_step", "context", "answer")
    np.testing.assert_array_equal(every.policy.values, every.probabilities.values)
    best = every.policy.sel(answer="best").isel(context=0)
    assert (best.isel(iteration=-1) > best.isel(iteration=0)).all()


def test_a_measure_is_what_the_parameters_say(every):
    """The policy after an iteration, from the logits before the first step of the next one."""
    before = np.moveaxis(every.logits.values[:, :, 1:, 0], -1, -2)  # [clip, seed, iteration, answer, context]
    after = np.moveaxis(every.policy.values[:, :, :-1], -1, -2)
    np.testing.assert_allclose(after, softmax(before), rtol=1e-12)
    reward = (np.moveaxis(after, -1, -2) * TABLE).sum(-1)
    np.testing.assert_allclose(every.prompt_reward.values[:, :, :-1], reward, rtol=1e-12)
    np.testing.assert_allclose(
        every.expected_reward.values[:, :, :-1], reward.mean(-1), rtol=1e-12, atol=1e-15
    )


def test_ratios_and_clip_masks_along_the_inner_steps(every):
    """From the logits of every step and the actions drawn, in NumPy."""
    logp = np.log(softmax(np.moveaxis(every.logits.values, -1, -2)))  # [..., step, answer, context]
    drawn = every.actions.values.astype(int)  # [clip, seed, it, step, prompt, entry]
    chosen = np.take_along_axis(np.moveaxis(logp, -2, -1), drawn, -1)
    ratio = np.exp(chosen - chosen[:, :, :, :1])
    np.testing.assert_allclose(every.step_ratio.values[..., 0], ratio, rtol=1e-12)
    rewards = TABLE[np.arange(2)[:, None], drawn]
    advantage = rewards - rewards.mean(-1, keepdims=True)
    high = every.clip_high.values.reshape(2, 1, 1, 1, 1, 1)
    above, below = (ratio > 1 + high) & (advantage > 0), (ratio < 0.8) & (advantage < 0)
    np.testing.assert_array_equal(every.step_clip_mask.values[..., 0], above * 1.0 - below * 1.0)
    np.testing.assert_allclose(every.clip_fraction_high.values, above.mean((3, 4, 5)), atol=1e-15)
    np.testing.assert_allclose(every.clip_fraction_low.values, below.mean((3, 4, 5)), atol=1e-15)
    assert above.any()
    assert below.any()
    assert not above[:, :, :, 0].any()


SPACE = gj.Sequences(vocab=3, horizon=4, eos=2)
SETTINGS = {
    "actions": {
        "policy": gj.ActionPolicy.uniform(contexts=1, actions=8),
        "task": gj.Questions(table=np.arange(8.0)[None]),
        "optimizer": gj.SGD(learning_rate=3.0),
    },
    "tree": {
        "policy": gj.TreePolicy.uniform(SPACE),
        "task": gj.SequenceReward(function=lambda prompts, tokens, mask: jnp.sum(mask, 2)),
        "optimizer": gj.SGD(learning_rate=1.0),
    },
}


@pytest.mark.parametrize("expectation", [gj.Sampled(), gj.Counts()], ids=["samples", "counts"])
@pytest.mark.parametrize(
    ("setting", "method"),
    [("actions", "dr_grpo"), ("tree", "dr_grpo"), ("tree", "gspo"), ("tree", "tic_grpo")],
)
def test_ratios_are_there_where_a_token_is(setting, method, expectation):
    """Weighted shares of the clip mask are the clip fractions; what is masked or was not drawn is NaN."""
    config = gj.Config(
        method=dataclasses.replace(
            getattr(gj.methods, method), gain=gj.parts.gains.Clip(high=0.05, low=0.05)
        ),
        loop=gj.Loop(group_size=4, inner_steps=2),
        expectation=expectation,
        **SETTINGS[setting],
    )

    @gj.measure(*measures.TOKENS, per="step")
    def live(view):
        rollout = view.batch.rollout
        drawn = rollout.multiplicity[:, :, None]
        return rollout.mask * drawn + 0 * view.logp

    names = [
        "step_ratio",
        "step_clip_mask",
        "step_weight",
        "step_clip_fraction_high",
        "step_clip_fraction_low",
    ]
    data = gj.sweep(config, seeds=16, iterations=2, record=names, measure={"live": live}, progress=False)
    weight, held = data.step_weight.values, data.step_clip_mask.values
    np.testing.assert_array_equal(weight, data.live.values)
    for values in (data.step_ratio.values, held):
        np.testing.assert_array_equal(np.isnan(values), weight == 0)
    assert (weight == 0).any() == (setting == "tree" or expectation == gj.Counts())
    tokens = weight.sum((-1, -2, -3))
    for side, fraction in ((1, data.step_clip_fraction_high), (-1, data.step_clip_fraction_low)):
        share = (weight * (held == side)).sum((-1, -2, -3)) / tokens
        np.testing.assert_allclose(share, fraction.values, atol=1e-14)
    assert (held == 1).any()
    ratio = data.step_ratio.values
    np.testing.assert_array_equal(ratio[held == 1] > 1.05, True)
    np.testing.assert_array_equal(ratio[:, :, 0][weight[:, :, 0] > 0], 1)


def test_a_mean_over_steps_is_the_mean_of_the_steps(every):
    np.testing.assert_allclose(
        every.surrogate, every.step_surrogate.mean("inner_step"), rtol=1e-12, atol=1e-15
    )


def test_lengths_of_right_and_wrong_answers():
    """Right is a positive reward; lengths of 1 and 2 tokens, weighted by how often they were drawn."""
    space = gj.Sequences(vocab=3, horizon=2, eos=2, forbidden=((0, 2),))
    task = gj.SequenceReward(
        function=lambda prompts, tokens, mask: jnp.where(tokens[:, :, 0] == 0, 1.0, -1.0)
    )
    config = dataclasses.replace(CONFIG, policy=gj.TreePolicy.uniform(space), task=task)

    @gj.measure("prompt", "entry", "token", per="step")
    def drawn(view):
        return jnp.where(view.batch.rollout.mask > 0, view.batch.rollout.tokens, -1).astype(float)

    asked = {"iterations": 6, "seeds": 4, "record": ["length_right", "length_wrong", "probabilities"]}
    data = gj.sweep(config, measure={"drawn": drawn}, progress=False, **asked)
    tokens = data.drawn.values[:, :, 0, 0]  # [seed, iteration, entry, token]
    lengths, right = (tokens >= 0).sum(-1), tokens[..., 0] == 0
    for name, group in (("length_right", right), ("length_wrong", ~right)):
        count = group.sum(-1)
        expected = np.where(count > 0, (lengths * group).sum(-1) / np.maximum(count, 1), np.nan)
        np.testing.assert_allclose(data[name].values, expected)
    assert list(data.output.values) == ["0 0", "0 1", "0 <eos>", "1 0", "1 1", "1 <eos>"]


def test_averages_are_means_over_the_iterations_recorded(every):
    asked = {"axes": {"clip_high": [0.1, 0.4]}, "measure": {"policy": policy, "logits": logits}, **RUN}
    for first, share in ((4, 0.25), (1, 0.0), (12, 0.95)):
        for given in (first, share):
            data = gj.sweep(CONFIG, average_from=given, record=["expected_reward", "surrogate"], **asked)
            assert "iteration" not in data.dims
            kept = every.sel(iteration=slice(first, None))
            for name in ("expected_reward", "surrogate", "policy", "logits"):
                mean = kept[name].mean("iteration")
                assert data[name].dims == mean.dims
                np.testing.assert_allclose(data[name], mean, rtol=1e-10, atol=1e-12, err_msg=name)
            assert data.finite.dtype == bool
    thinned = gj.sweep(CONFIG, average_from=5, record_every=3, record=["expected_reward"], **asked)
    mean = every.expected_reward.sel(iteration=[6, 9, 12]).mean("iteration")
    np.testing.assert_allclose(thinned.expected_reward, mean, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("x64", [False, True])
def test_the_average_of_a_constant_is_the_constant_however_long_the_run(x64):
    """E[r] = .3 of a policy that stands still: in float32 a plain sum of 1e5 of them gives .30028."""
    still = gj.Config(
        policy=gj.ActionPolicy.from_probabilities([[0.3, 0.7]]),
        task=gj.Questions(table=[[1.0, 0.0]]),
        optimizer=gj.SGD(learning_rate=0.0),
        loop=gj.Loop(group_size=2),
    )
    with jax.enable_x64(x64):
        data = gj.sweep(
            still, seeds=1, iterations=100_000, record=["expected_reward"], average_from=0, progress=False
        )
    np.testing.assert_allclose(data.expected_reward, 0.3, rtol=2e-7)


def test_a_thinned_record_is_a_part_of_the_whole_one(every):
    asked = {"axes": {"clip_high": [0.1, 0.4]}, "measure": {"policy": policy, "logits": logits}, **RUN}
    data = gj.sweep(CONFIG, record_every=4, record=["expected_reward", "clip_fraction_high"], **asked)
    assert list(data.iteration.values) == [4, 8, 12]
    for name in data.data_vars:
        if name != "finite":
            np.testing.assert_allclose(
                data[name], every[name].sel(iteration=[4, 8, 12]), rtol=1e-10, atol=1e-13
            )


def test_the_state_before_the_first_step_is_recorded(every):
    start = gj.ActionPolicy(logits=[[0.3, 0.0, -0.2], [0.0, 1.0, 0.0]])
    config = dataclasses.replace(CONFIG, policy=start)
    record = ["expected_reward", "surrogate", "step_ratio", "reward"]
    asked = {"record": record, "measure": {"policy": policy}, **RUN}
    for thin in ({}, {"record_every": 6}):
        data = gj.sweep(config, record_start=True, **asked, **thin)
        plain = gj.sweep(config, **asked, **thin)
        assert data.iteration.values[0] == 0
        xr.testing.assert_equal(data.isel(iteration=slice(1, None)), plain)
        first = data.isel(iteration=0)
        chance = softmax(np.asarray(start.logits).T).T
        np.testing.assert_allclose(first.policy, np.broadcast_to(chance, (3, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(first.expected_reward, (chance * TABLE).sum(1).mean(), rtol=1e-12)
        assert np.isnan(first.surrogate).all()
        assert np.isnan(first.step_ratio).all()
        if not thin:  # the batch that the first iteration is trained on
            np.testing.assert_array_equal(first.reward, data.reward.sel(iteration=1))


def test_train_run_takes_the_same_measures(every):
    config = dataclasses.replace(
        CONFIG, method=dataclasses.replace(CONFIG.method, gain=gj.methods.Clip(high=0.1))
    )
    state = train.init(config, np.array([0, 1, 2]))
    _, info = train.run(config, state, iterations=12, record=["reward"], measure={"policy": policy})
    assert info["policy"].shape == (12, 2, 3, 3)
    kept = every.policy.sel(clip_high=0.1).transpose("iteration", "context", "answer", "seed")
    np.testing.assert_allclose(info["policy"], kept, rtol=1e-10)
    after, one = train.step(config, state, record=["reward"], measure={"policy": policy})
    np.testing.assert_allclose(one["policy"], info["policy"][0], rtol=1e-10)
    single, averaged = train.run(
        config, train.init(config, 1), iterations=12, record=[], measure={"policy": policy}, average_from=0.5
    )
    np.testing.assert_allclose(averaged["policy"], info["policy"][6:, :, :, 1].mean(0), rtol=1e-10)
    assert after.step == 1
    assert single.step == 12


def test_a_network_is_measured_one_run_at_a_time():
    space = gj.Sequences(vocab=2, horizon=2)
    task = gj.SequenceReward(function=lambda prompts, tokens, mask: jnp.sum(tokens * mask, 2))
    config = gj.Config(policy=gj.MLPPolicy(space=space, width=3), task=task, loop=gj.Loop(group_size=4))

    @gj.measure("output")
    def chance(view):
        return view.probabilities[0]

    data = gj.sweep(config, {"learning_rate": [0.01, 0.1]}, measure={"chance": chance}, record_every=4, **RUN)
    assert data.chance.dims == ("learning_rate", "seed", "iteration", "output")
    np.testing.assert_allclose(data.chance.sum("output"), 1, rtol=1e-12)
    _, info = train.run(
        config, train.init(config, 2), iterations=12, record_every=4, measure={"chance": chance}
    )
    slow = dataclasses.replace(config, optimizer=gj.AdamW(learning_rate=0.1))
    _, info = train.run(slow, train.init(slow, 2), iterations=12, record_every=4, measure={"chance": chance})
    np.testing.assert_allclose(data.chance.sel(learning_rate=0.1, seed=2), info["chance"], rtol=1e-9)


@pytest.mark.parametrize(
    ("axes", "dims", "name"),
    [
        ({"kl_coef": [0.0, 0.1]}, ("seed",), "mine"),
        ({"kl_coef": [0.0, 0.1]}, ("kl_coef",), "mine"),
        ({"kl_coef": [0.0, 0.1]}, ("mine",), "mine"),
        ({"kl_coef": [0.0, 0.1]}, ("iteration",), "mine"),
        ({"kl_coef": [0.0, 0.1]}, (), "kl_coef"),
    ],
)
def test_colliding_names_are_refused_before_anything_compiles(axes, dims, name, monkeypatch):
    monkeypatch.setattr(runner, "program_of", None)

    @gj.measure(*dims)
    def mine(view):
        chance = view.probabilities[0]
        return chance if dims else chance[0]

    with pytest.raises(ValueError, match="has the name"):
        gj.sweep(CONFIG, axes, measure={name: mine}, **RUN)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda v: v.probabilities, "gives shape"),
        (lambda v: v.probabilities[0].sum(-1), "gives shape"),
        (lambda v: jnp.zeros((3, 2)), "gives shape"),
    ],
)
def test_a_measure_of_another_shape_is_refused_before_anything_compiles(function, says, monkeypatch):
    monkeypatch.setattr(runner, "program_of", None)
    with pytest.raises(ValueError, match=says):
        gj.sweep(CONFIG, measure={"mine": gj.measure("answer")(function)}, **RUN)


def test_measures_that_disagree_about_an_axis_are_refused(monkeypatch):
    monkeypatch.setattr(runner, "program_of", None)
    first = gj.measure("thing")(lambda v: v.probabilities[0])
    second = gj.measure("thing")(lambda v: v.probabilities[:, 0])
    with pytest.raises(ValueError, match="'thing' has 2 places in 'second' and 3 in 'first'"):
        gj.sweep(CONFIG, measure={"first": first, "second": second}, **RUN)
    short = gj.measure("thing", labels={"thing": ["a", "b"]})(lambda v: v.probabilities[0])
    with pytest.raises(ValueError, match="3 places along 'thing', and 2 labels"):
        gj.sweep(CONFIG, measure={"short": short}, **RUN)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: gj.measure("context", per="batch"), "'iteration' or 'step'"),
        (lambda: gj.measure("context", mean=True), "per step"),
        (lambda: gj.measure("a b"), "must be a name"),
        (lambda: gj.measure("a", "a"), "repeat"),
        (lambda: gj.measure("answer", labels={"anser": [1]}), "did you mean answer"),
        (lambda: gj.sweep(CONFIG, measure={"reward": policy}, **RUN), "a diagnostic has that name"),
        (lambda: gj.sweep(CONFIG, measure={"my policy": policy}, **RUN), "identifier"),
        (lambda: gj.sweep(CONFIG, average_from=13, **RUN), "average_from is 13"),
        (lambda: gj.sweep(CONFIG, average_from=1.5, **RUN), r"average_from is 1\.5"),
        (lambda: gj.sweep(CONFIG, average_from=2, record_start=True, **RUN), "record_start"),
    ],
)
def test_bad_requests_are_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


@pytest.mark.parametrize("measure", [[policy], {"policy": 3}])
def test_a_measure_is_a_function_with_a_name(measure):
    with pytest.raises(TypeError, match="function"):
        gj.sweep(CONFIG, measure=measure, **RUN)


def test_the_clip_of_a_sum_over_groups_has_no_mask():
    exact = dataclasses.replace(CONFIG, expectation=gj.Exact())
    with pytest.raises(ValueError, match="sums over groups"):
        gj.sweep(exact, record=["step_clip_mask"], iterations=2, progress=False)


def test_a_number_that_changes_nothing_is_said():
    """The clip cannot act at one inner step; the penalty's coefficient can."""
    config = dataclasses.replace(CONFIG, loop=gj.Loop(group_size=4))
    with pytest.warns(UserWarning, match="identical along 'clip_high'") as caught:
        gj.sweep(config, {"clip_high": [0.1, 0.3], "kl_coef": [0.0, 0.5]}, **RUN)
    assert len(caught) == 1
    gj.sweep(dataclasses.replace(CONFIG, expectation=gj.Exact()), **RUN)  # seeds are no setting: no warning


def test_what_else_differs_between_methods_is_said(capsys):
    variants = {"method": {"grpo": gj.methods.grpo, "dr_grpo": gj.methods.dr_grpo}}
    data = gj.sweep(CONFIG, variants=variants, seeds=2, iterations=2)
    said = capsys.readouterr().err
    different = "penalty: Penalty(divergence=K3, coef=0.04) in grpo; none in dr_grpo"
    assert f"these differ in more than their names\n{different}\n" in said
    assert data.attrs["differences"] == different
    assert "runs x 2 iterations in" in said
