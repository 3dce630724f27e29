"""Chance level: exact where everything can be listed, inside its interval where not."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax.tasks import chance


def walked(problems):
    """The mean grade by walking every problem's tree of answers in Python."""
    space = problems.space

    def grow(prefix):
        steps = np.flatnonzero(space.allowed[len(prefix)]).tolist()
        for token in steps:
            longer, share = (*prefix, token), 1 / len(steps)
            if token == space.eos or len(longer) == space.horizon:
                yield longer, share
            else:
                yield from ((row, share * rest) for row, rest in grow(longer))

    rows = list(grow(()))
    tokens = np.array([row + (0,) * (space.horizon - len(row)) for row, _ in rows])
    mask = np.array([[1.0] * len(row) + [0.0] * (space.horizon - len(row)) for row, _ in rows])
    prompts = problems.prompt(jnp.arange(problems.count))
    shape = (problems.count, *tokens.shape)
    grades = problems.grade(prompts, np.broadcast_to(tokens, shape), np.broadcast_to(mask, shape))
    shares = np.array([share for _, share in rows])
    assert abs(shares.sum() - 1) < 1e-12
    return float((np.asarray(grades, float) @ shares).mean())


@pytest.mark.parametrize(
    "problems",
    [
        gj.Parity(bits=4, chain="optional"),
        gj.Copy(size=2, letters=3),
        gj.UnequalSuffixes(horizon=4, decides="last"),
        gj.Scratchpad(inner=gj.Parity(bits=2), room=1),
    ],
    ids=lambda problems: type(problems).__name__,
)
def test_what_can_be_listed_is_exact(problems, monkeypatch):
    found = gj.chance_level(problems)
    assert found.exact
    assert found.low == found.level == found.high
    assert found.level == pytest.approx(walked(problems), rel=1e-6)
    monkeypatch.setattr(chance, "AT_ONCE", 100)  # several calls, the last one not full
    assert gj.chance_level(problems).level == pytest.approx(found.level, rel=1e-6)


def test_chance_of_an_exact_match_is_one_answer_s():
    """13^−(digits + 1) for each sum, counted in Python; it lies in the sampled interval."""
    sums = (a + b for a, b in itertools.product(range(100), repeat=2))
    level = sum(13.0 ** -(len(str(total)) + 1) for total in sums) / 10_000
    found = gj.chance_level(gj.Addition(), draws=400_000)
    assert not found.exact
    assert 0 < found.low < level < found.high < 2 * level
    assert gj.chance_level(gj.Addition(digits=1)).level == pytest.approx(
        (55 * 13.0**-2 + 45 * 13.0**-3) / 100, rel=1e-6
    )


def test_a_share_counts_as_a_probability(monkeypatch):
    problems = gj.Sort(size=3, letters=3)
    level = gj.chance_level(problems).level
    monkeypatch.setattr(chance, "MOST_GRADES", 0)
    found = gj.chance_level(problems, draws=200_000)
    assert found.low < level < found.high
    assert found.high - found.low < 0.1 * level


def test_the_table_has_a_row_for_each_family(monkeypatch):
    rows = chance.table((gj.Parity(), gj.Countdown(numbers=2, largest=3)), draws=1000).splitlines()
    assert rows[2] == "| `Parity()` | `1010=` → `0` | 16 | 4 | 5 | 2 | 6.25 % |"
    assert rows[3].startswith("| `Countdown(numbers=2, largest=3)` | ")
    assert len(rows) == 4
    named = {type(problems).__name__ for problems in chance.GENERATORS}
    assert named == {"Addition", "Parity", "Scratchpad", "UnequalSuffixes", "Copy", "Sort", "Countdown"}
