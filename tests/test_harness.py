"""The harness runs claims apart from each other, publishes whole results, and never hides a crash."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import tyro
import xarray as xr

from experiments import harness, record, report
from experiments.__main__ import main
from experiments.harness import Job, Outcome, Refusal

SCRIPT = '''"""{title}.

Claim {claim}. Refuted if the mean leaves its margin.
"""

import jax
import numpy as np
import xarray as xr

from experiments.verdict import Number, judge, mean

CLAIM = "{claim}"
PAPER = "{paper}"
PRECISION = "{precision}"


def simulate(key, size):
    return xr.Dataset({{"x": ("run", np.asarray(jax.random.uniform(key, (16,))))}})


def check(data):
    {check}
    numbers = {{"mean": mean(data.x, expected=0.5, tolerance={tolerance}), "lost": Number(float("nan"))}}
    return judge(numbers, refutes=["mean"])


def draw(figure, data):
    figure.add_subplot().plot(data.x)
'''


def write_claim(
    folder: Path, claim: str, *, check="pass", tolerance=0.5, precision="float32", paper="A"
) -> None:
    text = SCRIPT.format(
        title=f"Title of {claim}",
        claim=claim,
        check=check,
        tolerance=tolerance,
        precision=precision,
        paper=paper,
    )
    (folder / f"{claim[0].lower()}{int(claim[1:]):02d}_noun.py").write_text(text)


def cli(*arguments: object) -> int:
    return tyro.cli(main, args=[str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Five claims run once: two that end well, two that raise, one of them within JAX, one that is killed."""
    scripts, out = tmp_path_factory.mktemp("scripts"), tmp_path_factory.mktemp("out")
    write_claim(scripts, "A2", precision="float64")
    write_claim(scripts, "B10", tolerance=1e-6, paper="B")
    write_claim(scripts, "B9", check="raise ValueError('<no & luck>')")
    write_claim(scripts, "B11", check="jax.jit(lambda x: x + np.ones(3))(np.ones(2))")
    write_claim(scripts, "C1", check="import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    (out / "B9").mkdir()
    (out / "B9" / "record.json").write_text(json.dumps(OLD))
    (out / "B9" / "figure.png").write_bytes(b"old")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        status = cli("--scripts", scripts, "--out", out, "--seed", "3")
    return scripts, out, status, said.getvalue()


OLD = {
    "claim": "B9", "title": "Old", "paper": "B", "verdict": "refuted", "because": "It was so.", "numbers": {},
    "size": "full", "seed": 7, "seconds": 1.0, "device": "1 x cpu", "versions": {}, "commit": None,
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
    table = said[said.index("claim  verdict") :]
    assert "internal frames" not in table
    assert "internal frames" in (out / "B11" / "crash.txt").read_text()


def read(out: Path, claim: str) -> dict:
    return json.loads((out / claim / "record.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)


def test_a_run_publishes_data_figure_and_record(ran):
    _, out, *_ = ran
    found = read(out, "A2")
    assert list(found)[:3] == ["claim", "title", "paper"]
    assert set(found) == set(OLD)
    assert found["title"] == "Title of A2"
    assert found["verdict"] == "reproduced"
    assert found["size"] == "quick"
    assert found["seed"] == 3
    assert found["paper"].endswith("arXiv:2502.18548")
    assert found["versions"].keys() >= {"python", "jax", "numpy", "xarray"}
    assert found["numbers"]["lost"] == {"value": None}
    data = xr.load_dataset(out / "A2" / "data.nc", engine="h5netcdf")
    assert found["numbers"]["mean"]["value"] == float(data.x.mean())
    assert found["numbers"]["mean"]["low"] < float(data.x.mean()) < found["numbers"]["mean"]["high"]
    assert (out / "A2" / "figure.png").read_bytes().startswith(b"\x89PNG")


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
    assert read(out, "B10")["verdict"] == "not testable here"
    raised, killed = ((out / claim / "crash.txt").read_text() for claim in ("B9", "C1"))
    assert "Traceback" in raised
    assert "ValueError: <no & luck>" in raised
    assert "signal 9" in killed
    assert read(out, "B9") == OLD
    assert not list(out.glob("*/.*"))
    page = (out / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 3  # A2, B10 and the old figure of B9
    assert "&lt;no &amp; luck&gt;" in page
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

    texts = ("title", "paper", "verdict", "because", "size", "seed", "seconds", "device", "commit")
    found = {key: mark(key) for key in texts}
    found["versions"] = {mark("package"): mark("version")}
    number = {key: mark(key) for key in ("value", "expected", "low", "high", "tolerance", "relation")}
    found["numbers"] = {mark("number"): number | {"holds": True}}
    folder = tmp_path / mark("folder")
    folder.mkdir()
    (folder / "record.json").write_text(json.dumps(found))
    (folder / "figure.png").write_bytes(b"picture")
    (folder / "crash.txt").write_text(mark("crash"))
    (tmp_path / mark("empty")).mkdir()
    (tmp_path / mark("empty") / "crash.txt").write_text(mark("crash"))
    page = Elements()
    page.feed(report.write_index(tmp_path).read_text())
    assert not [name for name in page.names if name.startswith("evil")]
    said = "\n".join(page.texts)
    shown = [*texts, "package", "version", "number", "value", "expected", "low", "high", "tolerance"]
    for where in (*shown, "relation", "folder", "empty", "crash"):
        assert mark(where) in said, where


def test_a_smoke_run_never_replaces_a_real_one(ran, capsys):
    scripts, out, *_ = ran
    before = (out / "A2" / "record.json").read_bytes()
    assert cli("A2", "--scripts", scripts, "--out", out, "--size", "smoke") == 2
    assert "quick run of A2" in capsys.readouterr().err
    assert (out / "A2" / "record.json").read_bytes() == before


def test_the_ledger_is_written_and_checked_at_its_own_size_and_seed(ran, tmp_path, capsys):
    scripts, *_ = ran
    both = ["A2", "B9", "--scripts", scripts, "--out", tmp_path]
    assert cli(*both, "--seed", "5", "--update-ledger") == 1  # B9 crashes
    path = scripts / "ledger.json"
    ledger = json.loads(path.read_text(encoding="utf-8"))
    assert ledger.keys() == {"A2"}
    assert ledger["A2"]["seed"] == 5
    assert cli("A2", "--scripts", scripts, "--out", tmp_path, "--check") == 0
    assert read(tmp_path, "A2")["seed"] == 5
    ledger["A2"]["verdict"] = "refuted"
    path.write_text(json.dumps(ledger))
    assert cli("A2", "--scripts", scripts, "--out", tmp_path, "--check") == 1
    assert "A2: committed refuted, now reproduced" in capsys.readouterr().out
    path.unlink()


def test_smoke_verdicts_are_committed_and_checked_apart(ran, tmp_path, capsys):
    """One claim decides at smoke size and one does not; a change of either is found."""
    scripts = tmp_path / "experiments"
    shutil.copytree(ran[0], scripts)
    (tmp_path / "README.md").write_text("<!-- ledger -->\n<!-- /ledger -->")
    both = ["A2", "B10", "--scripts", scripts, "--size", "smoke", "--out", tmp_path / "out"]
    assert cli(*both, "--check") == 2
    assert "committed at size smoke" in capsys.readouterr().err
    assert cli(*both, "--seed", "4", "--update-ledger") == 0
    assert not (scripts / "ledger.json").exists()
    assert "A2" not in (tmp_path / "README.md").read_text()
    path = scripts / "ledger_smoke.json"
    smoke = json.loads(path.read_text(encoding="utf-8"))
    assert {claim: entry["verdict"] for claim, entry in smoke.items()} == {
        "A2": "reproduced",
        "B10": "not testable at smoke size",
    }
    assert all(entry["seed"] == 4 and entry["size"] == "smoke" for entry in smoke.values())
    (scripts / "ledger.json").write_text(json.dumps({"A2": {"verdict": "refuted", "size": "quick"}}))
    capsys.readouterr()
    assert cli(*both, "--check") == 0
    assert "The verdicts are those of ledger_smoke.json." in capsys.readouterr().out
    smoke["A2"]["verdict"], smoke["B10"]["verdict"] = "refuted", "reproduced"
    path.write_text(json.dumps(smoke))
    assert cli(*both, "--check") == 1
    said = capsys.readouterr().out
    assert "A2: committed refuted, now reproduced" in said
    assert "B10: committed reproduced, now not testable at smoke size" in said


def test_every_claim_s_smoke_verdict_is_committed_and_ci_compares_with_it():
    smoke = report.read_ledger(report.ledger_path(harness.SCRIPTS, "smoke"))
    assert list(smoke) == list(harness.find_claims())
    assert {entry["size"] for entry in smoke.values()} == {"smoke"}
    known = {"reproduced", "qualified", "refuted", "not testable at smoke size"}
    assert {entry["verdict"] for entry in smoke.values()} <= known
    commands = (harness.SCRIPTS.parent / ".ci" / "run").read_text().splitlines()
    (line,) = (line for line in commands if "-m experiments" in line)
    assert "--size smoke" in line
    assert "--check" in line


def test_differences_name_what_is_new_and_what_crashed(ran):
    claims = harness.find_claims(ran[0])
    good = Outcome(Job(claims["A2"], "quick", 0), {"verdict": "reproduced"}, None)
    bad = Outcome(Job(claims["B9"], "quick", 0), None, "trace")
    ledger = {"B9": {"verdict": "refuted", "size": "quick"}}
    found = report.differences(ledger, [good, bad])
    assert found == [
        "A2: committed nothing at size quick, now reproduced",
        "B9: committed refuted, now crashed",
    ]
    ledger["A2"] = {"verdict": "reproduced", "size": "full"}
    assert report.differences(ledger, [good]) == found[:1]
    ledger["A2"]["size"] = "quick"
    assert report.differences(ledger, [good]) == []


def test_what_runs_and_how_long_it_took_is_said_before_anything_ends(ran, tmp_path, monkeypatch):
    """On a stream that shows only what is flushed. A record of this size counts, else what is committed."""
    claims = harness.find_claims(ran[0])
    jobs = [Job(claims[name], "quick", 0) for name in ("A2", "B9", "B10", "C1")]
    for claim, size, seconds in (("A2", "quick", 40.2), ("B9", "full", 1000.0)):
        (tmp_path / claim).mkdir()
        (tmp_path / claim / "record.json").write_text(json.dumps(OLD | {"size": size, "seconds": seconds}))
        (tmp_path / claim / "figure.png").write_bytes(b"old")
    ledger = {
        name: {"size": "quick", "seconds": seconds} for name, seconds in (("A2", 9), ("B9", 30), ("B10", 5))
    }
    told = report.announcement(jobs, ledger, tmp_path, 2)
    assert "Running 4 claims at size quick, 2 at once: A2 (40 s), B9 (30 s), B10 (5 s), C1." in told
    assert "of 3 of them took 75 s in all" in " ".join(told.split())
    assert "about 40 s" in " ".join(told.split())  # no less than the longest
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer))
    seen = []

    def run_jobs(*_, **__):
        seen.append(buffer.getvalue().decode())
        return iter(())

    monkeypatch.setattr(harness, "run_jobs", run_jobs)
    cli("A2", "--scripts", ran[0], "--out", tmp_path)
    assert "Running 1 claim at size quick" in seen[0]
    assert "A2 (40 s)" in seen[0]


@pytest.mark.parametrize("arguments", [["--list"], ["--help"]], ids=" ".join)
def test_a_reader_that_leaves_early_ends_the_command_without_a_traceback(arguments):
    """As `head` does, but before anything is written, so that no race decides."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "experiments", *arguments]
    done = subprocess.run(
        command, cwd=harness.SCRIPTS.parent, stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 141


def test_claims_are_listed_in_the_papers_order_without_running(ran, capsys):
    assert cli("--list", "--scripts", ran[0]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{claim:5} Title of {claim}" for claim in ("A2", "B9", "B10", "B11", "C1")]


def test_an_unknown_claim_is_refused_with_the_nearest_name(ran, capsys):
    assert cli("B99", "--scripts", ran[0]) == 2
    assert "did you mean B9?" in capsys.readouterr().err
    claims = harness.find_claims(ran[0])
    assert [claim.id for claim in harness.choose(claims, ["b10", "A2", "a2"])] == ["A2", "B10"]


@pytest.mark.parametrize("arguments", [["--jobs", "0"], ["--check", "--update-ledger"]])
def test_requests_without_meaning_are_refused(ran, tmp_path, arguments):
    assert cli("--scripts", ran[0], "--out", tmp_path, *arguments) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('CLAIM = "A2"', "", "has no CLAIM"),
        ('PAPER = "A"', "", "has no PAPER"),
        (SCRIPT[: SCRIPT.index("import")].format(title="Title of A2", claim="A2"), "", "has no title"),
        ('"float32"', '"float16"', "PRECISION"),
    ],
)
def test_a_script_that_does_not_say_what_it_is_is_refused(tmp_path, old, new, words):
    write_claim(tmp_path, "A2")
    path = tmp_path / "a02_noun.py"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(Refusal, match=words):
        harness.find_claims(tmp_path)


def test_two_scripts_may_not_be_one_claim(tmp_path):
    write_claim(tmp_path, "A2")
    (tmp_path / "a02_again.py").write_text((tmp_path / "a02_noun.py").read_text())
    with pytest.raises(Refusal, match="both say"):
        harness.find_claims(tmp_path)


def test_the_commit_is_that_of_a_checkout_alone(tmp_path):
    assert record.commit(tmp_path) is None
    identity = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    (tmp_path / "file").write_text("one")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, env=os.environ | identity)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert record.commit(tmp_path) == head.stdout.strip()
    (tmp_path / "file").write_text("two")
    assert record.commit(tmp_path) == f"{head.stdout.strip()}-dirty"
    inner = tmp_path / "unpacked"
    inner.mkdir()
    assert record.commit(inner) is None
