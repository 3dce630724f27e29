"""A sweep beyond this process: one share of it, one process of a cluster's job, or jobs that do either."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from grpo_jax.sweeps.lock import PAUSE, Lock, is_held
from grpo_jax.sweeps.storage import prepare_folder

HEARTBEAT = 60
"""Seconds after which ``jax.distributed`` takes a process that says nothing for dead."""
STOPPING = 60.0
"""Seconds that a job which must go may take to finish the part in flight; SLURM's notice is 90."""
NOTICE = 120.0
"""Seconds that a job whose command was told to stop waits for the cluster's notice to queue it again."""
AGAIN = 100
"""Times that a job is queued again which ran out of time: each time it gets further by some parts."""
DEAF = 'trap "" USR1 USR2; exec "$@"'
"""A command of the shell: submitit's signals are for the job around the command that follows."""
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """Which processes work at the sweep, under submitit's names; all of them must see the folder --out."""

    share: str = ""
    """Compute share 3 of 0 to 15: 3/16. The share that ends last assembles the result."""
    distributed: Flag = False
    """Be one process of a job of SLURM, Open MPI, Kubernetes or a TPU pod, as jax.distributed finds it."""
    launch: Literal["slurm", "local"] | None = None
    """Submit jobs to SLURM, or start them here and wait."""
    jobs: int = 1
    """Independent jobs (an array), each with a share; jobs of several tasks share among these instead."""
    nodes: int = 1
    """Nodes of a job."""
    tasks_per_node: int = 1
    """Processes on each node."""
    gpus_per_node: int | None = None
    """GPUs of each node."""
    cpus_per_task: int | None = None
    """Cores of each process."""
    mem_gb: float | None = None
    """Memory of each node."""
    timeout_min: int = 60
    """Minutes until a job is queued again, to go on with its finished parts."""
    slurm_partition: str | None = None
    """SLURM's partition."""
    submitit: tuple[str, ...] = ()
    """Further parameters of submitit: slurm_account=mine slurm_constraint=h100."""


def chosen_share(text: str) -> tuple[int, int] | None:
    """(3, 16) of "3/16", None of ""; ValueError for anything else.

    >>> chosen_share("3/16")
    (3, 16)
    """
    if not text:
        return None
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise ValueError(f"--share is {text!r}; write 3/16 for share 3 of 0 to 15")
    return int(index), int(count)


@contextlib.contextmanager
def joined(out: Path | None) -> Iterator[None]:
    """Be one of the processes that a cluster started together, until the block ends.

    A process that dies does not take the others along: they finish their shares, and notice by its lock. All
    meet at process 0; if that dies, JAX ends the others within seconds, and their finished parts stay. So it
    is the last to leave.

    Args:
      out: the folder of the sweep, where they see each other.

    Raises:
      ValueError: there is no folder, no cluster is to be found, or its processes do not find each other.
    """
    if out is None:
        raise ValueError("--distributed needs --out, a folder that all processes see")
    folder = prepare_folder(out)
    jax.config.update("jax_enable_recoverability", True)
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=HEARTBEAT)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"--distributed: {error} Start one process a task with srun, mpirun or on every host of a TPU "
            "pod, or take --share 3/16 where processes do not know of each other"
        ) from error
    index, count = jax.process_index(), jax.process_count()
    locks = [folder / f".process-{i}-{count}" for i in range(count)]
    here = Lock(locks[index], what=f"process {index} of {folder}")
    try:
        yield
    finally:
        until = time.monotonic() + HEARTBEAT
        while index == 0 and any(map(is_held, locks[1:])) and time.monotonic() < until:
            time.sleep(PAUSE)
        jax.distributed.shutdown()
        here.release()


