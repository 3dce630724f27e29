"""Generators of problems: prompts, grades and solutions against plain Python."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grpo_jax as gj


def asked(problems, index):
    """The prompt's text; its padding must stand on the left."""
    row = np.asarray(problems.prompt(jnp.array([index]))).tolist()[0]
    assert len(row) == problems.prompt_length
    pads = sum(token < 0 for token in row)
    assert row[:pads] == [-1] * pads
    return "".join(problems.words[token] for token in row[pads:])


def solved(problems, index):
    """The text of a solution without its EOS; what is masked comes after it."""
    tokens, mask = (np.asarray(x).tolist()[0] for x in problems.solution(jnp.array([index])))
    length = int(sum(mask))
    assert mask == [1.0] * length + [0.0] * (len(mask) - length)
    assert tokens[length - 1 :] == [problems.space.eos] * (len(mask) - length + 1)
    return "".join(problems.words[token] for token in tokens[: length - 1])


def graded(problems, index, *texts):
    """Grades [N] of answers given as texts: "." is EOS, and masked places hold rubbish."""
    symbols = {word: i for i, word in enumerate(problems.words)} | {".": problems.space.eos}
    horizon, rng = problems.space.horizon, np.random.default_rng(0)
    tokens = rng.integers(0, problems.space.vocab, (1, len(texts), horizon))
    mask = np.zeros(tokens.shape)
    for n, text in enumerate(texts):
        assert len(text) <= horizon
        tokens[0, n, : len(text)] = [symbols[c] for c in text]
        mask[0, n, : len(text)] = 1
    return np.asarray(jax.jit(problems.grade)(problems.prompt(jnp.array([index])), tokens, mask))[0].tolist()


def check_all(problems, index=None):
    """Every solution is graded 1, and prompts differ from problem to problem."""
    index = jnp.arange(problems.count) if index is None else jnp.asarray(index)
    prompts = np.asarray(problems.prompt(index))
    assert len({tuple(row) for row in prompts.tolist()}) == len(index)
    assert prompts.max() < problems.space.vocab
    tokens, mask = problems.solution(index)
    assert tokens.shape == mask.shape == (len(index), problems.space.horizon)
    grades = jax.jit(problems.grade)(prompts, tokens[:, None], mask[:, None])
    np.testing.assert_array_equal(grades, 1)
    return prompts


@pytest.mark.parametrize("least_first", [False, True])
@pytest.mark.parametrize(("digits", "operands"), [(1, 2), (2, 2), (1, 3), (4, 2), (1, 9)])
def test_sums_are_python_s(digits, operands, least_first):
    problems = gj.Addition(digits=digits, operands=operands, least_first=least_first)
    chosen = np.unique(np.random.default_rng(0).integers(0, problems.count, 200))
    check_all(problems, chosen)
    for index in [0, problems.count - 1, *chosen[::10].tolist()]:
        question = asked(problems, index)
        terms = [int(term) for term in question.rstrip("=").split("+")]
        assert question == "+".join(map(str, terms)) + "="
        assert len(terms) == operands
        answer = str(sum(terms))
        assert solved(problems, index) == (answer[::-1] if least_first else answer)


def test_every_two_digit_sum_is_solved_and_every_operand_pair_occurs():
    problems = gj.Addition()
    prompts = check_all(problems)
    texts = {"".join(problems.words[t] for t in row if t >= 0) for row in prompts}
    assert texts == {f"{a}+{b}=" for a, b in itertools.product(range(100), repeat=2)}


def test_only_the_exact_sum_is_right():
    problems = gj.Addition()
    assert graded(problems, 1234, "46.", "46", "046.", "46+.", "4.", "64.", ".", "45.") == [1] + [0] * 7
    assert graded(problems, 9999, "198.", "1980", "198", "98.") == [1, 0, 0, 0]
    assert graded(problems, 0, "0.", "00.", ".") == [1, 0, 0]


def test_operands_may_be_written_with_leading_zeros():
    problems = gj.Addition(digits=3, leading_zeros=True)
    assert asked(problems, 7_045) == "007+045="
    assert solved(problems, 7_045) == "52"


@pytest.mark.parametrize(
    ("build", "error", "says"),
    [
        (lambda: gj.Addition(digits=0), ValueError, "digits is 0; it must be at least 1"),
        (lambda: gj.Addition(operands=1), ValueError, "operands is 1; it must be at least 2"),
        (lambda: gj.Addition(digits=5), ValueError, "digits x operands must be at most 9"),
        (lambda: gj.Addition(digits=1.5), TypeError, "whole number"),
    ],
)
def test_bad_generators_are_refused(build, error, says):
    with pytest.raises(error, match=says):
        build()
