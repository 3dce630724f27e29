"""What is asked of a sweep is what is done, or an error that says what is allowed, at once."""

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax import methods
from grpo_jax.config import validate
from grpo_jax.parts.penalties import K3, Penalty
from grpo_jax.sweeps import runner
from grpo_jax.sweeps.axes import parse_axes, parse_variants, swept_numbers
from grpo_jax.sweeps.request import checked_seeds, seed_count

SHORT = {"iterations": 2, "record_every": 2, "progress": False}


class Reached(Exception):
    """The request passed the door: a program was about to be made."""


@pytest.fixture
def door(monkeypatch):
    """Stops every sweep where it would begin to compile."""

    def reached(*args, **options):
        raise Reached

    monkeypatch.setattr(runner, "program_of", reached)


def config(**changes):
    base = gj.Config(
        policy=gj.ActionPolicy.uniform(contexts=2, actions=3),
        task=gj.Questions(table=[[1.0, 0.5, 0.0], [0.0, 1.0, 0.3]]),
        loop=gj.Loop(group_size=4),
    )
    return dataclasses.replace(base, **changes)


def test_a_name_that_means_another_number_in_another_variant_is_refused(door):
    """grpo's only ``coef`` is its penalty's; where the KL is part of the reward, it is the return's."""
    pair = {"direct": methods.grpo, "shaped": methods.grpo_kl_in_reward}
    paths = {n: parse_axes(config(method=m), {"coef": [0.0, 0.5]})[0].paths for n, m in pair.items()}
    assert paths["direct"] != paths["shaped"]
    says = f"'coef' means {paths['direct'][0]} in direct and {paths['shaped'][0]} in shaped; sweep them apart"
    with pytest.raises(ValueError, match=says):
        gj.sweep(config(), {"coef": [0.0, 0.5]}, variants={"method": pair}, **SHORT)
    with pytest.raises(Reached):
        gj.sweep(config(), {"clip_high": [0.0, 0.5]}, variants={"method": pair}, **SHORT)


# scalars of the request

WRONG = [
    ({"iterations": "2"}, TypeError, "iterations is '2'; it must be a whole number"),
    ({"iterations": 2.0}, TypeError, "iterations is 2.0; it must be a whole number"),
    ({"iterations": True, "record_every": 1}, TypeError, "iterations is True"),
    ({"record_every": True}, TypeError, "record_every is True"),
    ({"root": 0.5}, TypeError, "root is 0.5; it must be a whole number"),
    ({"root": -1}, ValueError, "root is -1; it must be at least 0"),
    (
        {"iterations": 2**31, "record_every": 2**31},
        ValueError,
        r"iterations is 2147483648; it must be below 2\^31",
    ),
    ({"iterations": 10**21, "record_every": 10}, ValueError, "it must be below"),
    ({"root": 2**32}, ValueError, r"root is 4294967296; it must be below 2\^32"),
    ({"chunk_size": 2.0}, TypeError, "chunk_size is 2.0; it must be a whole number"),
    ({"chunk_size": 0}, ValueError, "chunk_size is 0; it must be at least 1"),
    ({"devices": "1"}, TypeError, "devices is '1'; it must be a whole number"),
    ({"seeds": True}, TypeError, "seeds is True; it must be a count"),
    ({"seeds": "3"}, TypeError, "seeds is '3'; it must be a count"),
    ({"seeds": 1.5}, TypeError, "seeds is 1.5; it must be a count"),
    ({"seeds": [0, True]}, TypeError, "seeds holds True"),
    ({"seeds": np.array([0.0, 1.0])}, TypeError, "seeds holds .*0.0"),
    ({"seeds": []}, ValueError, "between 1 and"),
    ({"seeds": range(5, 5)}, ValueError, "between 1 and"),
    ({"seeds": [[1, 2]]}, TypeError, r"seeds holds \[1, 2\]"),
    ({"seeds": [3, -1]}, ValueError, r"seeds lie in \[-1, 3\]; they must lie in \[0, 2\^32\)"),
    ({"seeds": [2**32]}, ValueError, "must lie in"),
    ({"record": [1]}, TypeError, "record names diagnostics; 1 is no name"),
    ({"record": 5}, TypeError, "record is 5; it must be a list of names"),
    ({"record": "reward"}, TypeError, "record is 'reward'; it must be a list of names"),
    ({"out": ""}, ValueError, "out is ''; it must be the path of a folder"),
    ({"out": 3}, TypeError, "out is 3; it must be the path of a folder"),
]


