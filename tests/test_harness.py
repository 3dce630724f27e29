"""The harness runs claims apart from each other, publishes whole results, and never hides a crash."""

import contextlib
import io
import json
import signal
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from experiments.harness import ledger as ledgers
from experiments.harness import report, run
from experiments.harness import scripts as claims_of
from experiments.harness.record import read_data, write_data
from experiments.harness.run import Job
from grpo_jax.pages import picture
from grpo_jax.sweeps.interrupt import Interrupted
from tests.made_up_claims import cli, says, write_claim


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Five claims run once: two that end well, two that raise, one of them within JAX, one that is killed."""
    scripts = tmp_path_factory.mktemp("root") / "experiments" / "claims"
    scripts.mkdir(parents=True)
    out = tmp_path_factory.mktemp("out")
    write_claim(scripts, "A2", precision="float64")
    write_claim(scripts, "B10", tolerance=1e-6)
    write_claim(scripts, "B9", check="raise ValueError('<no & luck>')")
    write_claim(scripts, "B11", check="jax.jit(lambda x: x + np.ones(3))(np.ones(2))")
    write_claim(scripts, "C1", check="import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    (out / "B9").mkdir()
    (out / "B9" / "record.json").write_text(json.dumps(OLD))
    (out / "B9" / "figure.png").write_bytes(b"old")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        status = cli("--scripts", scripts, "--out", out, "--seed", "3")
    return scripts, out, status, said.getvalue()


OLD_ROW = {
    "id": "B9", "says": "Old.", "verdict": "refuted", "found": "", "because": "It was so.", "numbers": {},
}  # fmt: skip
OLD = {
    "claim": "B9", "about": "Setting.", "paper": "B", "size": "full", "seed": 7, "rows": [OLD_ROW],
    "seconds": 1.0, "device": "1 x cpu", "versions": {}, "commit": None, "source": "",
}  # fmt: skip


def line_of(scripts: Path, name: str, words: str) -> int:
    lines = (scripts / name).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if words in line)


def test_the_reason_of_a_crash_is_the_exception_s_own_and_the_claim_s_line(ran):
    """JAX ends a traceback with a note on its internal frames, which says nothing of the mistake."""
    scripts, out, _, said = ran
    whole = " ".join(said.split())
    here = f"(b09_noun.py, line {line_of(scripts, 'b09_noun.py', 'raise')})"
    assert f"ValueError: <no & luck> {here}" in whole
    assert f"(b11_noun.py, line {line_of(scripts, 'b11_noun.py', 'jit')})" in whole
    assert "incompatible shapes for broadcasting: (2,), (3,)" in whole.split("B11", 1)[1]
    assert "ended by signal 9" in whole
    table = said[said.index("A2     REPRODUCED") :]
    assert "internal frames" not in table
    assert "internal frames" in (out / "B11" / "crash.txt").read_text()


def read(out: Path, claim: str) -> dict:
    return json.loads((out / claim / "record.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)


def test_a_run_publishes_data_figure_and_record(ran):
    _, out, *_ = ran
    found = read(out, "A2")
    assert set(found) == set(OLD)
    assert (found["claim"], found["size"], found["seed"]) == ("A2", "quick", 3)
    assert found["about"] == "Refuted if the mean leaves its margin."
    assert found["paper"].endswith("arXiv:2502.18548")
    assert found["versions"].keys() >= {"python", "jax", "numpy", "xarray"}
    row, ours = found["rows"]
    assert (row["id"], row["says"], row["verdict"]) == ("A2", "Sentence of A2.", "reproduced")
    assert row["found"] == "The mean is in the middle."
    assert (ours["id"], ours["says"], ours["verdict"]) == ("A2.1", "Ours: The mean is far away.", "refuted")
    assert row["numbers"]["lost"] == {"role": "reports", "value": None}
    data = xr.load_dataset(out / "A2" / "data.nc", engine="h5netcdf")
    number = row["numbers"]["mean"]
    assert number["value"] == float(data.x.mean())
    assert number["low"] < float(data.x.mean()) < number["high"]
    assert number["role"] == "refutes"
    assert number["holds"] is True
    assert (out / "A2" / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (out / "A2" / "figure.svg").read_bytes()


@pytest.mark.parametrize("name", ["one", "several"])
def test_data_come_back_as_they_were(tmp_path, name):
    one = xr.Dataset({"x": ("seed", np.arange(3.0))}, {"seed": [0, 1, 2]}, {"config": "{}"})
    other = xr.Dataset({"y": (("seed", "kind"), np.ones((2, 2)))}, {"kind": ["a", "b"]})
    given = one if name == "one" else {"one": one, "other": other}
    write_data(given, tmp_path / "data.nc", claim="A1")
    found = read_data(tmp_path / "data.nc")
    if name == "one":
        xr.testing.assert_equal(found, one)
        assert found.attrs == {"config": "{}", "claim": "A1"}
    else:
        assert list(found) == ["one", "other"]
        for key, data in found.items():
            xr.testing.assert_identical(data, given[key])
    with pytest.raises(TypeError, match="a Dataset or several by name"):
        write_data([one], tmp_path / "data.nc")


def test_each_claim_has_its_own_precision_and_the_seed_that_was_asked_for(ran, x64):
    import jax

    _, out, *_ = ran
    for claim, dtype in (("A2", "float64"), ("B10", "float32")):
        data = xr.load_dataset(out / claim / "data.nc", engine="h5netcdf")
        assert data.x.dtype == dtype
        np.testing.assert_array_equal(data.x, jax.random.uniform(jax.random.key(3), (16,), dtype=dtype))


def test_a_crash_is_shown_recorded_and_loses_nothing_else(ran):
    _, out, status, _ = ran
    assert status == 1
    assert read(out, "B10")["rows"][0]["verdict"] == "not testable here"
    raised, killed = ((out / claim / "crash.txt").read_text() for claim in ("B9", "C1"))
    assert "Traceback" in raised
    assert "ValueError: <no & luck>" in raised
    assert "signal 9" in killed
    assert read(out, "B9") == OLD
    assert not list(out.glob("*/.*"))
    page = (out / "index.html").read_text()
    for claim in ("A2", "B9", "B10", "C1"):
        assert f'href="{claim}/index.html"' in page
    drawn, crashed = ((out / claim / "index.html").read_text() for claim in ("A2", "B9"))
    assert picture(out / "A2" / "figure.svg") in drawn
    assert "&lt;no &amp; luck&gt;" in crashed
    assert page.index('id="A2"') < page.index('id="B9"') < page.index('id="B10"') < page.index('id="C1"')


class Elements(HTMLParser):
    """What a browser would see: every element's name, and every text between them."""

    def __init__(self):
        super().__init__()
        self.names, self.texts = [], []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.texts += [value for _, value in attrs if value]

    def handle_data(self, data):
        self.texts.append(data)


