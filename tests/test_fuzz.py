"""Requests at random: refused with a sentence before anything compiles, or done as the NumPy oracle says."""

import dataclasses
import functools
import math

import numpy as np
import pytest
from hypothesis import strategies as st

import grpo_jax as gj
from grpo_jax import methods
from grpo_jax.part import subparts
from grpo_jax.sweeps import runner
from tests import simulation
from tests.fuzzing import ANYTHING, SCALARS, TEXT, Reached, draw, either, examples, outcome
from tests.simulation import RULES, Problem, Simulation

# What is computed is right

SETTINGS, ITERATIONS = 25, 2
RECORD = ("expected_reward", "kl_ref", "probabilities", "reward", "surrogate", "grad_norm", "update_norm")
LATTICE = st.integers(-16, 16)


class Kind(dataclasses.make_dataclass("Kind", ["problem", "loop", "rule", "noisy", "adam"], frozen=True)):
    """One structure, and so one program, whatever its numbers."""


ACTIONS = (3, 1, None, (2, 3), (2, 1, 3))
TREE = (2, 2, 1, (2, 3), (2, 2, 2))
"""Vocabulary, horizon, EOS, shape of the rewards and of the logits [C, prefixes, V]."""
KINDS = {
    "counts": Kind(ACTIONS, gj.Loop(group_size=4, inner_steps=2), "grpo", False, False),
    "noise": Kind(ACTIONS, gj.Loop(group_size=3, prompts=4, minibatches=2), "rloo", True, True),
    "tree": Kind(TREE, gj.Loop(group_size=3, inner_steps=2), "dapo", False, False),
    "stale": Kind(ACTIONS, gj.Loop(group_size=5, inner_steps=2, refresh_every=2), "gspo", False, True),
    "scores": Kind(TREE, gj.Loop(group_size=2, inner_steps=2), "cispo", False, True),
    "sums": Kind(TREE, gj.Loop(group_size=4, prompts=2, inner_steps=2), "dr_grpo", False, False),
}
PLAIN = ("counts",)


def tables(shape, entries):
    return st.lists(entries, min_size=math.prod(shape), max_size=math.prod(shape)).map(
        lambda values: np.array(values).reshape(shape)
    )


def numbers(kind):
    """One setting: rewards and logits on a lattice, so that ties are ties; scale, rate, clip and penalty."""
    rewards = st.integers(0, 8).map(lambda i: i / 8) if kind.noisy else LATTICE.map(lambda i: i / 8)
    scales = [1.0, -2.5, 1e-80, 1e80] if kind.rule != "dr_grpo" else [1.0, -2.5, 0.1]  # others divide by σ
    scales = [1.0] if kind.noisy else scales  # the oracle's rewards are probabilities then
    return st.fixed_dictionaries(
        {
            "table": tables(kind.problem[3], rewards),
            "logits": tables(kind.problem[4], LATTICE.map(lambda i: i / 4)),
            "scale": st.sampled_from(scales),
            "rate": st.one_of(st.just(0.0), st.floats(1e-3, 2.0)),
            "low": st.one_of(st.sampled_from([0.0, 1.0, np.inf]), st.floats(1e-6, 1)),
            "high": st.one_of(st.sampled_from([0.0, np.inf]), st.floats(1e-6, 2)),
            "coef": st.one_of(st.just(0.0), st.floats(1e-6, 3)),
        }
    )


@functools.lru_cache(4096)
def drawn(seed, step, stream, shape):
    oracle = Simulation.__new__(Simulation)
    oracle.seed, oracle.step = seed, step
    return Simulation.draws(oracle, stream, *shape)


class Oracle(Simulation):
    """One setting trained in NumPy; settings of one seed share its draws."""

    def draws(self, stream, *shape):
        return drawn(self.seed, self.step, stream, shape)


def made(kind, n):
    """The oracle's problem and move of one setting."""
    vocab, horizon, eos, *_ = kind.problem
    problem = Problem(vocab, horizon, eos, n.scale * n.table, n.logits, n.logits)
    rate = n.rate
    return problem, simulation.adam(rate / 20, 0.9, 0.999, 1e-8) if kind.adam else simulation.descent(rate)


def configured(kind, n):
    """The library's configuration, and path -> the name of the number that is swept there."""
    vocab, horizon, eos, *_ = kind.problem
    noise = gj.Bernoulli() if kind.noisy else None
    if horizon == 1:
        policy, task = gj.ActionPolicy(logits=n.logits[:, 0]), gj.Questions(table=n.table, noise=noise)
    else:
        space = gj.Sequences(vocab=vocab, horizon=horizon, eos=eos)
        policy = gj.TreePolicy(space=space, logits=n.logits)
        task = gj.SequenceTable(space=space, table=n.table, noise=noise)
    paths = {
        "task.table": "table",
        "policy.logits": "logits",
        "task.scale": "scale",
        "optimizer.learning_rate": "rate",
        "method.gain.low": "low",
        "method.gain.high": "high",
    }
    paths |= {"method.penalty.coef": "coef"} if RULES[kind.rule].penalty else {}
    optimizer = gj.Adam() if kind.adam else gj.SGD()
    method = getattr(methods, kind.rule)
    return gj.Config(policy=policy, task=task, method=method, optimizer=optimizer, loop=kind.loop), paths