@pytest.mark.parametrize(("changes", "error", "says"), WRONG, ids=[str(w[0])[:30] for w in WRONG])
def test_a_request_of_the_wrong_kind_is_refused(changes, error, says, door):
    with pytest.raises(error, match=says):
        gj.sweep(config(), **{**SHORT, **changes})


@pytest.mark.parametrize("changes", [{"iterations": True}, {"iterations": 2.0}, {"record_every": "1"}])
def test_a_run_takes_whole_numbers_too(changes):
    state = gj.train.init(config(), 0)
    with pytest.raises(TypeError, match="it must be a whole number"):
        gj.train.run(config(), state, **{"iterations": 1, **changes})
    with pytest.raises(TypeError, match=r"root is 0\.5"):
        gj.train.init(config(), 0, root=0.5)


@pytest.mark.parametrize(
    "seeds", [3, np.int64(3), [5, 2], (5, 2), range(2, 9, 3), np.array([1, 4], np.uint8)]
)
def test_seeds_are_those_asked_for(seeds):
    wanted = range(int(seeds)) if isinstance(seeds, (int, np.integer)) else seeds
    assert seed_count(seeds) == len(wanted)
    assert checked_seeds(seeds).tolist() == [int(seed) for seed in wanted]
    assert checked_seeds(seeds).dtype == np.uint32


SPACE = gj.Sequences(vocab=3, horizon=2, eos=2)


@pytest.mark.parametrize(
    "make",
    [
        lambda wrong: gj.Loop(group_size=wrong),
        lambda wrong: gj.Loop(prompts=wrong),
        lambda wrong: gj.Loop(minibatches=wrong),
        lambda wrong: gj.Sequences(vocab=wrong, horizon=2),
        lambda wrong: gj.Sequences(vocab=3, horizon=wrong),
        lambda wrong: gj.Sequences(vocab=3, horizon=2, eos=wrong),
        lambda wrong: gj.Sequences(vocab=3, horizon=2, forbidden=((0, wrong),)),
        lambda wrong: gj.MLPPolicy(space=SPACE, width=wrong),
        lambda wrong: gj.MLPPolicy(space=SPACE, contexts=wrong),
        lambda wrong: gj.SequenceReward(function=len, contexts=wrong),
        lambda wrong: gj.Exact(cells=wrong),
    ],
)
@pytest.mark.parametrize("wrong", [True, 2.0, "2"])
def test_what_counts_is_a_whole_number(make, wrong):
    with pytest.raises(TypeError, match=f"is {wrong!r}; it must be a whole number"):
        make(wrong)


def test_there_is_something_to_ask():
    nothing = config(
        policy=gj.ActionPolicy.uniform(contexts=0, actions=3), task=gj.Questions(table=np.zeros((0, 3)))
    )
    with pytest.raises(ValueError, match="ActionPolicy has no contexts"):
        validate(nothing)


# settings of the grid

TWICE = 0.1 + 1e-12
"""Another number than 0.1 in double precision, the same in single."""