def test_nothing_that_comes_from_data_is_markup(tmp_path):
    """A record, a crash and a folder's name whose every text is an element of its own name."""

    def mark(where: str) -> str:
        return f'"{where}&<evil-{where}>'

    texts = ("about", "paper", "size", "seed", "seconds", "device", "commit", "claim")
    found = {key: mark(key) for key in texts}
    found["versions"] = {mark("package"): mark("version")}
    keys = ("value", "expected", "low", "high", "tolerance", "relation", "at", "role")
    numbers = {mark("number"): {key: mark(key) for key in keys} | {"holds": True}}
    row = {key: mark(key) for key in ("id", "says", "verdict", "found", "because")} | {"numbers": numbers}
    found["rows"] = [row, row | {"id": mark("other")}]
    folder = tmp_path / mark("folder")
    folder.mkdir()
    (folder / "record.json").write_text(json.dumps(found))
    (folder / "figure.png").write_bytes(b"picture")
    (tmp_path / mark("empty")).mkdir()
    (tmp_path / mark("empty") / "crash.txt").write_text(mark("crash"))
    page = Elements()
    start = report.write_index(tmp_path)
    for path in (start, *start.parent.glob("*/index.html")):
        page.feed(path.read_text())
    assert not [name for name in page.names if name.startswith("evil")]
    said = "\n".join(page.texts)
    shown = {
        *texts,
        *keys,
        "package",
        "version",
        "number",
        "says",
        "verdict",
        "found",
        "because",
        "id",
        "other",
    }
    for where in (*(shown - {"claim"}), "folder", "empty", "crash"):
        assert mark(where) in said, where


