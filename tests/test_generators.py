"""Generators of problems: prompts, grades and solutions against plain Python."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax.tasks import trees


@functools.cache
def tables(problems):
    """Prompts, and tokens and mask of solutions, of every problem, or of those that ``many`` names."""
    return [np.asarray(x).tolist() for x in jax.jit(written, static_argnums=0)(problems, many(problems))]


def many(problems):
    """Numbers of all problems, or of two hundred."""
    every = np.arange(problems.count) if problems.count <= 1000 else None
    chosen = np.random.default_rng(0).integers(0, problems.count, 200) if every is None else every
    return np.unique(np.concatenate([chosen, MENTIONED if every is None else chosen]))


MENTIONED = [0, 1234, 7045, 9999]


def written(problems, index):
    return problems.prompt(index), *problems.solution(index)


def row(problems, index):
    """Where a problem stands in ``tables``."""
    return many(problems).tolist().index(index)


def asked(problems, index):
    """The prompt's text; its padding must stand on the left."""
    found = tables(problems)[0][row(problems, index)]
    assert len(found) == problems.prompt_length
    pads = sum(token < 0 for token in found)
    assert found[:pads] == [-1] * pads
    return "".join(problems.words[token] for token in found[pads:])


def solved(problems, index):
    """The text of a solution without its EOS; what is masked comes after it."""
    tokens, mask = (table[row(problems, index)] for table in tables(problems)[1:])
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


def check_all(problems):
    """Every solution is graded 1, and prompts differ from problem to problem."""
    prompts, tokens, mask = (np.array(table) for table in tables(problems))
    assert len({tuple(line) for line in prompts.tolist()}) == len(many(problems))
    assert prompts.max() < problems.space.vocab
    assert tokens.shape == mask.shape == (len(prompts), problems.space.horizon)
    grades = jax.jit(problems.grade)(prompts, tokens[:, None], mask[:, None])
    np.testing.assert_array_equal(grades, 1)


@pytest.mark.parametrize("least_first", [False, True])
@pytest.mark.parametrize(("digits", "operands"), [(1, 2), (2, 2), (1, 3), (4, 2), (1, 9)])
def test_sums_are_python_s(digits, operands, least_first):
    problems = gj.Addition(digits=digits, operands=operands, least_first=least_first)
    check_all(problems)
    for index in many(problems).tolist():
        question = asked(problems, index)
        terms = [int(term) for term in question.rstrip("=").split("+")]
        assert question == "+".join(map(str, terms)) + "="
        assert len(terms) == operands
        answer = str(sum(terms))
        assert solved(problems, index) == (answer[::-1] if least_first else answer)


def test_every_two_digit_sum_is_solved_and_every_operand_pair_occurs():
    problems = gj.Addition()
    prompts, tokens, mask = jax.jit(written, static_argnums=0)(problems, np.arange(10_000))
    np.testing.assert_array_equal(jax.jit(problems.grade)(prompts, tokens[:, None], mask[:, None]), 1)
    texts = {"".join(problems.words[t] for t in line if t >= 0) for line in np.asarray(prompts).tolist()}
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


@pytest.mark.parametrize(("bits", "chain"), [(1, "none"), (5, "none"), (5, "optional"), (5, "graded")])
def test_parities_are_python_s(bits, chain):
    problems = gj.Parity(bits=bits, chain=chain)
    check_all(problems)
    for index in range(problems.count):
        ones = f"{index:0{bits}b}"
        assert asked(problems, index) == ones + "="
        running = "".join(str(ones[: k + 1].count("1") % 2) for k in range(bits))
        assert solved(problems, index) == (running[-1] if chain == "none" else running)


def test_a_chain_is_graded_or_only_its_end_is():
    plain, free, strict = (gj.Parity(chain=chain) for chain in ("none", "optional", "graded"))
    assert asked(plain, 13) == "1101="
    answers = ("1001.", "1.", "0001.", "=1.", "1000.", "1001", "0.", ".")
    assert graded(free, 13, *answers) == [1, 1, 1, 1, 0, 0, 0, 0]
    assert graded(strict, 13, *answers) == [1, 0, 0, 0, 0, 0, 0, 0]
    assert graded(plain, 13, "1.", "0.", "1", ".", "11") == [1, 0, 0, 0, 0]


def test_an_answer_may_come_without_a_chain():
    problems = gj.Parity(bits=3, chain="optional")
    tokens, mask = problems.short_solution(jnp.arange(8))
    for index in range(8):
        length = int(mask[index].sum())
        assert tokens[index, :length].tolist() == [f"{index:b}".count("1") % 2, 3]
    prompts = problems.prompt(jnp.arange(8))
    np.testing.assert_array_equal(problems.grade(prompts, tokens[:, None], mask[:, None]), 1)