GRIDS = [
    ({"learning_rate": ["0.1"]}, None, TypeError, "'0.1' is not one"),
    ({"learning_rate": [0.1, True]}, None, TypeError, "True is not one"),
    ({"learning_rate": [0.1, None]}, None, TypeError, "None is not one"),
    ({"learning_rate": [1j]}, None, TypeError, "1j is not one"),
    ({"learning_rate": np.array([True, False])}, None, TypeError, r"True_? is not one"),
    ({"learning_rate": "0.1"}, None, TypeError, "'0.1' is not one"),
    ({"learning_rate": [0.1, 0.2, 0.1]}, None, ValueError, "repeats a setting: 0.1 and 0.1 are equal, "),
    ({"learning_rate": [0.1, TWICE]}, None, ValueError, r"0\.1 and 0\.10000000000\d* are equal in float32"),
    ({"learning_rate": {1: 0.1, "1": 0.2}}, None, ValueError, "has the label '1' twice"),
    ({"learning_rate": [1e300]}, None, ValueError, r"learning_rate is 1e\+300, which is infinite in float32"),
    ({"learning_rate": [1e-60]}, None, ValueError, "learning_rate is 1e-60, which is 0 in float32"),
    ({"task.table": [np.full((2, 3), 1e39)]}, None, ValueError, r"table is 1e\+39, which is infinite"),
    ({"task.table": {"a": np.zeros((2, 3)), "b": np.zeros((2, 2))}}, None, ValueError, "ragged"),
    ({"task.table": [[[0.0, 1.0, 2.0], [0.0]]]}, None, ValueError, "ragged"),
    ({"task.table": [[["0", "1", "2"]] * 2]}, None, TypeError, "is not one"),
    ({("learning_rate", "kl_coef"): [(0.1, 0.0)] * 2}, None, ValueError, "repeats a setting"),
    ({("learning_rate", 3): [(0.1, 0.0)]}, None, TypeError, "named by its path, a string; 3 is a int"),
    ({3: [0.1]}, None, TypeError, "named by its path, a string; 3 is a int"),
    ({(): [0.1]}, None, ValueError, "names no path"),
    ([("learning_rate", [0.1])], None, TypeError, "axes is a list; it must be a mapping"),
    (None, [("group_size", [4])], TypeError, "variants is a list; it must be a mapping"),
    (None, {("group_size", "inner_steps"): [(4, 1)]}, TypeError, "named by its path, a string"),
    (None, {"group_size": [4, 8, 4]}, ValueError, "has 4 twice"),
    (None, {"group_size": [True]}, TypeError, "whole number"),
    (None, {"group_size": ["4"]}, TypeError, "whole number"),
    (None, {"group_size": [None]}, TypeError, "whole number"),
    (None, {"method": [methods.grpo, methods.grpo]}, ValueError, "twice"),
    (None, {"method": {"grpo": methods.grpo, "none": None}}, TypeError, "method holds a part"),
]


@pytest.mark.parametrize(("axes", "variants", "error", "says"), GRIDS)
def test_a_setting_that_would_be_changed_or_lost_is_refused(axes, variants, error, says, door):
    with pytest.raises(error, match=says):
        gj.sweep(config(), axes, variants=variants, **SHORT)


def test_tables_are_judged_by_their_part_all_together():
    coins = config(task=gj.Questions(table=np.full((2, 3), 0.5), noise=gj.Bernoulli()))
    tables = np.stack([np.full((2, 3), 0.1), np.full((2, 3), 1.5)])
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\] under Bernoulli noise"):
        parse_axes(coins, {"task.table": tables})
    parse_axes(config(), {"task.table": tables})
    starts = np.zeros((4, 2, 3))
    starts[2, 1] = -np.inf
    with pytest.raises(ValueError, match="-inf for single actions, not for all of a context"):
        parse_axes(config(), {"policy.logits": starts})


def test_what_single_precision_loses_double_keeps(x64, door):
    with pytest.raises(Reached):
        gj.sweep(config(), {"learning_rate": [0.1, TWICE, 1e-60]}, **SHORT)
    huge = config(task=gj.Questions(table=[[1e300, 0.0, 1.0]] * 2))
    validate(huge)
    with jax.enable_x64(False), pytest.raises(ValueError, match=r"task\.table is 1e\+300.*float32"):
        validate(huge)


