"""Bad input: a configuration without meaning is refused before anything compiles, saying what is allowed."""

import dataclasses
import itertools
from typing import Any

import jax
import numpy as np
import optax
import pytest

from grpo_jax import methods, train
from grpo_jax.collectors import Counts, Sampled, choose, reason
from grpo_jax.config import Config, Loop, prompt_count, validate
from grpo_jax.measures import DEFAULT
from grpo_jax.optimizers import SGD, AdamW, Custom
from grpo_jax.part import put_all
from grpo_jax.parts.gains import Clip
from grpo_jax.parts.penalties import K3, Penalty
from grpo_jax.parts.shaping import KLInReward
from grpo_jax.policies import ActionPolicy, MLPPolicy, TreePolicy
from grpo_jax.records import recording
from grpo_jax.sequences import Sequences
from grpo_jax.tasks import Bernoulli, Questions, SequenceTable

SPACE = Sequences(vocab=3, horizon=2, eos=2)
OTHER = Sequences(vocab=3, horizon=2)
TREE = TreePolicy.uniform(SPACE)


def configured(**changes: Any) -> Config:
    base = Config(policy=ActionPolicy.uniform(contexts=2, actions=3), task=Questions(table=np.eye(2, 3)))
    return dataclasses.replace(base, **changes)


def loop(**options: Any) -> dict[str, Any]:
    return {"loop": Loop(**options)}


@pytest.fixture(autouse=True)
def nothing_compiles(monkeypatch):
    """A refusal that comes after compilation would be one too late."""

    def compiled(*args, **options):
        raise AssertionError("something was compiled before the input was refused")

    monkeypatch.setattr(train, "_compiled", compiled)


MEANINGLESS = {
    "group_of_one": (loop(group_size=1), "group_size is 1; GroupMean needs groups of at least 2"),
    "minibatches": (loop(minibatches=3), "3 minibatches do not divide 2 prompts"),
    "contexts": ({"task": Questions(table=np.zeros((3, 3)))}, "policy has 2 contexts, the task 3"),
    "answers": ({"task": Questions(table=np.zeros((2, 4)))}, "table has 4 answers, the policy 3 actions"),
    "spaces": (
        {"policy": TREE, "task": SequenceTable(space=OTHER, table=np.zeros((1, 9)))},
        "different spaces of sequences",
    ),
    "reference_shape": (
        {"reference": np.zeros((1, 3))},
        r"reference has shape \(1, 3\), the policy \(2, 3\)",
    ),
    "reference_kind": ({"reference": {"logits": np.zeros((2, 3))}}, "built like the policy's parameters"),
    "reference_zero": ({"reference": np.array([[0.0, 0.0, -np.inf]] * 2)}, "penalty would be infinite"),
    "reference_zero_in_reward": (
        {
            "reference": np.array([[0.0, 0.0, -np.inf]] * 2),
            "method": dataclasses.replace(methods.dapo, shaping=KLInReward(coef=0.1)),
        },
        "penalty would be infinite",
    ),
}


@pytest.mark.parametrize("name", MEANINGLESS)
def test_a_configuration_without_meaning_is_refused(name):
    changes, says = MEANINGLESS[name]
    with pytest.raises(ValueError, match=says):
        train.init(configured(**changes), 0)


MISTYPED = {
    "method": ({"method": "grpo"}, r"methods\.get"),
    "optimizer": ({"optimizer": "adam"}, "optimizer is 'adam', without transform"),
    "optimizer_class": ({"optimizer": AdamW}, "a class, not an instance"),
    "optax": ({"optimizer": optax.sgd(0.1)}, r"optimizers\.Custom wraps"),
    "task": ({"task": "questions"}, "task is 'questions', without prompts, rewards"),
    "no_task": ({"task": None}, "task is None, without prompts, rewards"),
    "no_optimizer": ({"optimizer": None}, "optimizer is None, without transform"),
    "loop": ({"loop": 8}, r"loop is 8; it must be a Loop\(group_size=\.\.\.\)"),
    "policy": ({"policy": np.zeros((2, 3))}, "without init, sample, score"),
    "expectation": ({"expectation": "counts"}, "without collect, objective"),
    "gain": ({"method": dataclasses.replace(methods.grpo, gain=lambda *a: 0.0)}, r"method\.gain is .*@part"),
    "name_in_slot": ({"method": dataclasses.replace(methods.grpo, gain="clip")}, r"method\.gain is 'clip'"),
}


