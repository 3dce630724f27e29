"""Verifiable rewards: who is asked what, and what a verdict and its wrappers are worth."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax import train
from grpo_jax.collectors import choose
from grpo_jax.tasks.verifiable import shuffled

ADDITION = gj.Addition()
UNIFORMS = np.linspace(0, 1, 5000, endpoint=False)


def numbers(prompts):
    """Problem numbers of two-digit sums, read from the prompts' text by Python."""
    words = ADDITION.words
    texts = ("".join(words[t] for t in row if t >= 0) for row in np.asarray(prompts))
    pairs = (text.rstrip("=").split("+") for text in texts)
    return [100 * int(a) + int(b) for a, b in pairs]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 1000, 10_000, 46_341, 2**16])
def test_the_order_of_problems_is_a_permutation(count):
    found = np.asarray(shuffled(jnp.arange(count), count))
    np.testing.assert_array_equal(np.sort(found), np.arange(count))


@pytest.mark.parametrize("count", [2**24 - 3, 10**8, 10**9, 2**31 - 1])
def test_the_order_is_affine_in_python_integers(count):
    """(a·k + b) mod count without overflow, a and b read off the images of 0 and 1."""
    places = np.unique(np.concatenate([[0, 1, count - 1], np.random.default_rng(0).integers(0, count, 500)]))
    found = np.asarray(shuffled(jnp.asarray(places, jnp.int32), count))
    start, step = int(found[0]), int(found[1]) - int(found[0])
    assert [(step * int(k) + start) % count for k in places] == found.tolist()
    assert np.gcd(step % count, count) == 1


def test_training_and_held_out_problems_are_disjoint_and_cover_the_family():
    task = gj.Verifiable(problems=ADDITION, held_out=0.3)
    many = np.linspace(0, 1, 80_000, endpoint=False)
    held = set(np.asarray(task.held_out_index(many)).tolist())
    trained = set(np.asarray(task.training_index(many)).tolist())
    assert len(held) == 3000
    assert held | trained == set(range(10_000))
    assert not held & trained
    assert set(numbers(task.held_out_prompts(UNIFORMS))) <= held
    assert set(numbers(task.prompts(UNIFORMS))) <= trained


def test_problems_are_drawn_equally_often_and_the_same_every_time():
    task = gj.Verifiable(problems=ADDITION)
    drawn = np.asarray(task.training_index(np.linspace(0, 1, 9 * 9000, endpoint=False)))
    times = np.bincount(drawn, minlength=10_000)
    assert set(times.tolist()) <= {0, 8, 9, 10}  # single precision moves some ends of intervals by one
    assert (times > 0).sum() == 9000
    np.testing.assert_array_equal(jax.jit(task.prompts)(UNIFORMS), task.prompts(UNIFORMS))
    assert int(task.training_index(np.array([np.nextafter(np.float32(1), np.float32(0))]))[0]) in drawn


