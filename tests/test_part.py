"""Parts: bounds, paths, edits, and their life as pytrees."""

import dataclasses
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import methods
from grpo_jax.config import Config, Loop
from grpo_jax.optimizers import L2, SGD, Adam, AdamW, Cosine
from grpo_jax.part import (
    aligned,
    declared,
    leaf_paths,
    nearest,
    number,
    part,
    put,
    put_all,
    static,
    static_paths,
    subparts,
)  # fmt: skip
from grpo_jax.policies import ActionPolicy
from grpo_jax.surrogate import Method
from grpo_jax.sweeps import sweep
from grpo_jax.tasks import Questions
from grpo_jax.types import Coupling, coupling


@part
class Knob:
    """One field of every sort."""

    share: Any = number(0.5, low=0.0, high=1.0)
    rate: Any = number(1.0, low=0.0, open_low=True)
    decay: Any = number(0.9, low=0.0, high=1.0, open_high=True)
    free: Any = number(float("inf"), nonfinite=True)
    table: Any = number(None, rank=2)
    count: int = static(3, low=1)
    kind: Any = static("plain")


@pytest.mark.parametrize("share", [0.0, 1.0, 1, np.float32(0.25), np.array([0.0, 1.0]), None])
def test_values_inside_the_bound_are_taken(share):
    assert Knob(share=share).share is share


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("share", -0.1, r"Knob\.share is -0\.1; allowed is \[0, 1\]"),
        ("share", 1.5, r"allowed is \[0, 1\]"),
        ("share", np.array([0.5, 2.0]), r"Knob\.share is 2; allowed"),
        ("share", float("nan"), r"Knob\.share is NaN"),
        ("share", jnp.array([0.5, jnp.nan]), r"Knob\.share is NaN"),
        ("rate", 0.0, r"allowed is \(0, inf\]"),
        ("rate", float("inf"), "must be finite"),
        ("decay", 1.0, r"allowed is \[0, 1\)"),
        ("free", float("nan"), "NaN"),
        ("table", [[1.0, float("nan")]], "NaN"),
        ("table", [[1.0, 2.0], [3.0]], "ragged"),
        ("count", 0, "at least 1"),
        ("share", 10**400, "beyond every floating-point number"),
    ],
)
def test_a_value_outside_names_the_field_and_what_is_allowed(field, value, says):
    with pytest.raises(ValueError, match=says):
        Knob(**{field: value})


MISTYPED = [
    ("share", "0.5"),
    ("share", True),
    ("share", np.True_),
    ("share", np.array(["0.5"])),
    ("share", np.array([True, False])),
    ("share", 0.5j),
    ("share", Fraction(1, 2)),
    ("table", [["0.5"]]),
    ("count", 2.5),
    ("count", True),
    ("count", np.True_),
    ("count", "2"),
    ("count", None),
    ("kind", [1, 2]),
    ("kind", np.zeros(2)),
]


@pytest.mark.parametrize(("field", "value"), MISTYPED)
def test_a_value_of_another_kind_is_a_type_error(field, value):
    with pytest.raises(TypeError, match=rf"Knob\.{field}"):
        Knob(**{field: value})


def test_nested_lists_are_one_leaf():
    knob = Knob(table=[[1, 2, 3], [4, 5, 6]])
    assert knob.table.shape == (2, 3)
    assert "table" in leaf_paths(knob)


def test_numbers_are_leaves_and_kinds_are_structure():
    knob = Knob(count=7)
    assert set(leaf_paths(knob)) == {"share", "rate", "decay", "free"}
    assert static_paths(knob) == {"count": 7, "kind": "plain", "table": None}
    assert jax.tree.structure(knob) == jax.tree.structure(Knob(count=7, share=0.1))
    assert jax.tree.structure(knob) != jax.tree.structure(Knob(count=8))


def test_parts_pass_through_jit_vmap_and_grad_and_only_writing_checks_bounds():
    """A gradient may be negative, and an axis 0, where the number itself may not."""
    knob = Knob(rate=2.0)
    doubled = jax.jit(lambda k: dataclasses.replace(k, rate=2 * k.rate))(knob)
    assert isinstance(doubled, Knob)
    assert float(doubled.rate) == 4.0
    slope = jax.grad(lambda k: -3.0 * k.rate - k.share)(knob)
    assert (float(slope.rate), float(slope.share)) == (-3.0, -1.0)
    axes = jax.tree.map(lambda leaf: 0 if jnp.ndim(leaf) else None, Knob(rate=np.array([1.0, 2.0])))
    rates = jax.vmap(lambda k: k.rate * k.share, in_axes=(axes,))(Knob(rate=np.array([1.0, 2.0])))
    np.testing.assert_allclose(rates, [0.5, 1.0])
    with pytest.raises(ValueError, match=r"Knob\.rate"):
        dataclasses.replace(knob, rate=-1.0)