def test_settings_come_in_any_form(door):
    for values in (0.1, np.float32(0.1), jnp.float32(0.1), np.array([0.1, 0.2]), jnp.array([0.1, 0.2])):
        (axis,) = parse_axes(config(), {"learning_rate": values})
        np.testing.assert_allclose(axis.values[0], np.atleast_1d(np.asarray(values)), rtol=1e-7)
        np.testing.assert_array_equal(axis.labels["learning_rate"], axis.values[0])
    (axis,) = parse_axes(config(), {"learning_rate": (x / 10 for x in (1, 2))})
    assert axis.labels["learning_rate"].tolist() == [0.1, 0.2]


def test_labels_keep_equal_settings_apart():
    (axis,) = parse_axes(config(), {"learning_rate": {"paper": 0.1, "code": 0.1}})
    assert axis.labels["learning_rate"].tolist() == ["paper", "code"]
    assert axis.values[0].tolist() == [0.1, 0.1]


def test_labels_of_zipped_settings_are_kept():
    pairs = {"mild": (0.01, 0.0), "strong": (0.02, 0.1)}
    data = gj.sweep(config(), {("learning_rate", "kl_coef"): pairs}, **SHORT)
    name = "learning_rate+kl_coef"
    assert data[name].values.tolist() == ["mild", "strong"]
    assert data.kl_coef.values.tolist() == [0.0, 0.1]
    one = gj.sweep(config(), {"learning_rate": [0.02], "kl_coef": [0.1]}, **SHORT)
    np.testing.assert_allclose(
        data.expected_reward.sel({name: "strong"}), one.expected_reward[0, 0], rtol=1e-5
    )


def test_none_is_a_variant_where_a_slot_may_be_empty():
    shapes = {"none": None, "k3": Penalty(divergence=K3(), coef=0.5)}
    data = gj.sweep(config(), variants={"method.penalty": shapes}, seeds=2, **{**SHORT, "iterations": 4})
    bare = config(method=dataclasses.replace(methods.grpo, penalty=None))
    alone = gj.sweep(bare, seeds=2, **{**SHORT, "iterations": 4})
    np.testing.assert_allclose(data.kl_ref.sel({"method.penalty": "none"}), alone.kl_ref, rtol=1e-5)
    (axis,) = parse_variants(config(), {"loop.prompts": [None, 4]})
    assert axis.labels["loop.prompts"].tolist() == ["None", "4"]


def test_a_check_of_one_s_own_sees_single_numbers_and_zipped_ones_together():
    @gj.part
    class Band:
        lower: float = gj.number(0.1)
        upper: float = gj.number(0.2)

        def check(self):
            if self.lower >= self.upper:
                raise ValueError("the band is empty")

        def __call__(self, at):
            return jnp.clip(jnp.exp(at.log_ratio), 1 - self.lower, 1 + self.upper) * at.advantages

    base = config(method=dataclasses.replace(methods.dapo, gain=Band()))
    parse_axes(base, {("lower", "upper"): [(0.3, 0.4), (0.5, 0.6)]})
    for axes in ({("lower", "upper"): [(0.3, 0.4), (0.6, 0.5)]}, {"lower": [0.05, 0.3]}):
        with pytest.raises(ValueError, match="the band is empty"):
            parse_axes(base, axes)


REFERENCES = np.array([[0.0, 0.0, 0.0], [0.0, -np.inf, 0.0]])[:, None].repeat(2, 1)


def test_a_penalty_swept_on_meets_a_zero_of_the_reference(door):
    barred = config(method=methods.dr_grpo, reference=REFERENCES[1])
    assert barred.method.penalty.coef == 0
    with pytest.raises(ValueError, match="penalty would be infinite"):
        gj.sweep(barred, {"kl_coef": [0.0, 0.04]}, **SHORT)
    on = config(method=methods.grpo, reference=REFERENCES[1])
    with pytest.raises(Reached):
        gj.sweep(on, {"kl_coef": [0.0]}, **SHORT)
    with pytest.raises(ValueError, match="penalty would be infinite"):
        gj.sweep(config(reference=REFERENCES[0]), {"reference": REFERENCES[:2]}, **SHORT)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_reference_holds_no_nan_and_no_infinity(bad, door):
    wrong = np.array([[0.0, bad, 0.0], [0.0, 0.0, 0.0]])
    for method in (methods.grpo, methods.dapo):
        with pytest.raises(ValueError, match=r"reference holds NaN or \+inf"):
            gj.sweep(config(method=method, reference=wrong), **SHORT)
    with pytest.raises(ValueError, match=r"reference (holds NaN or \+inf|is NaN)"):
        gj.sweep(config(reference=REFERENCES[0]), {"reference": [REFERENCES[0], wrong]}, **SHORT)