def test_a_smoke_run_never_replaces_a_real_one(ran, capsys):
    scripts, out, *_ = ran
    before = (out / "A2" / "record.json").read_bytes()
    assert cli("A2", "--scripts", scripts, "--out", out, "--size", "smoke") == 2
    assert "quick run of A2" in capsys.readouterr().err
    assert (out / "A2" / "record.json").read_bytes() == before


def test_what_the_same_code_has_finished_is_kept(ran, tmp_path, monkeypatch, capsys):
    """And nothing else: another seed, size or code, a crash since, or a file that is missing runs anew."""
    scripts, seen = ran[0], []

    def run_jobs(jobs, out, **_):
        seen.append([job.script.id for job in jobs])
        return iter(()) if "B10" not in seen[-1] else kept(jobs, out)

    kept = run.run_jobs
    both = ["A2", "B10", "--scripts", scripts, "--out", tmp_path]
    assert cli(*both[:1], *both[2:]) == 0
    monkeypatch.setattr(run, "run_jobs", run_jobs)
    assert cli(*both) == 0
    said = capsys.readouterr().out
    assert "Finished before by the same code, kept (--again runs them anew): A2." in said
    assert "A2     REPRODUCED" in said.split("kept")[1]
    assert seen.pop() == ["B10"]
    for changed in (["--again"], ["--seed", "1"], ["--size", "full"]):
        cli("A2", *both[2:], *changed)
        assert seen.pop() == ["A2"], changed
    cli("A2", *both[2:])
    assert seen.pop() == []
    for name in run.FILES[:-1]:
        (tmp_path / "A2" / name).rename(tmp_path / "aside")
        cli("A2", *both[2:])
        assert seen.pop() == ["A2"], name
        (tmp_path / "aside").rename(tmp_path / "A2" / name)
    (tmp_path / "A2" / "crash.txt").write_text("since")
    cli("A2", *both[2:])
    assert seen.pop() == ["A2"]
    (tmp_path / "A2" / "crash.txt").unlink()
    monkeypatch.setattr("experiments.__main__.source", lambda: "other code")
    cli("A2", *both[2:])
    assert seen.pop() == ["A2"]


def test_the_cheapest_claim_runs_first(ran, tmp_path, monkeypatch):
    """A verdict appears soon; what nobody has timed is taken to need a middling time."""
    ledger = {"A2": {"size": "quick", "seconds": 50}, "B10": {"size": "quick", "seconds": 3}}
    (ran[0].parent / "ledger.json").write_text(json.dumps(ledger))
    seen = []
    monkeypatch.setattr(run, "run_jobs", lambda jobs, out, **_: seen.extend(jobs) or iter(()))
    cli("A2", "B10", "C1", "--scripts", ran[0], "--out", tmp_path)
    (ran[0].parent / "ledger.json").unlink()
    assert [job.script.id for job in seen] == ["B10", "C1", "A2"]


