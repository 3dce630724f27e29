"""What a sweep says of itself is true of every variant: labels, attributes, warnings, the closing line."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import grpo_jax as gj
from grpo_jax.sequences import Sequences
from grpo_jax.sweeps import layout
from grpo_jax.sweeps.dataset import idle
from grpo_jax.sweeps.layout import Layout, estimate, together
from grpo_jax.sweeps.progress import Progress

QUIET = {"seeds": 2, "progress": False}
CONFIG = gj.Config(
    policy=gj.ActionPolicy.uniform(contexts=1, actions=3),
    task=gj.Questions(table=[[1.0, 0.5, 0.0]]),
    loop=gj.Loop(group_size=4),
)


def length(prompts, tokens, mask):
    return jnp.sum(mask, 2)


def test_outputs_are_labelled_by_tokens_only_where_all_variants_list_the_same():
    """With EOS 2 the outputs are 2, 02, 12, 00, 01, ...; with EOS 0 they are 0, 10, ...: seven each."""
    last, first = (gj.TreePolicy.uniform(Sequences(vocab=3, horizon=2, eos=eos)) for eos in (2, 0))
    tree = gj.Config(policy=last, task=gj.SequenceReward(function=length), loop=gj.Loop(group_size=4))
    asked = {"iterations": 1, "record": ["probabilities", "reward"], **QUIET}
    apart = gj.sweep(tree, variants={"policy": {"last": last, "first": first}}, **asked)
    np.testing.assert_array_equal(apart.output, np.arange(7))
    alike = gj.sweep(tree, variants={"group_size": [4, 5]}, **asked)
    tokens = {"<eos>", *(f"{i} {j}" for i in "01" for j in ("0", "1", "<eos>"))}
    assert set(alike.output.values) == tokens


def test_updates_are_those_of_every_variant():
    data = gj.sweep(CONFIG, variants={"inner_steps": [1, 4]}, iterations=3, **QUIET)
    assert data.attrs["updates"] == 2 * 3 * (1 + 4)


def test_the_estimate_and_the_line_at_the_end_speak_of_every_variant(capsys):
    """Two groups of answers, noise or none: as many updates each, another expectation, another reason."""
    variants = {"task.noise": {"none": None, "coin": gj.Bernoulli()}, "inner_steps": [1, 4]}
    data = gj.sweep(CONFIG, variants=variants, seeds=2, iterations=3)
    said = capsys.readouterr().err
    assert f"{2 * 2 * 3 * (1 + 4)} updates" in said
    assert data.attrs["expectation"] == "Counts in none/1, none/4; Sampled in coin/1, coin/4"
    few, vary = "rewards depend on one of few actions alone", "rewards may vary for one and the same action"
    assert data.attrs["because"] == f"{few} in none/1, none/4; {vary} in coin/1, coin/4"
    assert f"Counts ({few}) in none/1, none/4; Sampled ({vary}) in coin/1, coin/4" in said


def test_memory_is_that_of_the_largest_variant():
    made = [dataclasses.replace(CONFIG, loop=gj.Loop(group_size=n)) for n in (2, 64)]
    shape = Layout(chunk_size=8, chunks=1)
    small, large = (estimate(c, shape, 8, iterations=5, numbers=3) for c in made)
    assert together([small, large]).memory == large.memory > small.memory
    assert together([small, large]).updates == 2 * 8 * 5


@pytest.mark.parametrize(
    ("ran", "seconds"),
    [
        ([], 0),
        ([(5, 7)], 2),  # one part alone, however many threads there are
        ([(5, 7), (5, 8)], 3),
        ([(5, 7), (5.5, 6), (6, 9)], 4),  # three parts on two threads
        ([(8, 9), (5, 7)], 3),  # a compilation between them
    ],
)
def test_running_is_the_time_in_which_some_part_ran(ran, seconds):
    bar = Progress(4, 1, False)
    for running in ran:
        bar.took(compiling=0.0, running=running)
    assert bar.run_seconds == seconds


@pytest.mark.parametrize(("seeds", "threads"), [(2, 1), (300, 3)])
def test_threads_are_those_that_had_a_part(seeds, threads, monkeypatch, capsys):
    monkeypatch.setattr(layout, "cores", lambda: 3)
    data = gj.sweep(CONFIG, seeds=seeds, iterations=2)
    assert data.attrs["threads"] == threads
    assert f"runs on {threads} thread" in capsys.readouterr().err


def test_runs_that_differ_are_not_said_to_be_identical():
    """After one iteration the policies differ; the rewards of their first batch, drawn before, do not."""
    asked = {"record": ["reward"], "iterations": 1, **QUIET}
    with pytest.warns(UserWarning, match="^everything recorded is identical along 'learning_rate'") as caught:
        gj.sweep(CONFIG, {"learning_rate": [0.01, 0.5]}, **asked)
    assert len(caught) == 1
    asked["record"] = ["reward", "probabilities"]
    data = gj.sweep(CONFIG, {"learning_rate": [0.01, 0.5]}, **asked)
    assert float(abs(data.probabilities.diff("learning_rate")).max()) > 0.01


def test_seeds_may_all_give_the_same():
    """Without a draw every seed is one and the same run, which is what was asked for."""
    exact = dataclasses.replace(CONFIG, expectation=gj.Exact())
    data = gj.sweep(exact, iterations=2, **QUIET)
    np.testing.assert_array_equal(data.expected_reward.diff("seed"), 0)


def test_prompts_are_numbered_only_where_they_are_the_contexts_in_order(tmp_path):
    """A minibatch holds one of two contexts, shuffled: its place 0 may be either."""
    table = [[1.0, 0.5, 0.0], [0.0, 0.2, 1.0]]
    two = dataclasses.replace(
        CONFIG,
        policy=gj.ActionPolicy.uniform(contexts=2, actions=3),
        task=gj.Questions(table=table),
        expectation=gj.Sampled(),
    )
    asked = {"iterations": 2, "record": ["step_ratio"], **QUIET}
    for loop, labelled in (
        (gj.Loop(group_size=4), True),
        (gj.Loop(group_size=4, minibatches=2), False),
        (gj.Loop(group_size=4, prompts=2), False),
    ):
        data = gj.sweep(dataclasses.replace(two, loop=loop), **asked)
        assert ("prompt" in data.coords) == labelled
        assert "entry" in data.coords
    folder = tmp_path / "mixed"
    mixed = dataclasses.replace(two, loop=gj.Loop(group_size=4, minibatches=2))
    xr.testing.assert_identical(
        gj.sweep(mixed, out=folder, **asked).drop_attrs(), gj.load(folder).drop_attrs()
    )


def test_attributes_say_how_long_a_run_was_and_what_was_averaged():
    data = gj.sweep(CONFIG, iterations=8, record_every=2, average_from=0.5, **QUIET)
    assert [data.attrs[name] for name in ("iterations", "record_every", "average_from")] == [8, 2, 5]
    assert "average_from" not in gj.sweep(CONFIG, iterations=8, **QUIET).attrs


def test_what_differs_in_one_number_or_in_a_nan_is_not_idle():
    """Three places of `a`: x and flag are the same at each, NaN where NaN; y differs at the last one."""
    x = np.broadcast_to([[1.0, np.nan], [0.0, 2.0]], (3, 2, 2))
    y = np.array([[1.0, np.nan], [1.0, np.nan], [1.0, 1.0]])
    same = xr.Dataset({"x": (("a", "b", "c"), x), "flag": (("b", "a"), np.ones((2, 3), bool))})
    assert idle(same, ["a", "b"]) == ["a"]
    assert idle(same.assign(y=(("a", "c"), y)), ["a"]) == []
    assert idle(same.assign(y=(("a", "c"), y[:, ::-1][[0, 1, 0]])), ["a"]) == ["a"]