@pytest.mark.parametrize("name", MISTYPED)
def test_a_slot_with_the_wrong_kind_says_what_it_takes(name):
    changes, says = MISTYPED[name]
    with pytest.raises(TypeError, match=says):
        train.init(configured(**changes), 0)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Clip(low=-0.1), r"Clip\.low is -0\.1; allowed is \[0, inf\]"),
        (lambda: Clip(high=float("nan")), r"Clip\.high is NaN"),
        (lambda: Penalty(divergence=K3(), coef=-0.04), r"Penalty\.coef is -0\.04"),
        (lambda: SGD(learning_rate=-1e-3), r"SGD\.learning_rate"),
        (lambda: Loop(group_size=0), r"Loop\.group_size is 0; it must be at least 1"),
        (lambda: Loop(inner_steps=0), r"Loop\.inner_steps"),
        (lambda: Loop(refresh_every=0), r"Loop\.refresh_every"),
        (lambda: methods.get("grop"), r"unknown method 'grop'; did you mean .*grpo"),
    ],
)
def test_a_number_or_name_without_meaning_is_refused_when_written(build, says):
    with pytest.raises(ValueError, match=says):
        build()


def test_fractional_counts_are_refused():
    with pytest.raises(TypeError, match=r"Loop\.group_size is 2\.5; it must be a whole number"):
        Loop(group_size=2.5)


def test_a_group_of_one_is_fine_where_no_part_compares():
    assert validate(configured(method=methods.reinforce, **loop(group_size=1))) is None


def test_a_reference_with_zeros_is_fine_where_nothing_reads_it():
    zeros = {"reference": np.array([[0.0, 0.0, -np.inf]] * 2)}
    validate(configured(method=methods.dr_grpo, **zeros))
    validate(configured(method=methods.dapo, **zeros))
    barred = ActionPolicy(logits=zeros["reference"])
    validate(configured(policy=barred, **zeros))
    starts = np.stack([np.zeros((2, 3)), zeros["reference"]], -1)
    with pytest.raises(ValueError, match="infinite"):
        validate(configured(policy=ActionPolicy(logits=starts), **zeros))


@pytest.mark.parametrize(
    ("path", "value", "seed", "says"),
    [
        ("optimizer.learning_rate", np.ones(3), 0, r"optimizer\.learning_rate has shape \(3,\)"),
        (
            "optimizer.learning_rate",
            np.ones(3),
            np.arange(2),
            r"learning_rate has shape \(3,\); it takes a number",
        ),
        ("method.gain.high", np.ones((2, 3)), np.arange(3), r"method\.gain\.high has shape \(2, 3\)"),
        (
            "task.table",
            np.ones((2, 3, 4)),
            np.arange(3),
            r"task\.table has shape \(2, 3, 4\); it takes a table",
        ),
    ],
)
def test_numbers_per_run_must_match_the_seeds(path, value, seed, says):
    """They would otherwise broadcast into the logits: three learning rates for three actions."""
    with pytest.raises(ValueError, match=says):
        train.init(put_all(configured(), {path: value}), seed)
    state = train.init(configured(), seed)
    with pytest.raises(ValueError, match=says):
        train.run(put_all(configured(), {path: value}), state, iterations=1)


@pytest.mark.parametrize("seed", [-1, 0.5, 2**32, [], [[1]], [0, -1], "1"])
def test_seeds_are_whole_numbers(seed):
    with pytest.raises(ValueError, match="seed is"):
        train.init(configured(), seed)


@pytest.mark.parametrize(
    "options", [{"iterations": 0}, {"iterations": 5, "record_every": 2}, {"iterations": -1}]
)
def test_iterations_are_a_positive_multiple(options):
    state = train.init(configured(), 0)
    with pytest.raises(ValueError, match="must be a positive multiple of record_every"):
        train.run(configured(), state, **options)


def test_an_unknown_diagnostic_names_the_nearest():
    state = train.init(configured(), 0)
    for call in (
        lambda: train.run(configured(), state, iterations=1, record=("entrpy",)),
        lambda: jax.eval_shape(lambda: train.step(configured(), state, record=("entrpy",))),
    ):
        with pytest.raises(ValueError, match="unknown diagnostic 'entrpy'; did you mean entropy"):
            call()


def test_names_come_from_any_iterable_once_and_always_with_finite():
    given = (name for name in ("entropy", "reward", "entropy"))
    for record, names in ((given, ("entropy", "reward", "finite")), (None, DEFAULT)):
        plan = recording(configured(), record, None, iterations=1)
        assert tuple(name for name, _ in plan.measures) == names


