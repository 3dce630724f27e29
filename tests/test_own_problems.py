"""Problems of one's own, and problems that do not fit a policy: said before anything compiles."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax.config import validate

SPACE = gj.Sequences(vocab=4, horizon=3, eos=3)
PROMPTS = [[-1, 0], [-1, 1], [0, 1], [1, 0], [2, 2]]


def echoes(prompts, tokens, mask):
    """Whether the prompt's last token comes first."""
    return jnp.where(tokens[:, :, 0] == prompts[:, -1:], 1.0, 0.0)


def configured(problems, **changes):
    task = gj.Verifiable(problems=problems)
    policy = gj.TransformerPolicy(
        space=task.space, prompt_length=task.prompt_length, width=4, layers=1, heads=1
    )
    config = gj.Config(policy=policy, task=task, loop=gj.Loop(prompts=2, group_size=3))
    return dataclasses.replace(config, **changes)


def own(grade, prompts=PROMPTS):
    return configured(gj.from_function(prompts, grade, SPACE))


def test_a_task_of_one_s_own_is_one_function():
    problems = gj.from_function(
        PROMPTS, echoes, SPACE, words="abc.", solutions=[[t, 3, 0] for _, t in PROMPTS]
    )
    config = configured(problems)
    validate(config)
    assert config.task.held_out_count == 0
    tokens, mask = problems.solution(jnp.arange(5))
    np.testing.assert_array_equal(mask, [[1, 1, 0]] * 5)
    said = config.task.say(problems.prompt(jnp.arange(5)), tokens[:, None], mask[:, None])
    assert said[0] == ["aa.  1"]
    assert said[3] == ["baa.  1"]
    data = gj.sweep(config, seeds=2, iterations=2, progress=False)
    assert ((data.reward >= 0) & (data.reward <= 1)).all()
    assert bool(data.finite.all())


def test_equal_tables_are_equal_structure():
    one, other = (gj.from_function(PROMPTS, echoes, SPACE) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one != gj.from_function(PROMPTS[::-1], echoes, SPACE)


def test_a_verifier_in_python_may_be_called():
    """Through ``jax.pure_callback`` it grades as the same function in JAX does."""

    def verify(tokens, mask):
        return np.sum((tokens == 1) * mask, 2, dtype=np.float32) / tokens.shape[2]

    def grade(prompts, tokens, mask):
        shape = jax.ShapeDtypeStruct(tokens.shape[:2], jnp.float32)
        return jax.pure_callback(verify, shape, tokens, mask)

    def same(prompts, tokens, mask):
        return jnp.sum((tokens == 1) * mask, 2) / tokens.shape[2]

    called, traced = (
        gj.train.run(config, gj.train.init(config, 3), iterations=2)[1] for config in (own(grade), own(same))
    )
    assert np.ptp(traced["reward"]) > 0
    np.testing.assert_allclose(called["reward"], traced["reward"], rtol=1e-6)


KEPT = []
CALLS = itertools.count()


def keeps(prompts, tokens, mask):
    KEPT.append(tokens)
    return echoes(prompts, tokens, mask)


def counts_calls(prompts, tokens, mask):
    return echoes(prompts, tokens, mask) / (1 + next(CALLS))


def branches(prompts, tokens, mask):
    return echoes(prompts, tokens, mask) if tokens[0, 0, 0] == 1 else jnp.zeros(tokens.shape[:2])


def by_numpy(prompts, tokens, mask):
    return np.where(np.asarray(tokens)[:, :, 0] == 1, 1.0, 0.0)


def nothing_right_is_nan(prompts, tokens, mask):
    return echoes(prompts, tokens, mask) / echoes(prompts, tokens, mask)


@pytest.mark.parametrize(
    ("grade", "error", "says"),
    [
        (lambda p, t, m: echoes(p, t, m)[:, 0], ValueError, r"gives shape \(5,\).*must give \[P, N\]"),
        (lambda p, t, m: echoes(p, t, m)[..., None], ValueError, r"gives shape \(5, 5, 1\)"),
        (nothing_right_is_nan, ValueError, "gives NaN"),
        (lambda p, t, m: 2 * echoes(p, t, m), ValueError, r"gives 2; grades lie in \[0, 1\]"),
        (lambda p, t, m: -echoes(p, t, m), ValueError, r"gives -1; grades lie in \[0, 1\]"),
        (lambda p, t, m: (t[:, :, -1] == 0) * 1.0, ValueError, "reads masked tokens"),
        (
            lambda p, t, m: jnp.clip(echoes(p, t, m) - echoes(p, t, m).mean(1, keepdims=True), 0, 1),
            ValueError,
            "in other company",
        ),
        (keeps, TypeError, "keeps a traced array"),
        (counts_calls, ValueError, "depends on Python state"),
        (branches, TypeError, "needs the values of arrays"),
        (by_numpy, TypeError, "needs the values of arrays"),
    ],
    ids=["few", "many", "nan", "high", "low", "masked", "group", "leak", "state", "if", "numpy"],
)
def test_a_grade_without_meaning_is_refused(grade, error, says):
    with pytest.raises(error, match=says):
        validate(own(grade))


def test_a_bad_grade_is_refused_before_anything_compiles():
    with pytest.raises(ValueError, match=r"OwnProblems\.grade gives NaN"):
        gj.sweep(own(nothing_right_is_nan), seeds=2, iterations=2, progress=False)


class Shifted:
    """Problems of one's own class, with prompts padded on the right."""

    count, words, prompt_length, space = 3, tuple("abc."), 2, SPACE
    solution = None
    grade = staticmethod(echoes)

    def prompt(self, index):
        return jnp.stack([index, jnp.full_like(index, -1)], 1)


def test_a_class_of_one_s_own_is_tried_too():
    with pytest.raises(ValueError, match=r"Shifted\.prompt does not pad on the left"):
        validate(configured(Shifted()))


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"prompts": [[0, -1]]}, ValueError, "prompt 0 is not padded on the left"),
        ({"prompts": [[1, 0], [0, -1]]}, ValueError, "prompt 1 is not padded"),
        ({"prompts": [[0, 4]]}, ValueError, r"token 4; the vocabulary is 0\.\.3"),
        ({"prompts": [[0, 1], [0, 1]]}, ValueError, "stands in the table twice"),
        ({"prompts": [[0, 1], [0]]}, ValueError, "ragged"),
        ({"prompts": [0, 1]}, ValueError, r"must be \[count, length\]"),
        ({"prompts": [[0.5]]}, TypeError, "tokens are integers"),
        ({"prompts": np.zeros((1, 0), int)}, ValueError, "empty"),
        ({"grade": 3}, TypeError, "must be a function"),
        ({"solutions": [[0, 3]]}, ValueError, r"must be \[count, T\] = \(5, 3\)"),
        ({"words": "ab"}, ValueError, "2 words for a vocabulary of 4"),
    ],
)
def test_tables_that_do_not_fit_are_refused(given, error, says):
    with pytest.raises(error, match=says):
        gj.Verifiable(
            problems=gj.from_function(**({"prompts": PROMPTS, "grade": echoes, "space": SPACE} | given))
        )


