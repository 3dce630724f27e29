"""The transfer ledger: enumerations against brute force, rules on planted numbers, table and command."""

import itertools

import jax
import numpy as np
import pytest

from experiments.harness.verdict import VERDICTS, Claim
from experiments.transfer import b_biases, d_samplers, e_rewards, enumeration, surrogate, table
from experiments.transfer.policies import LENGTH, MASK, POLICIES, SPACE, TOKENS, World, table_of
from experiments.transfer.tasks import BINARY, GRADED, RARE
from tests.made_up_claims import cli


def laws(seed, runs=2):
    """[R, C, S, T] listed log-probabilities of random tables, one node at a time."""
    rng = np.random.default_rng(seed)
    found = np.zeros((runs, len(BINARY), *TOKENS.shape))
    for run, prompt in np.ndindex(found.shape[:2]):
        rows = {}
        for s, t in np.argwhere(MASK > 0):
            prefix = tuple(TOKENS[s, :t])
            row = rows.setdefault(prefix, np.where(SPACE.allowed[t], rng.uniform(0.2, 1, 3), 0))
            found[run, prompt, s, t] = np.log(row[TOKENS[s, t]] / row.sum())
    return found


def every_group(old, rewards, size):
    """Of one prompt: members [S^G, G], their chance [S^G], and r − r̄ [S^G, G]."""
    members = np.array(list(itertools.product(range(SPACE.size), repeat=size)))
    own = rewards[members]
    return members, np.exp(old.sum(-1))[members].prod(1), own - own.mean(1, keepdims=True)


@pytest.mark.parametrize("options", [
    {"normalized": False, "ratio": "token", "clip": "two-sided", "divided": False},
    {"normalized": True, "ratio": "trajectory", "clip": "upper, minimum", "divided": True},
])  # fmt: skip
def test_updates_are_sums_over_every_group(options):
    old, now = laws(0), laws(1)
    found = enumeration.update(old, now, GRADED, group=3, **options)
    for run, prompt in ((0, 0), (1, 2)):
        members, chance, advantage = every_group(old[run, prompt], GRADED[prompt], 3)
        if options["normalized"]:
            spread = np.sqrt((advantage**2).mean(1, keepdims=True))
            advantage = np.where(spread > 0, advantage / np.where(spread > 0, spread, 1), 0)
        gap = (now - old)[run, prompt]
        ratio = np.exp(gap if options["ratio"] == "token" else gap.sum(1, keepdims=True) + 0 * gap)
        wanted = np.zeros(MASK.shape)
        for member in range(3):
            for s in range(SPACE.size):
                here = members[:, member] == s
                for sign in (1, -1):
                    mean = np.sum((chance * np.maximum(sign * advantage[:, member], 0))[here]) * sign / 3
                    held = (
                        (ratio[s] > 1.2) if sign > 0 else (ratio[s] < 0.8) & (options["clip"] == "two-sided")
                    )
                    wanted[s] += mean * np.where(held, 0, ratio[s]) * MASK[s]
        wanted = wanted * (3 / LENGTH[:, None] if options["divided"] else 1) / len(BINARY)
        np.testing.assert_allclose(found[run, prompt], wanted, atol=1e-14)


def test_sums_through_a_prefix_and_the_table_itself():
    logp, values = laws(2), np.random.default_rng(3).normal(size=(2, 3, SPACE.size))
    through, steps = enumeration.through(logp, values), table_of(logp)
    prefixes = [prefix for depth in range(4) for prefix in itertools.product((0, 1), repeat=depth)]
    for node, prefix in enumerate(prefixes):
        after = np.array([tuple(tokens[: len(prefix)]) == prefix for tokens in TOKENS])
        for token in range(3):
            on = after & (TOKENS[:, len(prefix)] == token) & (MASK[:, len(prefix)] > 0)
            chance = np.exp(logp.sum(-1))
            np.testing.assert_allclose(through[:, :, node, token], (chance * values * on).sum(-1), atol=1e-15)
            reach = (chance * (after & (MASK[:, len(prefix)] > 0))).sum(-1)
            np.testing.assert_allclose(steps[:, :, node, token], (chance * on).sum(-1) / reach, rtol=1e-12)