@pytest.mark.filterwarnings("ignore:everything recorded is identical")
@pytest.mark.parametrize("name", KINDS)
@examples(fast=2, slow=40)
def test_what_is_computed_is_what_the_oracle_computes(name, count, x64, record_property):
    """A sweep over 25 drawn settings is 25 examples: each of them is compared."""
    kind, compared = KINDS[name], [0]
    if count < 10 and name not in PLAIN:
        pytest.skip("its program takes seconds to compile")

    def check(found, seed):
        given = [type("Numbers", (), one) for one in found]
        config, paths = configured(kind, given[0])
        flat = kind.problem[1] == 1

        def put(n):
            shaped = {
                "logits": n.logits[:, 0] if flat else n.logits,
                "rate": n.rate / (20 if kind.adam else 1),
            }
            return tuple(shaped.get(field, getattr(n, field)) for field in paths.values())

        rows = {str(i): put(n) for i, n in enumerate(given)}
        data = gj.sweep(
            config, {tuple(paths): rows}, seeds=[seed], iterations=ITERATIONS, record=RECORD,
            chunk_size=SETTINGS, devices=1, progress=False,
        )  # fmt: skip
        for i, n in enumerate(given):
            problem, move = made(kind, n)
            with np.errstate(invalid="ignore"):
                alone = Oracle(problem, kind.loop, kind.rule, n, move, seed=seed, noisy=kind.noisy)
                wanted = [alone.iterate() for _ in range(ITERATIONS)]
            for record in RECORD:
                mine = data[record].values[i, 0]
                like = np.stack([np.asarray(one[record]) for one in wanted]).reshape(mine.shape)
                size = max(1, abs(n.scale)) if record in ("reward", "expected_reward") else 1
                np.testing.assert_allclose(mine, like, rtol=1e-7, atol=1e-9 * size, err_msg=f"{record} {i}")
            compared[0] += 1

    settings = st.lists(numbers(kind), min_size=SETTINGS, max_size=SETTINGS)
    draw(count, check, shrink=False, found=settings, seed=st.integers(0, 2**32 - 1))
    record_property("found", f"{name}: {compared[0]} settings equal the oracle's")


# What has no meaning is refused


def config(**changes):
    base = gj.Config(
        policy=gj.ActionPolicy.uniform(contexts=2, actions=3),
        task=gj.Questions(table=[[1.0, 0.5, 0.0], [0.0, 1.0, 0.3]]),
        loop=gj.Loop(group_size=4),
    )
    return dataclasses.replace(base, **changes)


def is_whole(value, low, high=np.inf):
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_))
    return whole and low <= int(value) < high


def is_number(value):
    numeric = isinstance(value, (int, float, np.integer, np.floating))
    return numeric and not isinstance(value, (bool, np.bool_))


def is_rate(value):
    """A learning rate in single precision: not negative, and neither lost nor infinite there."""
    if not is_number(value) or not 0 <= float(value) <= float(np.finfo(np.float32).max):
        return False
    return value == 0 or float(value) >= float(np.finfo(np.float32).tiny)


def is_share(value):
    if is_whole(value, -(2**80)):
        return 0 <= value <= 4
    return isinstance(value, (float, np.floating)) and 0 <= value < 1


FIELDS = {
    "iterations": lambda v: is_whole(v, 1, 2**31) and v % 2 == 0,
    "record_every": lambda v: is_whole(v, 1) and 4 % v == 0,
    "root": lambda v: is_whole(v, 0, 2**32),
    "average_from": lambda v: v is None or is_share(v),
    "seeds": lambda v: is_whole(v, 1, 2**32 + 1) or (isinstance(v, (list, tuple)) and are_seeds(v)),
    "chunk_size": lambda v: v is None or is_whole(v, 1),
    "devices": lambda v: v is None or is_whole(v, 1, 3),
    "record": lambda v: v is None or (isinstance(v, (dict, list, tuple)) and not v),
    "axes": lambda v: v is None or (isinstance(v, dict) and not v),
    "variants": lambda v: v is None or (isinstance(v, dict) and not v),
    "measure": lambda v: v is None or (isinstance(v, dict) and not v),
    "config": lambda v: isinstance(v, gj.Config),
}
"""Name of an argument -> whether a value has a meaning there, beside iterations=4 in one context."""
DEFAULTS = {"iterations": 4, "record_every": 2, "progress": False}


def are_seeds(values):
    """Whole numbers in range, all different."""
    return bool(values) and all(is_whole(v, 0, 2**32) for v in values) and len(set(values)) == len(values)