class Command:
    """What a job runs: a command line, the same again when the cluster takes the node back.

    Args:
      words: the command line.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self._running: subprocess.Popen[bytes] | None = None
        self._end: threading.Thread | None = None

    def __call__(self) -> None:
        """Run it; CalledProcessError where it fails. Its output goes to the job's own."""
        self._running = subprocess.Popen(["sh", "-c", DEAF, "sh", *self.words])
        self._end = threading.Thread(target=self._running.wait)  # whose lock a signal must not find taken
        self._end.start()
        self._end.join()
        code = self._running.returncode
        if code == 128 + signal.SIGTERM:  # the cluster told everyone; what it wants comes next
            time.sleep(NOTICE)
        if code:
            raise subprocess.CalledProcessError(code, self.words)

    def checkpoint(self) -> Any:
        """Submitit's question what to queue again: the part in flight is finished first."""
        from submitit.helpers import DelayedSubmission

        if self._running is not None and self._end is not None:
            self._running.terminate()
            self._end.join(STOPPING)
            self._running.kill()
            self._end.join()
        return DelayedSubmission(Command(self.words))


def launch(cluster: Cluster, words: Sequence[str], out: Path | None) -> list[Any]:
    """Submit the jobs of a sweep, each the same command line with a share of it; gives submitit's jobs.

    Args:
      cluster: how many, where, for how long.
      words: the command line that asked for it; its options of ``Cluster`` are left out.
      out: the folder of the sweep; submitit's scripts and logs go into ``launch`` below it.

    Raises:
      ValueError: there is no folder, or no such parameter, or submitit is not installed.
    """
    if out is None:
        raise ValueError("--launch needs --out, a folder that all jobs see")
    if cluster.share or cluster.distributed:
        raise ValueError("--launch gives every job its share; leave out --share and --distributed")
    tasks = cluster.nodes * cluster.tasks_per_node
    for name in ("jobs", "nodes", "tasks_per_node", "timeout_min"):
        if getattr(cluster, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(cluster, name)}; it must be at least 1")
    if tasks > 1 and (cluster.jobs > 1 or cluster.launch == "local"):
        wrong = "--jobs" if cluster.jobs > 1 else "--launch local"
        raise ValueError(f"a job of {tasks} tasks shares the sweep among these; leave out {wrong}")
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise ValueError(f"--launch needs submitit: pip install 'grpo_jax[slurm]' ({error})") from error
    line = [sys.executable, "-m", "grpo_jax", *kept(words)]
    shares = (
        [["--distributed"]]
        if tasks > 1
        else [["--share", f"{i}/{cluster.jobs}"] for i in range(cluster.jobs)]
    )
    try:
        executor = submitit.AutoExecutor(out / "launch", cluster=cluster.launch, slurm_max_num_timeout=AGAIN)
        executor.update_parameters(name="grpo_jax", **_parameters(cluster))
        with executor.batch():
            return [executor.submit(Command([*line, *share])) for share in shares]
    except (NameError, AssertionError, RuntimeError) as error:
        raise ValueError(f"submitit: {str(error).splitlines()[0]}") from error


def _parameters(cluster: Cluster) -> dict[str, Any]:
    """Submitit's parameters; ValueError for a word that is none."""
    own = ("nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task", "mem_gb", "timeout_min")
    found: dict[str, Any] = {name: getattr(cluster, name) for name in (*own, "slurm_partition")}
    for word in cluster.submitit:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"--submitit {word!r}; write name=value")
        found[name] = int(value) if value.isdecimal() else value
    return {name: value for name, value in found.items() if value is not None}


def wait(jobs: Sequence[Any]) -> None:
    """Wait for jobs that run here; ValueError with what the first one said that failed."""
    failed = [job for job in jobs if job.exception() is not None]
    if failed:
        lines = (failed[0].stderr() or "").strip().splitlines()
        said = [line for line in lines if line.startswith("error: ")][-1:] or lines[-8:]
        raise ValueError(f"{len(failed)} of {len(jobs)} jobs failed; the first said\n" + "\n".join(said))


def kept(words: Sequence[str]) -> list[str]:
    """The words of a command line without the options of ``Cluster`` and their values.

    >>> kept(["sweep", "--launch", "slurm", "--seeds", "4", "--jobs=2", "--out", "x"])
    ['sweep', '--seeds', '4', '--out', 'x']
    """
    names = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Cluster)}
    found, own = [], False
    for word in words:
        if word.startswith("--"):
            own = word.partition("=")[0].replace("_", "-") in names
        if not own:
            found.append(word)
    return found
