"""Names: every short one is swept, and two things of a result never share one."""

import dataclasses
import importlib.metadata
import importlib.resources

import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax import methods
from grpo_jax.measures import DEFAULT
from grpo_jax.parts.gains import Clip
from grpo_jax.parts.penalties import K3, Penalty
from grpo_jax.sweeps import runner
from grpo_jax.sweeps.axes import ALIASES, Axis, parse_variants
from grpo_jax.sweeps.request import check_names, unlike

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


@gj.part
class Named:
    """The clip, with numbers called like things that a result holds anyway."""

    finite: float = gj.number(0.2)
    quantile: float = gj.number(0.2)
    context: float = gj.number(0.0)
    algorithm: float = gj.number(0.0)

    def __call__(self, at):
        inner = Clip(low=0.2, high=0.2)(at)
        return inner * (1 + 0 * (self.finite + self.quantile + self.context + self.algorithm))


ALL = {"clip_low": [0.1], "clip_high": [0.3], "kl_coef": [0.1], "reward_scale": [2.0]}
STRUCTURE = {"group_size": [4], "inner_steps": [2]}


def test_every_short_name_is_swept():
    """Each is a dimension of the result and reaches its number."""
    assert set(ALL) | set(STRUCTURE) == set(ALIASES)
    record = [name for name in DEFAULT if name not in ALIASES]
    data = gj.sweep(config(), ALL, variants=STRUCTURE, record=record, **SHORT)
    assert set(ALIASES) < set(data.expected_reward.dims)
    direct = config(
        method=dataclasses.replace(
            methods.grpo, gain=Clip(low=0.1, high=0.3), penalty=Penalty(divergence=K3(), coef=0.1)
        ),
        task=gj.Questions(table=config().task.table, scale=2.0),
        loop=gj.Loop(group_size=4, inner_steps=2),
    )
    alone = gj.sweep(direct, record=record, **SHORT)
    for name in record:
        np.testing.assert_allclose(np.squeeze(data[name]), np.squeeze(alone[name]), rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("axes", "options", "says"),
    [
        ({"finite": [0.1]}, {}, r"'finite' has the name of a measure.* full path, 'method\.gain\.finite'"),
        (
            {"quantile": [0.1]},
            {"record": ["ratio_quantiles"]},
            r"of an axis of 'ratio_quantiles'.*gain\.quantile",
        ),
        ({"context": [0.1]}, {"record": ["probabilities"]}, r"of an axis of 'probabilities'.*gain\.context"),
        (
            {"algorithm": [0.1]},
            {"variants": {"method": {"mine": dataclasses.replace(methods.dapo, gain=Named())}}},
            r"another dimension or coordinate.*gain\.algorithm",
        ),
        ({("finite", "context"): [(0.1, 0.2)]}, {}, r"'finite' has the name of a measure"),
    ],
)
def test_names_that_collide_are_refused_before_compiling(axes, options, says, door):
    named = config(method=dataclasses.replace(methods.dapo, gain=Named()))
    with pytest.raises(ValueError, match=says):
        gj.sweep(named, axes, **options, **SHORT)


def test_a_full_path_is_a_name_of_its_own(door):
    named = config(method=dataclasses.replace(methods.dapo, gain=Named()))
    with pytest.raises(Reached):
        gj.sweep(named, {f"method.gain.{name}": [0.1] for name in ("finite", "algorithm")}, **SHORT)


def test_length_is_a_name_of_two_things(door):
    constant = config(method=methods.dr_grpo)
    with pytest.raises(ValueError, match=r"'length' has the name of a measure.*'method\.reduction\.length'"):
        gj.sweep(constant, {"length": [1.0, 2.0]}, record=["length"], **SHORT)
    with pytest.raises(Reached):
        gj.sweep(constant, {"length": [1.0, 2.0]}, record=["reward"], **SHORT)


def axis(name, path, *labels):
    return Axis(name, (path,), (np.arange(2.0),), {label: np.arange(2) for label in labels or (name,)})


@pytest.mark.parametrize(
    ("axes", "measures", "says"),
    [
        (
            [],
            {"mine": ("seed",)},
            "measure 'mine' has the name 'seed' of a dimension of every sweep",
        ),
        ([], {"mine": ("a", "a")}, "an axis of the measure 'mine' has the name 'a' of another of its axes"),
        ([], {"iteration": ()}, "the measure 'iteration' has the name of a dimension of every sweep"),
        (
            [],
            {"policy": ("answer",), "answer": ()},
            "'answer' has the name of an axis of 'policy'",
        ),
        ([axis("a", "x.a"), axis("a", "y.a")], {}, r"'a' has .* another dimension.*full path, 'y\.a'"),
        ([axis("a", "x.a"), axis("b+a", "x.b", "b", "a")], {}, "'a' has the name of another"),
        ([axis("policy", "policy")], {"policy": ()}, "rename the measure"),
    ],
)
def test_every_pair_of_names_is_compared(axes, measures, says):
    with pytest.raises(ValueError, match=says):
        check_names(axes, measures)


def test_measures_may_share_an_axis():
    measures = {"policy": ("context", "answer"), "value": ("context",)}
    check_names([axis("x.a", "x.a"), axis("a+b", "y.a", "a", "b")], measures)


def test_a_comparison_of_methods_says_what_else_differs():
    (found,) = parse_variants(
        config(), {"method": {n: methods.METHODS[n] for n in ("grpo", "dr_grpo", "gspo")}}
    )
    text = unlike(found)
    assert "penalty: Penalty(divergence=K3, coef=0.04) in grpo; none in dr_grpo, gspo" in text
    assert "gain: Clip(low=0.2, high=0.2) in grpo, dr_grpo; Clip(low=0.0003, high=0.0004) in gspo" in text
    alike = {"grpo": methods.grpo, "bnpo": methods.bnpo}
    assert unlike(parse_variants(config(), {"method": alike})[0]) is None
    assert unlike(parse_variants(config(), {"group_size": [2, 4]})[0]) is None


# names of the package


def test_methods_show_methods_and_know_the_nearest():
    shown = dir(methods)
    assert set(methods.METHODS) < set(shown)
    assert not {"GroupMean", "Clip", "Token", "dataclasses", "replace", "nearest"} & set(shown)
    assert all(hasattr(methods, name) for name in shown)
    with pytest.raises(AttributeError, match="no method 'drgrpo'; did you mean dr_grpo"):
        _ = methods.drgrpo
    with pytest.raises(AttributeError, match=r"has no method '__wrapped__'$"):
        _ = methods.__wrapped__


def test_the_package_says_its_version_and_that_it_is_typed():
    assert gj.__version__ == importlib.metadata.version("grpo_jax")
    assert (importlib.resources.files("grpo_jax") / "py.typed").is_file()