def test_only_what_follows_the_marker_is_graded():
    problems = gj.Scratchpad(inner=gj.Addition(), room=3)
    assert solved(problems, 1234) == "64#46"
    assert solved(problems, 9999) == "891#198"
    right = ("#46.", "64#46.", "+=7#46.", "7777#46.")
    wrong = ("46.", "64#47.", "64#46", "64.", "46#.", "#46#46.", "##46.", "#046.", "777746#", ".")
    assert graded(problems, 1234, *right, *wrong) == [1] * len(right) + [0] * len(wrong)
    check_all(problems)
    task = gj.Verifiable(problems=problems, format_bonus=1.0)
    tokens, mask = problems.solution(jnp.array([1234]))
    asked_now = problems.prompt(jnp.array([1234]))
    assert float(task.means(asked_now, tokens[:, None], mask[:, None])[0, 0]) == 2
    twice = tokens.at[0, 0].set(problems.marker)
    assert float(task.means(asked_now, twice[:, None], mask[:, None])[0, 0]) == 0


def test_a_scratchpad_s_solution_is_cut_to_its_room():
    inner = gj.Parity(bits=5)
    assert [solved(gj.Scratchpad(inner=inner, room=room), 19) for room in (0, 2, 8)] == [
        "#1",
        "11#1",
        "11101#1",
    ]
    for room in (0, 2, 8):
        check_all(gj.Scratchpad(inner=inner, room=room))


@pytest.mark.parametrize(("kind", "rule"), [(gj.Copy, list), (gj.Sort, sorted)])
def test_strings_are_copied_and_sorted_as_python_does(kind, rule):
    problems = kind(size=3, letters=3)
    check_all(problems)
    for index, letters in enumerate(itertools.product("abc", repeat=3)):
        assert asked(problems, index) == "".join(letters) + "="
        assert solved(problems, index) == "".join(rule(letters))


def test_partial_credit_is_the_share_of_right_positions():
    problems, strict = gj.Copy(size=3, letters=3), gj.Copy(size=3, letters=3, partial=False)
    index = 9 * 1 + 3 * 0 + 2  # "bac"
    answers = ("bac.", "bab.", "ba.", "baca", "bac", "b.", ".", "acb.", "aba=")
    shares = [1, 3 / 4, 2 / 4, 3 / 4, 3 / 4, 1 / 4, 0, 1 / 4, 0]
    np.testing.assert_allclose(graded(problems, index, *answers), shares)
    assert graded(strict, index, *answers) == [1] + [0] * 8
    assert graded(gj.Sort(size=3, letters=3), index, "abc.", "bac.") == [1, 0.5]


def test_one_letter_of_a_suffix_of_any_length_decides():
    first = gj.UnequalSuffixes(prefix=3, letters=3, horizon=5)
    last = gj.UnequalSuffixes(prefix=3, letters=3, horizon=5, decides="last")
    for problems in (first, last):
        check_all(problems)
        lengths = {len(solved(problems, index)) for index in range(problems.count)}
        assert lengths == {1, 2, 3, 4}
    assert asked(first, 5) == "abc"  # a letter of number 0 + 1 + 2 = 0 modulo 3
    answers = ("a.", "ab.", "abccc", "acca", "ba.", "bbbba", "caa.")
    assert graded(first, 5, *answers) == [1, 1, 1, 1, 0, 0, 0]
    assert graded(last, 5, *answers) == [1, 0, 0, 1, 1, 1, 1]
    assert not first.space.allowed[0, 3]


def test_suffixes_are_those_of_the_tabulated_trees():
    """Where the first letter decides: the same rewards as ``tasks.trees.first_token`` on the same space."""
    problems = gj.UnequalSuffixes(prefix=1, letters=2, horizon=4)
    tokens, mask = (np.asarray(x)[None] for x in problems.space.support)
    for right in range(2):
        table = np.asarray(trees.first_token(problems.space, right=right).table)
        prompts = jnp.array([[right]])
        np.testing.assert_array_equal(problems.grade(prompts, tokens, mask), table)


@pytest.mark.parametrize("multiply", [False, True])
def test_every_expression_that_reaches_the_target_is_right_and_no_other(multiply):
    """All answers of the right form, by Python's own arithmetic."""
    problems = gj.Countdown(numbers=3, largest=4, multiply=multiply)
    check_all(problems)
    said = [
        "".join(parts) for parts in itertools.product("1234", problems.signs, "1234", problems.signs, "1234")
    ]
    for index in range(0, problems.count, 9):
        target, given = asked(problems, index).rstrip("=").split(":")
        wanted = [
            float(eval(text) == int(target) and sorted(text[::2]) == sorted(given.split(",")))
            for text in said
        ]
        assert graded(problems, index, *(f"{text}." for text in said)) == wanted
        assert max(wanted) == 1