# folders and counts


def test_a_folder_is_made_when_the_request_is_sound(tmp_path, monkeypatch, door):
    monkeypatch.setenv("HOME", str(tmp_path))
    for wrong in ({"seeds": 0}, {"record": ["entropyy"]}, {"iterations": 3}):
        with pytest.raises(ValueError, match=r"seeds|entropy|multiple"):
            gj.sweep(config(), out="~/never", **(SHORT | wrong))
    assert not list(tmp_path.iterdir())


def test_a_home_is_where_results_go(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    data = gj.sweep(config(), out="~/runs", **SHORT)
    np.testing.assert_array_equal(gj.load(tmp_path / "home" / "runs").reward, data.reward)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that nobody can write")
def test_a_folder_that_cannot_be_written_is_refused(door):
    with pytest.raises(OSError, match=r"out cannot be written"):
        gj.sweep(config(), out="/proc/results", **SHORT)


def seconds(request):
    """Of processor time, however busy the machine is."""
    start = time.process_time()
    request()
    return time.process_time() - start


@pytest.mark.parametrize("seeds", [2**31, 10**9, range(10**9)])
def test_too_many_seeds_are_counted_not_made(seeds, monkeypatch, door):
    def made(*args, **options):
        raise AssertionError("an array of seeds was made")

    monkeypatch.setattr(runner, "checked_seeds", made)
    monkeypatch.setattr(runner, "free_memory", lambda: 2**32)
    with pytest.raises(MemoryError):
        gj.sweep(config(), seeds=seeds, **SHORT)


def test_more_seeds_than_there_are_is_no_memory_error(door):
    for seeds in (10**12, range(10**12)):
        with pytest.raises(ValueError, match="seeds"):
            gj.sweep(config(), seeds=seeds, **SHORT)


def test_a_grid_far_too_large_is_refused_at_once(door):
    grid = {"learning_rate": np.linspace(0.001, 1, 100_000), "kl_coef": np.linspace(0, 1, 100_000)}

    def ask():
        with pytest.raises(MemoryError, match="GiB"):
            gj.sweep(config(), grid, **SHORT)

    assert seconds(ask) < 4


def test_a_typo_beside_many_values_is_found_at_once(door):
    def ask():
        with pytest.raises(ValueError, match="did you mean entropy"):
            gj.sweep(config(), {"learning_rate": np.linspace(0.001, 1, 30_000)}, record=["entropyy"], **SHORT)

    assert seconds(ask) < 1


def test_thirty_thousand_numbers_and_tables_are_checked_together():
    rates = np.linspace(0.001, 1, 30_000)
    tables = np.random.default_rng(0).normal(size=(10_000, 2, 3))
    assert seconds(lambda: parse_axes(config(), {"learning_rate": rates.tolist(), "task.table": tables})) < 2
    with pytest.raises(ValueError, match=r"learning_rate is -0\.5; allowed is"):
        parse_axes(config(), {"learning_rate": np.append(rates, -0.5)})


@pytest.mark.parametrize("name", ["grpo", "gtpo", "reinforce_plus_plus_baseline"])
def test_validation_of_a_method_of_ours_costs_nothing(name):
    made = config(method=methods.METHODS[name])
    made = dataclasses.replace(
        made,
        policy=gj.ActionPolicy.uniform(contexts=1, actions=3),
        task=gj.Questions(table=[[1.0, 0.5, 0.0]]),
    )
    axes = swept_numbers(parse_axes(made, {"learning_rate": [0.1, 0.2]}))
    validate(made, axes)
    assert seconds(lambda: [validate(made, axes) for _ in range(20)]) / 20 < 0.05