def test_what_runs_and_how_long_it_took_is_said_before_anything_ends(ran, tmp_path, monkeypatch):
    """On a stream that shows only what is flushed. A record of this size counts, else what is committed."""
    claims = claims_of.find_scripts(ran[0])
    jobs = [Job(claims[name], "quick", 0) for name in ("A2", "B9", "B10", "C1")]
    for claim, size, seconds in (("A2", "quick", 40.2), ("B9", "full", 1000.0)):
        (tmp_path / claim).mkdir()
        (tmp_path / claim / "record.json").write_text(json.dumps(OLD | {"size": size, "seconds": seconds}))
        (tmp_path / claim / "figure.png").write_bytes(b"old")
    ledger = {
        name: {"size": "quick", "seconds": seconds} for name, seconds in (("A2", 9), ("B9", 30), ("B10", 5))
    }
    told = ledgers.announcement(jobs, ledger, tmp_path, 2)
    assert "Running 4 claims at size quick, 2 at once: A2 (40 s), B9 (30 s), B10 (5 s), C1." in told
    assert "of 3 of them took 75 s in all" in " ".join(told.split())
    assert "about 40 s" in " ".join(told.split())  # no less than the longest
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer))
    seen = []

    def run_jobs(*_, **__):
        seen.append(buffer.getvalue().decode())
        return iter(())

    monkeypatch.setattr(run, "run_jobs", run_jobs)
    cli("A2", "--scripts", ran[0], "--out", tmp_path)
    assert "Running 1 claim at size quick" in seen[0]
    assert "A2 (40 s)" in seen[0]


def test_a_stop_before_anything_ended_shows_no_empty_table(ran, tmp_path, monkeypatch, capsys):
    def run_jobs(*_, **__):
        signal.raise_signal(signal.SIGTERM)
        return iter(())

    monkeypatch.setattr(run, "run_jobs", run_jobs)
    with pytest.raises(Interrupted, match="stopped after 0 of 1 claims; what has finished is kept"):
        cli("A2", "--scripts", ran[0], "--out", tmp_path)
    said = capsys.readouterr().out
    assert said.startswith("Running 1 claim at size quick")
    assert "sentences" not in said
    assert "took" not in said
    assert not (tmp_path / "index.html").exists()


def test_claims_are_listed_in_the_papers_order_without_running(ran, capsys):
    assert cli("--list", "--scripts", ran[0]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{claim:5} {says(claim)}" for claim in ("A2", "B9", "B10", "B11", "C1")]


def test_an_unknown_claim_is_refused_with_the_nearest_name(ran, capsys):
    assert cli("B99", "--scripts", ran[0]) == 2
    assert "did you mean B9?" in capsys.readouterr().err
    claims = claims_of.find_scripts(ran[0])
    assert [claim.id for claim in claims_of.choose(claims, ["b10", "A2", "a2"])] == ["A2", "B10"]


def test_a_letter_means_all_of_its_claims_and_nothing_those_of_the_three_papers(tmp_path):
    for name in ("A1", "A2", "B3", "D4"):
        write_claim(tmp_path, name)
    scripts = claims_of.find_scripts(tmp_path)
    every = ["A1", "A2", "B3", "D4"]
    given = {(): every[:3], ("a",): every[:2], ("D", "A2"): ["A2", "D4"], ("all",): every}
    for names, wanted in given.items():
        assert [script.id for script in claims_of.choose(scripts, names)] == wanted
    with pytest.raises(claims_of.Refusal, match="unknown claim 'E'"):
        claims_of.choose(scripts, ["E"])


@pytest.mark.parametrize("arguments", [["--jobs", "0"], ["--check", "--update-ledger"]])
def test_requests_without_meaning_are_refused(ran, tmp_path, arguments):
    assert cli("--scripts", ran[0], "--out", tmp_path, *arguments) == 2
    assert not list(tmp_path.iterdir())


def test_results_that_cannot_be_written_are_refused_before_anything_runs(ran, tmp_path, capsys):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert cli("A2", "--scripts", ran[0], "--out", out) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith(f"error: {out} cannot be written (")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("text", ['{"claim": "B9", "verdict": "refuted"}', '{"claim": "B', "[]"])
def test_a_record_of_another_version_or_cut_off_is_as_good_as_none(tmp_path, text):
    """It neither stops the report of the others nor is taken for a result."""
    for name, words in {"A2": json.dumps(OLD | {"claim": "A2"}), "B9": text}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json").write_text(words)
    assert run.read_record(tmp_path / "B9") is None
    page = report.write_index(tmp_path).read_text()
    assert 'id="A2"' in page
    assert 'id="B9"' not in page