def test_the_expectation_is_chosen_by_what_the_reward_depends_on():
    noisy = Questions(table=np.eye(2, 3), noise=Bernoulli())
    assert isinstance(choose(configured()).expectation, Counts)
    assert isinstance(choose(configured(task=noisy)).expectation, Sampled)
    many = configured(
        policy=ActionPolicy.uniform(contexts=2, actions=2000), task=Questions(table=np.zeros((2, 2000)))
    )
    assert isinstance(choose(many).expectation, Sampled)
    assert choose(configured(expectation=Sampled())).expectation == Sampled()
    assert "few actions alone" in reason(configured())
    assert "vary" in reason(configured(task=noisy))
    assert "more than 1024 actions" in reason(many)
    assert reason(configured(expectation=Sampled())) == "as asked"


def traced(config):
    state = train.init(config, 0)
    return jax.eval_shape(lambda: train.step(config, state))


def test_counts_refuses_noise_and_policies_it_cannot_count():
    noisy = Questions(table=np.eye(2, 3), noise=Bernoulli())
    with pytest.raises(ValueError, match="this task has noise"):
        traced(configured(task=noisy, expectation=Counts()))
    network = MLPPolicy(space=SPACE)
    table = SequenceTable(space=SPACE, table=np.zeros((1, 7)))
    with pytest.raises(ValueError, match=r"MLPPolicy cannot count its outputs; use Sampled\(\)"):
        traced(configured(policy=network, task=table, expectation=Counts()))
    with pytest.raises(ValueError, match="one run at a time; vmap"):
        train.init(configured(policy=network, task=table), np.arange(2))


def test_prompts_are_every_context_unless_a_number_is_given():
    assert prompt_count(configured()) == 2
    assert prompt_count(configured(**loop(prompts=5))) == 5
    validate(configured(**loop(prompts=6, minibatches=3)))
    assert isinstance(Custom(transformation=optax.sgd(0.1)).transform(), optax.GradientTransformation)


REFERENCES = np.array([[0.0, 0.0, 0.0], [0.0, -np.inf, 0.0], [-np.inf, 0.0, 1.0]])[:, None].repeat(2, 1)
STARTS = np.array([[0.0, 0.0, 0.0], [0.0, -np.inf, 0.5]])[:, None].repeat(2, 1)
COEFS = np.array([0.0, 0.3, 0.0])
PATHS = {"method.penalty.coef": COEFS, "reference": REFERENCES, "policy.logits": STARTS}


def refusal(config, dimensions=()):
    """What ``validate`` raises, as text; empty where nothing is wrong."""
    try:
        validate(config, dimensions)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("coef", [0.0, 0.2])
@pytest.mark.parametrize("base", [0, 1, 2])
@pytest.mark.parametrize("swept", [s for n in (1, 2, 3) for s in itertools.combinations(PATHS, n)])
@pytest.mark.parametrize("zipped", [False, True])
def test_the_reference_is_judged_at_every_setting_of_the_grid(coef, base, swept, zipped):
    """Against one validation for each setting: a grid has meaning iff all of its settings do."""
    method = dataclasses.replace(methods.grpo, penalty=Penalty(divergence=K3(), coef=coef))
    given = configured(method=method, reference=REFERENCES[base])
    columns = {path: PATHS[path][:2] if zipped else PATHS[path] for path in swept}
    dimensions = [columns] if zipped else [{path: values} for path, values in columns.items()]
    settings = []
    for place in np.ndindex(*(len(next(iter(d.values()))) for d in dimensions)):
        picked = ((p, v[i]) for d, i in zip(dimensions, place, strict=True) for p, v in d.items())
        settings.append({path: value if np.ndim(value) else float(value) for path, value in picked})
    wrong = any(refusal(put_all(given, setting)) for setting in settings)
    assert ("penalty would be infinite" in refusal(given, dimensions)) == wrong


def test_runs_with_penalty_and_runs_with_zeros_may_be_others():
    """Numbers given one per run are judged run by run."""
    method = dataclasses.replace(methods.grpo, penalty=Penalty(divergence=K3(), coef=np.array([0.3, 0.0])))
    tables = np.stack([REFERENCES[0], REFERENCES[1]], -1)
    validate(configured(method=method, reference=tables))
    with pytest.raises(ValueError, match="infinite"):
        validate(configured(method=method, reference=tables[..., ::-1]))


@pytest.mark.parametrize("table", [[None, np.True_], [[None, 1.0]]])
def test_none_in_a_table_is_no_number(table):
    """JAX's trees leave it out, and its arrays refuse it in words of their own."""
    with pytest.raises(TypeError, match=r"ActionPolicy\.logits holds None; it takes numbers"):
        ActionPolicy(logits=table)
    with pytest.raises(TypeError, match=r"Questions\.table holds None; it takes numbers"):
        Questions(table=table)