def test_parts_are_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Knob().share = 0.1
    with pytest.raises(TypeError, match="Knob takes keywords only: share, rate"):
        Knob(0.5)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: AdamW(lr=1), "AdamW has no keyword 'lr'; did you mean learning_rate"),
        (lambda: AdamW(learning_rates=1), "did you mean learning_rate"),
        (lambda: AdamW(wd=0.1), "did you mean weight_decay"),
        (lambda: Loop(groupsize=3), "Loop has no keyword 'groupsize'; did you mean group_size"),
        (lambda: Questions(tabel=1, noise=None), "Questions has no keyword 'tabel'; did you mean table"),
        (lambda: dataclasses.replace(Loop(), inner_step=2), "did you mean inner_steps"),
        (lambda: Questions(), "missing 1 required keyword-only argument: 'table'"),
    ],
)
def test_an_unknown_keyword_names_the_nearest(make, says):
    with pytest.raises(TypeError, match=says):
        make()


def test_an_error_of_a_check_is_its_own():
    @part
    class Checked:
        width: Any = number(1.0)

        def check(self):
            raise TypeError("no width pleases me")

    with pytest.raises(TypeError, match="no width pleases me"):
        Checked()


def test_a_table_of_truth_values_is_a_table_of_zeros_and_ones():
    assert Knob(table=[[True, False]]).table.tolist() == [[1.0, 0.0]]


def _config(**changes: Any) -> Config:
    given: dict[str, Any] = {
        "policy": ActionPolicy.uniform(contexts=2, actions=3),
        "task": Questions(table=np.zeros((2, 3))),
    }
    return Config(**(given | changes))


def test_put_reaches_every_leaf_and_leaves_the_rest():
    config = _config()
    for path, leaf in leaf_paths(config).items():
        changed = put(config, path, np.full(np.shape(leaf), 0.75))
        after = leaf_paths(changed)
        np.testing.assert_array_equal(after.pop(path), np.full(np.shape(leaf), 0.75), err_msg=path)
        before = {p: v for p, v in leaf_paths(config).items() if p != path}
        assert all(after[p] is before[p] for p in before)


def test_put_reaches_structure_parts_and_tuples():
    changes = {"loop.group_size": 4, "optimizer": L2(inner=SGD()), "optimizer.inner": Adam()}
    config = put_all(_config(), changes)
    assert config.loop.group_size == 4
    assert isinstance(config.optimizer.inner, Adam)
    method = Method(corrections=(Knob(), Knob()))
    assert put(method, "corrections.1.share", 0.25).corrections[1].share == 0.25
    assert put(method, "corrections.1.share", 0.25).corrections[0].share == 0.5


def test_put_checks_the_bound_of_what_it_writes():
    with pytest.raises(ValueError, match=r"Penalty\.coef is -1"):
        put(_config(), "method.penalty.coef", -1.0)


MISSPELT = [("metod.gain.high", "method"), ("method.gain.hihg", "high"), ("optimizer.lr", "learning_rate")]


@pytest.mark.parametrize(("path", "near"), MISSPELT)
def test_an_unknown_path_names_the_nearest_or_all(path, near):
    with pytest.raises(KeyError, match=near):
        put(_config(), path, 0.1)


def test_nearest_prefers_close_names_and_equal_tails():
    assert nearest("grop", ["grpo", "dapo"]) == "did you mean grpo?"
    assert nearest("zzz", ["b", "a"]) == "known: a, b"
    paths = ["method.gain.high", "method.gain.low"]
    assert nearest("gain.high", paths).startswith("did you mean method.gain.high")
    assert (
        nearest("lr", ["optimizer.learning_rate", "optimizer.b1"]) == "did you mean optimizer.learning_rate?"
    )
    assert nearest("epsilon", ["eps", "b1"]) == "did you mean eps?"


def test_declared_numbers_know_their_rank():
    ranks = {path: rank for path, _, rank in declared(_config())}
    assert ranks["policy.logits"] == ranks["task.table"] == 2
    assert ranks["method.gain.high"] == ranks["task.scale"] == 0
    assert set(ranks) == set(leaf_paths(_config()))
    inner = {path for path, _, _ in declared(SGD(learning_rate=Cosine()))}
    assert inner == {"learning_rate.init", "learning_rate.steps", "learning_rate.end"}


def test_aligned_gives_shared_tables_an_axis_of_runs():
    config = _config(task=Questions(table=np.zeros((2, 3, 5)), scale=np.ones(5)))
    made = aligned(config)
    assert made.policy.logits.shape == (2, 3, 1)
    assert made.task.table.shape == (2, 3, 5)
    assert made.task.scale.shape == (5,)
    assert made.loop == Loop()


def test_coupling_is_the_widest_declared():
    assert coupling(methods.reinforce) == Coupling.NOTHING
    assert coupling(methods.grpo) == Coupling.GROUP
    assert coupling(methods.dapo) == Coupling.BATCH


def test_subparts_lists_everything_below():
    kinds = [type(p).__name__ for p in subparts(methods.grpo)]
    assert kinds[0] == "Method"
    assert {"Normalized", "GroupMean", "Clip", "Penalty", "K3"} <= set(kinds)


def test_counts_stay_below_what_a_whole_number_of_32_bits_holds():
    """JAX would overflow at the first trace."""
    for name in ("inner_steps", "group_size", "refresh_every"):
        with pytest.raises(ValueError, match=rf"Loop.{name} is 2147483648; it must be below 2\^31"):
            Loop(**{name: 2**31})
    with pytest.raises(TypeError, match=r"policy\.decoding is ''"):
        sweep(
            Config(policy=ActionPolicy(logits=0, decoding=""), task=Questions(table=[[1.0, 0.0]])),
            iterations=1,
        )
