"""The committed verdicts: written, compared with, kept with their figures and tables, at each size apart."""

import json

import pytest

from experiments.harness import ledger as ledgers
from experiments.harness import scripts as claims_of
from experiments.harness.record import read_data
from experiments.harness.run import Job, Outcome
from tests.made_up_claims import cli, write_claim


@pytest.fixture
def scripts(tmp_path):
    """Two claims that end well and one that raises."""
    folder = tmp_path / "experiments" / "claims"
    folder.mkdir(parents=True)
    write_claim(folder, "A2", precision="float64")
    write_claim(folder, "B10", tolerance=1e-6)
    write_claim(folder, "B9", check="raise ValueError('<no & luck>')")
    return folder


def test_the_ledger_is_written_and_checked_at_its_own_size_and_seed(scripts, tmp_path, capsys):
    both = ["A2", "B9", "--scripts", scripts, "--out", tmp_path]
    assert cli(*both, "--seed", "5", "--update-ledger") == 1  # B9 crashes
    path = scripts.parent / "ledger.json"
    ledger = json.loads(path.read_text(encoding="utf-8"))
    assert ledger.keys() == {"A2", "A2.1"}
    assert ledger["A2"]["seed"] == ledger["A2.1"]["seed"] == 5
    assert ledger["A2"]["found"] == "The mean is in the middle."
    assert cli("A2", "--scripts", scripts, "--out", tmp_path, "--check") == 0
    assert json.loads((tmp_path / "A2" / "record.json").read_text(encoding="utf-8"))["seed"] == 5
    ledger["A2"]["verdict"] = "refuted"
    path.write_text(json.dumps(ledger))
    assert cli("A2", "--scripts", scripts, "--out", tmp_path, "--check") == 1
    assert "A2: committed refuted, now reproduced" in capsys.readouterr().out
    ledger["A2"]["verdict"] = "reproduced"
    ledger["A2.2"] = ledger.pop("A2.1")
    path.write_text(json.dumps(ledger))
    assert cli("A2", "--scripts", scripts, "--out", tmp_path, "--check") == 1
    said = capsys.readouterr().out
    assert "A2.1: committed nothing at size quick, now refuted" in said
    assert "A2.2: committed refuted, now absent" in said
    path.unlink()


def test_the_figures_of_the_ledger_s_runs_are_kept(scripts, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "ledger.md").write_text("before\n<!-- ledger -->\nold\n<!-- /ledger -->\nafter\n")
    out = tmp_path / "out"
    assert cli("A2", "B9", "--scripts", scripts, "--out", out, "--update-ledger") == 1  # B9 crashes
    page = (tmp_path / "docs" / "ledger.md").read_text()
    assert page.startswith("before\n<!-- ledger -->\n| | the paper says |")
    assert page.endswith("|\n<!-- /ledger -->\nafter\n")
    assert "| [A2](../experiments/claims/a02_" in page
    assert "old" not in page
    kept = {path.name: path.read_bytes() for path in (tmp_path / "docs" / "figures").iterdir()}
    assert kept == {"A2.svg": (out / "A2" / "figure.svg").read_bytes()}


def test_the_table_that_a_claim_gives_is_kept_beside_its_figure(scripts, tmp_path):
    (tmp_path / "docs").mkdir()
    with (scripts / "a02_noun.py").open("a", encoding="utf-8") as script:
        script.write(
            "\n\nfrom numpy import tile as table  # no rows for the site\n"
            "\n\ndef site_table(data):\n    return [{'what': 'greatest < 1 σ', 'x': float(data.x.max())}]\n"
        )
    out = tmp_path / "out"
    assert cli("A2", "--scripts", scripts, "--out", out, "--update-ledger") == 0
    kept = (tmp_path / "docs" / "figures" / "A2.json").read_text(encoding="utf-8")
    assert json.loads(kept) == [
        {"what": "greatest < 1 σ", "x": float(read_data(out / "A2" / "data.nc").x.max())}
    ]


def test_smoke_verdicts_are_committed_and_checked_apart(scripts, tmp_path, capsys):
    """One claim decides at smoke size and one does not; a change of either is found."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "ledger.md").write_text("<!-- ledger -->\n<!-- /ledger -->")
    both = ["A2", "B10", "--scripts", scripts, "--size", "smoke", "--out", tmp_path / "out"]
    assert cli(*both, "--check") == 2
    assert "committed at size smoke" in capsys.readouterr().err
    assert cli(*both, "--seed", "4", "--update-ledger") == 0
    assert not (scripts.parent / "ledger.json").exists()
    assert "A2" not in (tmp_path / "docs" / "ledger.md").read_text()
    path = scripts.parent / "ledger_smoke.json"
    smoke = json.loads(path.read_text(encoding="utf-8"))
    assert {claim: entry["verdict"] for claim, entry in smoke.items()} == {
        "A2": "reproduced",
        "A2.1": "refuted",
        "B10": "not testable at smoke size",
        "B10.1": "refuted",
    }
    assert all(entry["seed"] == 4 and entry["size"] == "smoke" for entry in smoke.values())
    (scripts.parent / "ledger.json").write_text(json.dumps({"A2": {"verdict": "refuted", "size": "quick"}}))
    assert not (tmp_path / "docs" / "figures").exists()
    capsys.readouterr()
    assert cli(*both, "--check") == 0
    assert "The verdicts are those of ledger_smoke.json." in capsys.readouterr().out
    smoke["A2"]["verdict"], smoke["B10"]["verdict"] = "refuted", "reproduced"
    path.write_text(json.dumps(smoke))
    assert cli(*both, "--check") == 1
    said = capsys.readouterr().out
    assert "A2: committed refuted, now reproduced" in said
    assert "B10: committed reproduced, now not testable at smoke size" in said


def test_differences_name_what_is_new_and_what_crashed(scripts):
    scripts = claims_of.find_scripts(scripts)
    record = {"claim": "A2", "rows": [{"id": "A2", "verdict": "reproduced"}]}
    good = Outcome(Job(scripts["A2"], "quick", 0), record, None)
    bad = Outcome(Job(scripts["B9"], "quick", 0), None, "trace")
    ledger = {name: {"verdict": "refuted", "size": "quick"} for name in ("B9", "B9.1")}
    found = ledgers.differences(ledger, [good, bad])
    assert found == [
        "A2: committed nothing at size quick, now reproduced",
        "B9: committed refuted, now crashed",
    ]
    ledger["A2"] = {"verdict": "reproduced", "size": "full"}
    assert ledgers.differences(ledger, [good]) == found[:1]
    ledger["A2"]["size"] = "quick"
    assert ledgers.differences(ledger, [good]) == []


def test_one_is_no_plural():
    assert ledgers.counted(1, "sentence") == "1 sentence"
    assert ledgers.counted(0, "claim") == "0 claims"