def test_leaving_dead_groups_out_is_a_sum_over_patterns_of_mixed_groups():
    logp = laws(4)
    p = np.sum(np.exp(logp.sum(-1)) * BINARY, -1)
    alive = 1 - p**8 - (1 - p) ** 8
    # What a prompt's own group gives if it is mixed, times 1/(mixed groups), over all patterns of the others.
    own = enumeration.update(logp, logp, BINARY) * 3 / alive[:, :, None, None]
    wanted = np.zeros_like(own)
    for pattern in itertools.product((0, 1), repeat=3):
        chance = np.prod(np.where(pattern, alive, 1 - alive), 1)
        for prompt in np.flatnonzero(pattern):
            wanted[:, prompt] += chance[:, None, None] * own[:, prompt] / sum(pattern)
    np.testing.assert_allclose(e_rewards.left_out(logp), wanted, atol=1e-15)


def test_marks_of_able_prompts_are_rewards(monkeypatch):
    monkeypatch.setattr(e_rewards, "ABILITY", 1.0)
    logp = laws(5)
    found = e_rewards.phantom(logp, 0.1, normalized=True)
    wanted = enumeration.update(logp, logp, RARE - 0.1 * LENGTH / 4, normalized=True)
    np.testing.assert_allclose(found, wanted, atol=1e-12)


@pytest.fixture(scope="module")
def narrow():
    """The smallest network, with what is compiled of it."""
    with jax.enable_x64(True):
        yield World("narrow", seeds=2, patience=0.05)


def test_a_tempered_policy_s_own_gradient_is_the_slope_of_its_return(narrow):
    def returned(params):
        return enumeration.returns(d_samplers.tempered(1.5)(narrow.listed(params)), BINARY)

    along = np.random.default_rng(6).normal(size=narrow.start.shape)
    slope = (returned(narrow.start + 1e-5 * along) - returned(narrow.start - 1e-5 * along)) / 2e-5
    logp = narrow.listed(narrow.start)
    weights = d_samplers.own_gradient(logp, d_samplers.tempered(1.5)(logp), 1.5)
    gradient = narrow.pull(narrow.start, weights)
    np.testing.assert_allclose(np.sum(gradient * along, 1), slope, rtol=1e-6)


def test_derivatives_are_those_of_one_law(narrow):
    """The Jacobian, a pull and a push along the same direction agree with central differences."""
    along = np.random.default_rng(7).normal(size=narrow.start.shape)
    ahead, behind = (narrow.listed(narrow.start + sign * 1e-5 * along) for sign in (1, -1))
    moved = (ahead - behind) / 2e-5
    np.testing.assert_allclose(narrow.push(narrow.start, along), moved, atol=1e-7)
    jacobian = narrow.jacobian(narrow.start[1])
    np.testing.assert_allclose(jacobian @ along[1], moved[1], atol=1e-7)
    weights = np.random.default_rng(8).normal(size=moved.shape)
    pulled = narrow.pull(narrow.start, weights)
    np.testing.assert_allclose(np.sum(pulled * along, 1), np.sum(weights * moved, (1, 2, 3)), rtol=1e-6)


def test_rules_can_fall(narrow, monkeypatch):
    claim = Claim("D3", "A sentence.")
    d_samplers.d3(narrow, claim)
    assert claim.numbers["with weights: error over length"].holds is True
    drawn = d_samplers.drawn
    monkeypatch.setattr(
        d_samplers, "drawn", lambda q, now, *, weighed: 1.001 * drawn(q, now, weighed=weighed)
    )
    wrong = Claim("D3", "A sentence.")
    d_samplers.d3(narrow, wrong)
    assert wrong.verdict().verdict == "refuted"
    monkeypatch.setattr(surrogate, "gradient", lambda *given, clip, **named: np.array([1 / clip]))
    acts = Claim("B6", "A sentence.")
    b_biases.b6(narrow, acts)
    assert acts.verdict().verdict == "refuted"


def test_what_shares_parameters_pushes_a_shared_token_and_a_table_does_not(narrow, monkeypatch):
    """For a table: the same code, with a policy whose parameters are log-probabilities themselves."""
    shared = Claim("B1", "A sentence.")
    b_biases.b1(narrow, shared)
    left = "uniform weights: share of the push that is left"
    assert shared.numbers[left].value > 0.01
    logp = narrow.listed(narrow.start)
    monkeypatch.setattr(World, "pull", lambda self, params, weights: weights.reshape(2, -1))
    monkeypatch.setattr(World, "push", lambda self, params, along: _same_prefix(along.reshape(logp.shape)))
    apart = Claim("B1", "A sentence.")
    b_biases.b1(narrow, apart)
    assert abs(apart.numbers[left].value) < 1e-12
    assert apart.numbers["1/|o|: share of the push that is left"].value > 0.02


