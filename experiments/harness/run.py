"""Run claims apart from each other, publish whole results, keep what has been finished."""

from __future__ import annotations

import functools
import gc
import io
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.harness.scripts import Refusal, Script, Size

COMPILER = "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
"""Claims are many short programs: XLA's older emitters compile them sooner, they run as fast, and results
differ by rounding at most. A compiler that has these emitters no more reads past it."""
FILES = ("data.nc", "figure.png", "figure.svg", "record.json")
"""Published in this order: the record vouches for the others."""


@dataclass(frozen=True)
class Job:
    """A claim to run, its size and its seed."""

    script: Script
    size: Size
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What became of a job: its record, or else all that was said as it crashed, and in short why."""

    job: Job
    record: dict[str, Any] | None
    crash: str | None
    reason: str = ""


RECORDED = {"claim", "about", "paper", "size", "seed", "rows", "seconds", "device", "versions", "commit"}
"""What a record tells at least."""
ROW = {"id", "says", "verdict", "found", "because", "numbers"}
"""What each of its rows tells."""


def refuse_to_overwrite(jobs: Sequence[Job], out: Path) -> None:
    """A smoke run never replaces a real one: raise `Refusal` before anything runs."""
    for job in jobs:
        found = read_record(out / job.script.id)
        if job.size == "smoke" and found is not None and found["size"] != "smoke":
            size = found["size"]
            raise Refusal(f"{out} holds a {size} run of {job.script.id}; a smoke run needs another --out")


def refuse_unwritable(out: Path) -> None:
    """Make the folder of the results; raise `Refusal` where there can be none, or nothing goes into it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".partial-"):
            pass
    except OSError as error:
        raise Refusal(f"{out} cannot be written ({error.strerror}); give another --out") from None


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a claim's last run, if there is one that can be read: whole, and of this version."""
    try:
        found = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    return found if _is_record(found) else None


def _is_record(found: Any) -> bool:
    """Whether it tells what a record tells, in the form in which that is read."""
    if not isinstance(found, dict) or not found.keys() >= RECORDED:
        return False
    rows = found["rows"] if isinstance(found["rows"], list) else [None]
    plain = isinstance(found["about"], str) and isinstance(found["versions"], dict)
    return plain and all(isinstance(row, dict) and row.keys() >= ROW and _is_row(row) for row in rows)


def _is_row(row: dict[str, Any]) -> bool:
    numbers = row["numbers"].values() if isinstance(row["numbers"], dict) else [None]
    return isinstance(row["says"], str) and all(isinstance(number, dict) for number in numbers)


def finished(job: Job, out: Path, source: str) -> dict[str, Any] | None:
    """The record in `out` if this very job has been run there by the same code and versions."""
    folder = out / job.script.id
    found = read_record(folder)
    if found is None or (folder / "crash.txt").exists() or not all((folder / f).exists() for f in FILES):
        return None
    same = (found["size"], found["seed"], found.get("source")) == (job.size, job.seed, source)
    return found if same else None


def run_jobs(
    jobs: Sequence[Job], out: Path, *, at_once: int = 2, stop: Callable[[], bool] = lambda: False
) -> Iterator[Outcome]:
    """Run jobs in processes of their own, so many at once; yields each outcome as it comes.

    Once `stop()` is true none begins any more; those that run are finished, unless the caller leaves at once.
    """
    pool, running = ThreadPoolExecutor(at_once), set[Any]()
    try:
        for future in as_completed([pool.submit(run_job, job, out, running, stop) for job in jobs]):
            if outcome := future.result():
                yield outcome
    finally:
        left = list(running)
        running.clear()
        for child in left:
            child.kill()
        pool.shutdown(cancel_futures=True)


def run_job(job: Job, out: Path, running: set[Any], stop: Callable[[], bool]) -> Outcome | None:
    """Run one job and publish its files in `out/<claim>`; a crash only adds `crash.txt`.

    Nothing is published, and there is no outcome, where the job was not begun or not finished because of a
    signal: `stop()`, or its process is no longer among those `running`.
    """
    if stop():
        return None
    script, folder = job.script, out / job.script.id
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as aside:
        said = Path(aside) / "said.txt"
        child = _processes().Process(target=_enter, args=(_job(job, aside), said, dict(os.environ)))
        child.start()
        running.add(child)
        child.join()
        ended = child not in running
        running.discard(child)
        if code := child.exitcode or 0:
            if ended or stop():
                return None
            short, text = (_read(Path(aside) / "reason.txt"), _read(said))
            short = short or (f"ended by signal {-code}" if code < 0 else f"ended with status {code}")
            crash = f"{script.id} at size {job.size}, seed {job.seed}\n{short}\n\n{text}\n"
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
    context.set_forkserver_preload(["experiments.__main__", "experiments.harness.record", "scipy.special"])
    return context


def _enter(job: dict[str, Any], said: Path, environment: dict[str, str]) -> None:
    """One claim in this process: a GPU shared rather than seized, and all that is printed in a file.

    Ctrl-C reaches every process of a terminal; what becomes of this one is the first one's to say.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    os.environ.update({"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | environment)
    os.environ["XLA_FLAGS"] = f"{COMPILER} {environment.get('XLA_FLAGS', '')}".strip()
    tqdm.set_lock(threading.RLock())  # its own is shared among processes, and one that is killed leaves it
    gc.freeze()  # modules stay
    gc.set_threshold(100_000, 50, 100)  # tracing makes many objects that live on, hardly any in cycles
    with said.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    from experiments.harness.record import run_claim

    try:
        run_claim(job)
    except Exception as error:
        short = reason(error, Path(job["script"]))
        (Path(job["folder"]) / "reason.txt").write_text(short, encoding="utf-8", errors="replace")
        raise


def _end_with(parent: Any) -> None:
    """A claim whose results nobody would publish does not go on."""
    parent.join()
    os._exit(1)


def _job(job: Job, folder: str) -> dict[str, Any]:
    script = job.script
    about = {"claim": script.id, "says": script.says, "about": script.about, "paper": script.paper}
    place = {"script": str(script.path), "folder": str(Path(folder).resolve())}
    return about | place | {"precision": script.precision, "size": job.size, "seed": job.seed}


def replace_text(path: Path, text: str) -> None:
    """Write a text aside and put it in place at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
