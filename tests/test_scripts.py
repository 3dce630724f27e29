"""What a claim's script says of itself, and what made a result."""

import os
import subprocess
import sys

import pytest

from experiments.__main__ import plan
from experiments.harness import ledger as ledgers
from experiments.harness import provenance
from experiments.harness import scripts as claims_of
from experiments.harness.scripts import Refusal
from tests.made_up_claims import ROOT, SCRIPT, cli, says, write_claim


def test_every_claim_s_smoke_verdict_is_committed_and_ci_compares_with_it():
    smoke = ledgers.read_ledger(ledgers.ledger_path(claims_of.SCRIPTS, "smoke"))
    assert [name for name in smoke if "." not in name] == list(claims_of.find_scripts())
    assert {entry["size"] for entry in smoke.values()} == {"smoke"}
    known = {"reproduced", "qualified", "refuted", "not testable at smoke size"}
    assert {entry["verdict"] for entry in smoke.values()} <= known
    commands = (ROOT / ".ci" / "run").read_text().splitlines()
    (line,) = (line for line in commands if "-m experiments" in line)
    assert "--size smoke" in line
    assert "--check" in line


def test_the_source_of_a_result_is_its_code(tmp_path):
    for folder in ("grpo_jax", "experiments"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").write_text("one")
    first = provenance.source(tmp_path)
    assert provenance.source(tmp_path) == first
    (tmp_path / "experiments" / "README.md").write_text("no code")
    assert provenance.source(tmp_path) == first
    (tmp_path / "experiments" / "a.py").write_text("two")
    assert provenance.source(tmp_path) != first


@pytest.mark.parametrize(
    "arguments", [["--list"], pytest.param(["--help"], marks=pytest.mark.slow)], ids=" ".join
)
def test_a_reader_that_leaves_early_ends_the_command_without_a_traceback(arguments):
    """As `head` does, but before anything is written, so that no race decides."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "experiments", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 141


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (SCRIPT[: SCRIPT.index("import")].format(says=says("A2")), "", "has no docstring"),
        ("Refuted if the mean leaves its margin.", "It is so.", "does not say what would refute it"),
        ('"float32"', '"float16"', "PRECISION"),
        ("def check", "def examine", "does not define check"),
    ],
)
def test_a_script_that_does_not_say_what_it_is_is_refused(tmp_path, old, new, words):
    write_claim(tmp_path, "A2")
    path = tmp_path / "a02_noun.py"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(Refusal, match=words):
        claims_of.find_scripts(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("SIZES = sizes(runs=(16, 16, 32))", "", "gives no SIZES"),
        ("(16, 16, 32)", "(16, 16)", "needs three values"),
        (
            '    row = claim.ours("The mean is far away.")\n',
            '    row = claim.ours("Idle.")\n    return 3\n',
            "nothing",
        ),
    ],
)
def test_a_script_that_breaks_its_word_says_so(tmp_path, old, new, words):
    scripts = tmp_path / "claims"
    scripts.mkdir()
    write_claim(scripts, "A2")
    path = scripts / "a02_noun.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert cli("--scripts", scripts, "--out", tmp_path / "out", "--size", "smoke") == 1
    assert words in (tmp_path / "out" / "A2" / "crash.txt").read_text()


def test_two_scripts_may_not_be_one_claim(tmp_path):
    write_claim(tmp_path, "A2")
    (tmp_path / "a02_again.py").write_text((tmp_path / "a02_noun.py").read_text())
    with pytest.raises(Refusal, match="are both A2"):
        claims_of.find_scripts(tmp_path)


def test_the_commit_is_that_of_a_checkout_alone(tmp_path):
    assert provenance.commit(tmp_path) is None
    identity = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    (tmp_path / "file").write_text("one")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, env=os.environ | identity)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert provenance.commit(tmp_path) == head.stdout.strip()
    (tmp_path / "file").write_text("two")
    assert provenance.commit(tmp_path) == f"{head.stdout.strip()}-dirty"
    inner = tmp_path / "unpacked"
    inner.mkdir()
    assert provenance.commit(inner) is None


def test_a_plain_run_takes_the_committed_seed_and_a_check_the_committed_size_too():
    script = claims_of.find_scripts()["C3"]
    committed = {"C3": {"size": "full", "seed": 2}}

    def planned(ledger, *, check=False, **asked):
        (job,) = plan([script], ledger, **{"size": None, "seed": None} | asked, check=check)
        return job.size, job.seed

    assert planned(committed) == ("quick", 2)
    assert planned(committed, check=True) == ("full", 2)
    assert planned(committed, check=True, size="smoke", seed=0) == ("smoke", 0)
    assert planned(committed, size="full", seed=1) == ("full", 1)
    assert planned({}) == planned({}, check=True) == ("quick", 0)


def test_a_claim_that_stands_apart_runs_only_where_it_its_letter_or_all_is_named(tmp_path):
    for claim in ("A1", "C6", "C7", "D1"):
        write_claim(tmp_path, claim)
    network = tmp_path / "c07_noun.py"
    network.write_text(network.read_text().replace("PRECISION", "APART = True\nPRECISION", 1))
    found = claims_of.find_scripts(tmp_path)

    def chosen(*names):
        return [script.id for script in claims_of.choose(found, names)]

    assert chosen() == ["A1", "C6"]
    assert chosen("c7") == ["C7"]
    assert chosen("C") == ["C6", "C7"]
    assert chosen("all") == ["A1", "C6", "C7", "D1"]
    network.write_text(network.read_text().replace("APART = True", 'APART = "often"', 1))
    with pytest.raises(Refusal, match="APART is True or False; got 'often'"):
        claims_of.find_scripts(tmp_path)


def test_networks_do_not_run_unasked():
    assert "C7" not in [script.id for script in claims_of.choose(claims_of.find_scripts(), [])]