def test_both_shares_spread_over_the_family():
    """Each digit of both operands is as frequent among held-out problems as among all, within a tenth."""
    held = np.unique(np.asarray(gj.Verifiable(problems=ADDITION).held_out_index(UNIFORMS)))
    assert len(held) == 1000
    for place in range(4):
        times = np.bincount(held // 10**place % 10, minlength=10)
        assert times.min() >= 90
        assert times.max() <= 110


def answered(*texts, of=ADDITION):
    """Tokens and mask [1, N, T]; a space stands for nothing, "." for EOS."""
    symbols = {word: i for i, word in enumerate(of.words)} | {".": of.space.eos, " ": 0}
    rows = [text.ljust(of.space.horizon) for text in texts]
    tokens = np.array([[[symbols[c] for c in row] for row in rows]])
    return tokens, np.array([[[float(c != " ") for c in row] for row in rows]])


ASKED = ADDITION.prompt(jnp.array([1234]))
GIVEN = answered("46.", "47.", "4646", "46")
GRADES, ENDS, LENGTHS = np.array([1, 0, 0, 0]), np.array([1, 1, 0, 0]), np.array([3, 3, 4, 2])


def test_rewards_are_the_verdict_a_bonus_for_form_and_a_cost_of_length():
    task = gj.Verifiable(problems=ADDITION, format_bonus=0.25, length_cost=0.125, scale=2.0)
    wanted = 2 * (GRADES + 0.25 * ENDS - 0.125 * LENGTHS)
    np.testing.assert_allclose(task.means(ASKED, *GIVEN)[0], wanted)
    np.testing.assert_allclose(task.rewards(ASKED, *GIVEN, np.full((1, 4), 0.3))[0, :, 0], wanted)
    law = task.levels(ASKED, *GIVEN)
    np.testing.assert_allclose(law.values[0, :, 0], wanted)
    np.testing.assert_array_equal(law.probabilities, 1)


def test_a_verifier_that_errs_has_its_two_rates():
    noise = gj.Flips(false_positive=0.125, false_negative=0.25)
    task = gj.Verifiable(problems=ADDITION, noise=noise, length_cost=0.5, scale=3.0)
    right = np.where(GRADES == 1, 0.75, 0.125)
    law = task.levels(ASKED, *GIVEN)
    np.testing.assert_allclose(law.probabilities[0], np.stack([1 - right, right], 1))
    np.testing.assert_allclose(law.values[0], 3 * (np.array([0, 1]) - 0.5 * LENGTHS[:, None]))
    np.testing.assert_allclose(task.means(ASKED, *GIVEN)[0], 3 * (right - 0.5 * LENGTHS))
    grid = (np.arange(1000) + 0.5) / 1000
    drawn = [task.rewards(ASKED, *GIVEN, np.full((1, 4), u))[0, :, 0] for u in grid[::25]]
    judged = np.array(drawn) / 3 + 0.5 * LENGTHS
    np.testing.assert_allclose(judged, grid[::25, None] < right, atol=1e-6)


def test_flips_are_a_noise_of_tables_too():
    table = np.array([[0.0, 1.0, 0.5]])
    task = gj.Questions(table=table, noise=gj.Flips(false_positive=0.1, false_negative=0.2), scale=2.0)
    tokens = np.arange(3)[None, :, None]
    np.testing.assert_allclose(task.means(np.arange(1), tokens, None)[0], [0.2, 1.6, 0.9], rtol=1e-6)
    with pytest.raises(ValueError, match="under Flips noise"):
        gj.Questions(table=2 * table, noise=gj.Flips())


def test_answers_can_be_read_by_people():
    task = gj.Verifiable(problems=ADDITION)
    assert task.say(ASKED, *GIVEN)[0][:2] == ["12+34=46<eos>  1", "12+34=47<eos>  0"]


class Partial:
    """Problems that lack a grade."""

    count, words, prompt_length, space = 3, ("0", "<eos>"), 1, gj.Sequences(vocab=2, horizon=1, eos=1)
    prompt = solution = None


@pytest.mark.parametrize(
    ("build", "error", "says"),
    [
        (lambda: gj.Verifiable(problems=ADDITION, held_out=1.0), ValueError, r"must be a share in \[0, 1\)"),
        (lambda: gj.Verifiable(problems=ADDITION, held_out=0.99999), ValueError, "none is left to train on"),
        (lambda: gj.Verifiable(problems=ADDITION, held_out="a"), TypeError, "must be a number"),
        (lambda: gj.Verifiable(problems=gj.Addition), TypeError, "a class, not an instance"),
        (lambda: gj.Verifiable(problems=Partial()), TypeError, "without grade"),
        (lambda: gj.Verifiable(problems=ADDITION, scale=np.nan), ValueError, "NaN"),
        (lambda: gj.Flips(false_positive=1.5), ValueError, r"allowed is \[0, 1\]"),
        (
            lambda: gj.Verifiable(problems=ADDITION, held_out=0.0).held_out_prompts(UNIFORMS),
            ValueError,
            "no problem is held out",
        ),
    ],
)
def test_bad_tasks_are_refused(build, error, says):
    with pytest.raises(error, match=says):
        build()


def test_drawn_prompts_can_be_trained_on_exactly():
    """Without a list of prompts no number of cells is known to be enough: every answer is one of its own."""
    task = gj.Verifiable(problems=gj.UnequalSuffixes(prefix=1, horizon=2), held_out=0.0)
    config = gj.Config(
        policy=gj.TransformerPolicy(space=task.space, width=4, layers=1, heads=1),
        task=task,
        loop=gj.Loop(prompts=2, group_size=2),
        expectation=gj.Exact(),
    )
    assert choose(config).expectation.cells == 0
    assert choose(dataclasses.replace(config, expectation=gj.Exact(cells=3))).expectation.cells == 3
    state = train.init(config, 0)
    batch = jax.eval_shape(choose(config).expectation.collect, choose(config), state)
    assert batch.rollout.tokens.shape == (2, len(task.space.support[0]), 2)