def test_countdown_lists_exactly_the_problems_that_can_be_solved():
    problems = gj.Countdown(numbers=3, largest=3, multiply=True)
    wanted = {
        (eval(f"{a}{s}{b}{t}{c}"), tuple(sorted((a, b, c))))
        for a, b, c in itertools.product(range(1, 4), repeat=3)
        for s, t in itertools.product("+-*", repeat=2)
    }
    texts = (asked(problems, index).rstrip("=").split(":") for index in range(problems.count))
    found = [(int(target), tuple(map(int, given.split(",")))) for target, given in texts]
    assert len(found) == len(set(found))
    assert set(found) == {(target, given) for target, given in wanted if target >= 0}


def test_countdown_wants_well_formed_expressions():
    problems = gj.Countdown(numbers=2, largest=3)
    index = next(i for i in range(problems.count) if asked(problems, i) == "1:2,3=")
    answers = ("3-2.", "2-3.", "3-2", "3-2=", "32-.", "3.", "+-2.", "4-3.", "-2+3", "3:2.")
    assert graded(problems, index, *answers) == [1] + [0] * 9
    tokens, mask = problems.solution(jnp.array([index]))
    assert bool(problems.formatted(problems.prompt(jnp.array([index])), tokens[:, None], mask[:, None])[0, 0])


@pytest.mark.parametrize(
    "problems",
    [
        gj.Addition(digits=1),
        gj.Parity(bits=3, chain="optional"),
        gj.Scratchpad(inner=gj.Parity(bits=2), room=1),
        gj.Copy(size=2, letters=2),
        gj.Sort(size=2, letters=2),
        gj.UnequalSuffixes(decides="last"),
        gj.Countdown(numbers=2, largest=3),
    ],
    ids=lambda problems: type(problems).__name__,
)
def test_grades_read_neither_masked_tokens_nor_other_answers(problems):
    rng = np.random.default_rng(1)
    space, index = problems.space, np.arange(min(problems.count, 8))
    tokens, mask = space.ended(jnp.asarray(rng.integers(0, space.vocab, (len(index), 40, space.horizon))))
    tokens = jnp.concatenate([problems.solution(index)[0][:, None], tokens], 1)
    mask = space.mask(tokens)
    prompts = problems.prompt(index)
    grades = np.asarray(problems.grade(prompts, tokens, mask))
    rubbish = jnp.where(mask > 0, tokens, rng.integers(0, space.vocab, tokens.shape))
    np.testing.assert_array_equal(problems.grade(prompts, rubbish, mask), grades)
    np.testing.assert_array_equal(
        problems.grade(prompts[::-1], tokens[::-1, ::-1], mask[::-1, ::-1]), grades[::-1, ::-1]
    )
    assert (grades[:, 0] == 1).all()
    assert (grades >= 0).all()
    assert (grades <= 1).all()
    assert grades.min() < 1


@pytest.mark.parametrize(
    ("build", "error", "says"),
    [
        (lambda: gj.Addition(digits=0), ValueError, "digits is 0; it must be at least 1"),
        (lambda: gj.Addition(operands=1), ValueError, "operands is 1; it must be at least 2"),
        (lambda: gj.Addition(digits=5), ValueError, "digits x operands must be at most 9"),
        (lambda: gj.Addition(digits=1.5), TypeError, "whole number"),
        (lambda: gj.Parity(bits=31), ValueError, "at most 30"),
        (lambda: gj.Parity(chain="long"), ValueError, "one of none, optional, graded"),
        (lambda: gj.Scratchpad(inner=gj.Copy()), TypeError, "``work``"),
        (lambda: gj.Scratchpad(inner=gj.Addition(), room=-1), ValueError, "room is -1"),
        (lambda: gj.Copy(size=12, letters=8), ValueError, "more than"),
        (lambda: gj.Copy(letters=27), ValueError, "there are 26"),
        (lambda: gj.Sort(letters=1), ValueError, "at least 2"),
        (lambda: gj.Sort(partial=0.5), TypeError, "True or False"),
        (lambda: gj.UnequalSuffixes(horizon=1), ValueError, "horizon is 1"),
        (lambda: gj.UnequalSuffixes(decides="middle"), ValueError, "one of first, last"),
        (lambda: gj.Countdown(numbers=5), ValueError, "at most 4"),
        (lambda: gj.Countdown(largest=10), ValueError, "at most 9"),
        (lambda: gj.Countdown(multiply="yes"), TypeError, "True or False"),
    ],
)
def test_bad_generators_are_refused(build, error, says):
    with pytest.raises(error, match=says):
        build()