def test_a_warm_start_needs_solutions():
    with pytest.raises(ValueError, match="came without solutions"):
        gj.from_function(PROMPTS, echoes, SPACE).solution(jnp.arange(2))


ADDITION = gj.Verifiable(problems=gj.Addition())


def network(**changes):
    fields = {"space": ADDITION.space, "prompt_length": ADDITION.prompt_length, "width": 4, "heads": 1}
    return gj.TransformerPolicy(**(fields | changes))


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (
            network(space=gj.Sequences(vocab=12, horizon=4, eos=11)),
            r"vocab 12 and 13; eos 11 and 12.*task\.space",
        ),
        (network(space=gj.Sequences(vocab=13, horizon=5, eos=12)), "horizon 5 and 4"),
        (network(space=gj.Sequences(vocab=13, horizon=4)), "never ends an answer: its space has no EOS"),
        (network(prompt_length=5), "prompts have 6 tokens, and TransformerPolicy reads 5"),
        (network(prompt_length=1, contexts=3), "knows prompts by their ids"),
        (gj.TreePolicy.uniform(gj.Sequences(vocab=13, horizon=2, eos=12)), "different spaces"),
    ],
    ids=["vocabulary", "horizon", "eos", "prompts", "ids", "tree"],
)
def test_a_policy_that_does_not_fit_the_task_is_refused(policy, says):
    config = gj.Config(policy=policy, task=ADDITION, loop=gj.Loop(prompts=2, group_size=2))
    with pytest.raises(ValueError, match=says):
        validate(config)


def test_a_table_by_ids_does_not_fit_a_policy_that_reads_tokens():
    space = gj.Sequences(vocab=3, horizon=2, eos=2)
    task = gj.SequenceTable(space=space, table=np.zeros((2, len(space.support[0]))))
    policy = gj.TransformerPolicy(space=space, width=4, heads=1)
    with pytest.raises(ValueError, match=r"asks by ids 0\.\.2 - 1, and the policy reads tokens"):
        validate(gj.Config(policy=policy, task=task, loop=gj.Loop(prompts=2, group_size=2)))
