"""Find the claims, run each in a process of its own, and publish what came out.

A claim is a script `<letter><number>_<noun>.py` in the scripts' folder: its docstring starts with the title
and says what would refute it, and it names `CLAIM`, `PAPER` and, if it wants double precision, `PRECISION`.
"""

import ast
import difflib
import functools
import io
import json
import multiprocessing
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Size = Literal["smoke", "quick", "full"]

SCRIPTS = Path(__file__).resolve().parent
PAPERS = {
    "A": "Vojnovic & Yun, What is the Alignment Objective of GRPO?, arXiv:2502.18548",
    "B": "Fontana et al., On the Hidden Objective Biases of Group-based Reinforcement Learning, "
    "arXiv:2601.05002",
    "C": "Pang, Luo & Jin, TIC-GRPO, arXiv:2508.02833",
}
FILES = ("data.nc", "figure.png", "record.json")  # published in this order: the record vouches for the others


class Refusal(ValueError):
    """A request that has no meaning, found before anything runs."""


@dataclass(frozen=True)
class Claim:
    """A script and what it says about itself."""

    id: str
    title: str
    about: str
    paper: str
    precision: str
    script: Path


@dataclass(frozen=True)
class Job:
    """A claim to run, its size and its seed."""

    claim: Claim
    size: Size
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What became of a job: its record, or else all that was said as it crashed, and in short why."""

    job: Job
    record: dict[str, Any] | None
    crash: str | None
    reason: str = ""


def claim_order(claim: str) -> tuple[str, int, str]:
    """Sorts A2 before A10.

    >>> sorted(["B1", "A10", "A2"], key=claim_order)
    ['A2', 'A10', 'B1']
    """
    number = re.search(r"\d+", claim)
    return claim[:1], int(number.group()) if number else -1, claim


def find_claims(scripts: Path = SCRIPTS) -> dict[str, Claim]:
    """Every claim in a folder by its id, in order; scripts are read, not imported."""
    claims: dict[str, Claim] = {}
    for path in sorted(scripts.glob("[a-z][0-9]*_*.py")):
        claim = read_claim(path)
        if claim.id in claims:
            raise Refusal(f"{path.name} and {claims[claim.id].script.name} both say that they are {claim.id}")
        claims[claim.id] = claim
    return dict(sorted(claims.items(), key=lambda item: claim_order(item[0])))


def read_claim(path: Path) -> Claim:
    """Read a script's docstring and constants from its source."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    constants = {
        target.id: str(node.value.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    title, _, about = (ast.get_docstring(tree) or "").partition("\n")
    for name, value in (
        ("CLAIM", constants.get("CLAIM")),
        ("PAPER", constants.get("PAPER")),
        ("title", title),
    ):
        if not value:
            raise Refusal(f"{path.name} has no {name}")
    precision = constants.get("PRECISION", "float32")
    if precision not in ("float32", "float64"):
        raise Refusal(f"{path.name}: PRECISION is float32 or float64; got {precision!r}")
    paper = PAPERS.get(constants["PAPER"], constants["PAPER"])
    return Claim(
        constants["CLAIM"], title.strip().rstrip("."), about.strip(), paper, precision, path.resolve()
    )


def choose(claims: dict[str, Claim], names: Sequence[str]) -> list[Claim]:
    """The claims of these names, upper or lower case, in order and once each; all of them without names."""
    known = {name.upper(): claim for name, claim in claims.items()}
    for name in names:
        if name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.0)
            hint = f"did you mean {near[0]}?" if near else "there are none here"
            raise Refusal(f"unknown claim {name!r}: {hint} The claims are: {', '.join(claims)}")
    wanted = {name.upper() for name in names} or set(known)
    return [claim for name, claim in known.items() if name in wanted]


def refuse_to_overwrite(jobs: Sequence[Job], out: Path) -> None:
    """A smoke run never replaces a real one: raise `Refusal` before anything runs."""
    for job in jobs:
        path = out / job.claim.id / "record.json"
        if (
            job.size == "smoke"
            and path.exists()
            and (size := json.loads(path.read_text(encoding="utf-8"))["size"]) != "smoke"
        ):
            raise Refusal(f"{out} holds a {size} run of {job.claim.id}; a smoke run needs another --out")


def run_jobs(jobs: Sequence[Job], out: Path, *, at_once: int = 2) -> Iterator[Outcome]:
    """Run jobs in processes of their own, so many at once; yields each outcome as it comes."""
    pool = ThreadPoolExecutor(at_once)
    try:
        for future in as_completed([pool.submit(run_job, job, out) for job in jobs]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def run_job(job: Job, out: Path) -> Outcome:
    """Run one job and publish its files in `out/<claim>`; a crash only adds `crash.txt`."""
    folder = out / job.claim.id
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as aside:
        said = Path(aside) / "said.txt"
        child = _processes().Process(target=_enter, args=(_job(job, aside), said, dict(os.environ)))
        child.start()
        child.join()
        if code := child.exitcode or 0:
            short, text = (_read(Path(aside) / "reason.txt"), _read(said))
            short = short or (f"ended by signal {-code}" if code < 0 else f"ended with status {code}")
            crash = f"{job.claim.id} at size {job.size}, seed {job.seed}\n{short}\n\n{text}\n"
            replace_text(folder / "crash.txt", crash)
            return Outcome(job, None, crash, short)
        record = json.loads((Path(aside) / "record.json").read_text(encoding="utf-8"))
        for name in FILES:
            (Path(aside) / name).replace(folder / name)
    (folder / "crash.txt").unlink(missing_ok=True)
    return Outcome(job, record, None)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.exists() else ""


def reason(error: BaseException, script: Path) -> str:
    """What an exception itself says, and the line of the script that it came through last.

    Notes that others add to an exception, such as JAX's on its internal frames, are no part of the reason.
    """
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == script]
    place = f" ({script.name}, line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{place}"


@functools.cache
def _processes() -> Any:
    """Where processes come from: copies of one that has imported what every claim imports, or fresh ones."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.__main__", "experiments.record", "scipy.special"])
    return context


def _enter(job: dict[str, Any], said: Path, environment: dict[str, str]) -> None:
    """One claim in this process: a GPU shared rather than seized, and all that is printed in a file."""
    os.environ.update({"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | environment)
    with said.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    from experiments.record import run_claim

    try:
        run_claim(job)
    except Exception as error:
        short = reason(error, Path(job["script"]))
        (Path(job["folder"]) / "reason.txt").write_text(short, encoding="utf-8", errors="replace")
        raise


def _job(job: Job, folder: str) -> dict[str, Any]:
    claim = job.claim
    about = {"claim": claim.id, "title": claim.title, "paper": claim.paper, "precision": claim.precision}
    place = {"script": str(claim.script), "folder": str(Path(folder).resolve())}
    return about | place | {"size": job.size, "seed": job.seed}


def replace_text(path: Path, text: str) -> None:
    """Write a text aside and put it in place at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