def _same_prefix(along):
    """A first token's logit is one number for all answers that begin with it."""
    moved = np.zeros_like(along)
    for token in (0, 1):
        of = TOKENS[:, 0] == token
        moved[:, :, of, 0] = along[:, :, of, 0].sum(-1, keepdims=True)
    return moved


def cells(**verdicts):
    """Rows of made-up verdicts, tree first."""
    return {
        id: {
            "claim": id.partition(".")[0],
            "says": f"Ours: {id}.",
            "policies": {
                name: {"verdict": verdict, "found": "", "because": "So."}
                for name, verdict in zip(table.POLICY_NAMES, each, strict=False)
            },
        }
        for id, each in verdicts.items()
    }


OPEN = "not testable here"
MADE = cells(
    B1=("reproduced", "refuted"),
    B2=("reproduced", OPEN),
    B3=("refuted", "refuted"),
    B4=("reproduced", "reproduced"),
)


def test_what_becomes_of_a_row_and_failures_first():
    assert [table.outcome(row) for row in MADE.values()] == ["fails", "open", "transfers", "transfers"]
    assert table.ordered(dict(reversed(MADE.items()))) == ["B1", "B2", "B3", "B4"]
    assert table.text(MADE).endswith("Sentences: 4; 1 fail to transfer, 1 open, 2 transfer.")
    assert table.outcome(cells(B5=(OPEN, "refuted"))["B5"]) == "open"


def test_a_check_names_what_differs_and_an_update_keeps_the_rest():
    first = table.updated({}, MADE, size="quick", seed=0)
    assert table.differences(MADE, first, size="quick") == []
    assert table.differences(MADE, first, size="full") == ["nothing is committed at size full"]
    now = cells(B1=("reproduced", "reproduced"), B4=("refuted",))
    assert table.differences(now, first, size="quick") == [
        "B1 on mlp: committed refuted, now reproduced",
        "B4 on tree: committed reproduced, now refuted",
    ]
    second = table.updated(first, now, size="quick", seed=0)["rows"]
    assert second["B1"]["policies"]["mlp"]["verdict"] == "reproduced"
    assert second["B4"]["policies"]["mlp"]["verdict"] == "reproduced"
    assert second["B3"] == MADE["B3"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--policy", "treee"), "unknown policy 'treee': did you mean tree?"),
        (("--policy", "mlp", "B77"), "the transfer ledger has no claim 'B77'"),
        (("X1", "--policy", "mlp"), "the transfer ledger has no claim 'X1'"),
        (("--policy", "mlp", "--jobs", "0"), "--jobs is at least 1; got 0"),
        (("--policy", "mlp", "--check", "--update-ledger"), "choose one"),
        (("--policy", "mlp", "--check", "--size", "smoke"), "no table is committed at size smoke"),
        (("--policy", "mlp", "--update-ledger", "--size", "smoke"), "choose quick or full"),
    ],
)
def test_requests_without_meaning_are_refused(words, told, capsys):
    assert cli(*words) == 2
    assert told in capsys.readouterr().err


def test_claims_may_stand_among_the_policies():
    assert table.choose((), ("mlp", "b3", "tree")) == (["B3"], ["tree", "mlp"])
    assert table.choose(("D",), ("mlp",))[0] == ["D1", "D2", "D3", "D4"]
    assert table.choose(("all",), ("mlp",))[0] == list(table.functions())


def test_the_committed_table_is_whole():
    """A verdict for every claim on every policy, and each function says a sentence and a rule."""
    committed = table.read()
    assert tuple(POLICIES) == table.POLICY_NAMES
    judged = {row["claim"] for row in committed["rows"].values()}
    assert judged == set(table.functions())
    for id, row in committed["rows"].items():
        assert set(row["policies"]) == set(POLICIES), id
        assert {cell["verdict"] for cell in row["policies"].values()} <= set(VERDICTS)
    for name, function in table.functions().items():
        sentence, rule = table.says(function)
        assert sentence == committed["rows"][name]["says"]
        assert "Refuted if" in rule


@pytest.mark.slow
def test_a_smoke_run_goes_on_where_it_stopped(tmp_path, capsys):
    words = ("B4", "D2", "--policy", "narrow", "--size", "smoke", "--out", tmp_path)
    assert cli(*words) == 0
    first = capsys.readouterr().out
    assert "2 cells took" in first
    assert (tmp_path / "transfer" / "index.html").read_text().count("<tr>") == 4
    kept = (tmp_path / "transfer" / "cells.json").read_bytes()
    assert cli(*words, "--jobs", "1") == 0
    assert "narrow: B4 reproduced" in capsys.readouterr().out
    assert (tmp_path / "transfer" / "cells.json").read_bytes() == kept