@pytest.fixture
def door(monkeypatch):
    """Stops every sweep where it would begin to compile."""

    def reached(*args, **options):
        raise Reached

    monkeypatch.setattr(runner, "program_of", reached)


def asked(given):
    options = DEFAULTS | given
    return lambda: gj.sweep(options.pop("config", config()), **options)


@examples(fast=150, slow=3000)
def test_arguments_are_taken_or_refused_as_documented(count, door, record_property):
    seen = {"accepted": 0, "refused": 0}

    def check(name, value):
        found, error = outcome(asked({name: value}))
        too_much = isinstance(error, MemoryError)
        assert found == ("accepted" if FIELDS[name](value) else "refused") or too_much, (name, value, error)
        seen[found] += 1

    draw(count, check, name=st.sampled_from(sorted(FIELDS)), value=ANYTHING)
    record_property("found", f"one argument: {seen}")


SWEEPABLE = ("learning_rate", "optimizer.learning_rate")
OTHERS = ["kl_coef", "clip_low", "task.table", "seed", "group_size", "method", "eps"]
RATES = st.one_of(st.sampled_from([0, 1, 0.0, 0.1, 0.1 + 1e-12, 1e-38, 1e-45, 3e38]), st.floats(0, 1))


@examples(fast=100, slow=2000)
def test_axes_are_taken_or_refused_as_documented(count, door, record_property):
    """Rates are known one by one; of any other path that a list of numbers is taken, or an error is ours."""
    seen = {"accepted": 0, "refused": 0}

    def check(path, values):
        hash_it = path if not isinstance(path, (list, dict)) else str(path)
        found, error = outcome(asked({"axes": {hash_it: values}}))
        if hash_it in SWEEPABLE:
            single = np.float32([v if is_rate(v) else -1 for v in values])
            fine = bool(values) and (single >= 0).all() and len(np.unique(single)) == len(single)
            assert found == ("accepted" if fine else "refused"), (values, error)
        seen[found] += 1

    paths = either(st.sampled_from(SWEEPABLE), st.sampled_from(OTHERS), TEXT, SCALARS)
    values = either(st.lists(RATES, max_size=3), st.lists(st.one_of(RATES, SCALARS), max_size=3))
    draw(count, check, path=paths, values=values)
    record_property("found", f"axes: {seen}")


PARTS = [
    gj.SGD, gj.Adam, gj.AdamW, gj.HeavyBall, gj.RMSProp, gj.Lion, gj.ClippedNorm, gj.Loop, gj.Sequences,
    gj.Questions, gj.ActionPolicy, gj.Bernoulli, gj.Flips, gj.Gaussian, gj.Decoding, gj.Behavior, gj.Age,
    gj.Noise, gj.Rounded, gj.Proximal, gj.Exact, gj.Counts, gj.Sampled, gj.Refill, gj.Config, gj.Method,
    gj.TreePolicy, gj.MLPPolicy, gj.SequenceTable,
]  # fmt: skip
PARTS += [type(sub) for method in methods.METHODS.values() for sub in subparts(method)]
PARTS = sorted(set(PARTS), key=lambda cls: cls.__qualname__)
SLOTS = {
    "optimizer": (gj.SGD, gj.Adam, gj.AdamW, gj.HeavyBall, gj.RMSProp, gj.Lion, gj.ClippedNorm),
    "loop": (gj.Loop,),
    "task": (gj.Questions,),
    "policy": (gj.ActionPolicy,),
    "behavior": (gj.Behavior,),
    "expectation": (gj.Exact, gj.Counts, gj.Sampled),
    "method": (gj.Method,),
}


@examples(fast=150, slow=3000)
def test_parts_are_made_or_refused_and_what_is_made_can_be_asked_for(count, door, record_property):
    """A part with anything in its fields; made, it stands where a sweep takes or refuses it."""
    seen = {"accepted": 0, "refused": 0, "accepted in a sweep": 0, "refused in a sweep": 0}

    def check(data, cls):
        names = [field.name for field in dataclasses.fields(cls)]
        chosen = data.draw(st.lists(st.sampled_from(names), max_size=2)) if names else []
        chosen += [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
        fields = {name: data.draw(ANYTHING) for name in dict.fromkeys(chosen)}
        if cls is gj.Config:
            fields = {f.name: getattr(config(), f.name) for f in dataclasses.fields(cls)} | fields
        found, part = outcome(lambda: cls(**fields))
        seen[found] += 1
        slot = next((slot for slot, kinds in SLOTS.items() if cls in kinds), None)
        if found == "accepted" and (slot or cls is gj.Config):
            whole = part if cls is gj.Config else config(**{slot: part})
            seen[f"{outcome(asked({'config': whole}))[0]} in a sweep"] += 1

    draw(count, check, data=st.data(), cls=st.sampled_from(PARTS))
    assert all(seen.values()), "what is drawn must be made and refused, or nothing was tried"
    record_property("found", f"parts: {seen}")
