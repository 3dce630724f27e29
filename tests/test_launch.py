"""Jobs of a cluster run the command line that asked for them, each a share, and go on when queued again."""

import os
import re
import signal
import sys
import textwrap
import threading
import time
from pathlib import Path

import jax
import pytest
import xarray as xr

import grpo_jax as gj
from grpo_jax.cli import commands, launch
from grpo_jax.cli.launch import Command, chosen_share, joined, kept
from grpo_jax.sweeps.lock import Lock, is_held

try:  # here, for it keeps the stream that is the standard error at that moment
    import submitit as installed
except ImportError:
    installed = None

ROOT = Path(gj.__file__).parents[1]
SMALL = (
    "sweep",
    "--actions",
    "3",
    "--contexts",
    "2",
    "--seeds",
    "5",
    "--iterations",
    "4",
    "--record-every",
    "2",
    "--sweep",
    "kl_coef=0,1",
)


@pytest.fixture(autouse=True)
def jobs_find_the_package(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["grpo_jax", *map(str, words)])
    code = 0
    try:
        commands.main()
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr()


def python(script):
    return [sys.executable, "-c", textwrap.dedent(script)]


@pytest.mark.parametrize("words", ["3", "3/", "/16", "a/b", "-1/2", "1/2/3", "1.0/2"])
def test_a_share_is_two_numbers(words):
    with pytest.raises(ValueError, match=r"--share is .*; write 3/16"):
        chosen_share(words)


def test_options_of_the_launch_are_left_out_with_their_values():
    own = [
        "--jobs",
        "3",
        "--gpus-per-node=2",
        "--submitit",
        "slurm_account=a",
        "slurm_qos=b",
        "--mem_gb",
        "4",
    ]
    words = ["sweep", *own[:2], "--seeds", "4", "--sweep", "kl_coef=-1,1", *own[2:], "--out", "x"]
    assert kept(words) == ["sweep", "--seeds", "4", "--sweep", "kl_coef=-1,1", "--out", "x"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--share", "2/2"), "share is 2 of 2; shares are counted from 0 to 1"),
        (("--share", "0/2"), "out is None; 2 shares need a folder"),
        (("--share", "0/2", "--out", "x", "--distributed"), "--share is for processes that do not know"),
        (("--launch", "slurm"), "--launch needs --out"),
        (("--launch", "slurm", "--out", "x", "--share", "0/2"), "leave out --share and --distributed"),
        (("--launch", "slurm", "--out", "x", "--distributed"), "leave out --share and --distributed"),
        (("--launch", "slurm", "--out", "x", "--jobs", "0"), "--jobs is 0; it must be at least 1"),
        (("--launch", "slurm", "--out", "x", "--timeout-min", "0"), "--timeout-min is 0"),
        (("--launch", "slurm", "--out", "x", "--nodes", "2", "--jobs", "2"), "2 tasks .*leave out --jobs"),
        (("--launch", "local", "--out", "x", "--tasks-per-node", "2"), "leave out --launch local"),
    ],
)
def test_what_cannot_be_launched_is_refused_in_a_line(monkeypatch, capsys, tmp_path, words, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("grpo_jax.sweeps.runner.program_of", None)
    code, printed = run(monkeypatch, capsys, *SMALL, *words)
    assert code == 2
    assert len(printed.err.splitlines()) == 1
    assert re.search(said, printed.err), printed.err
    assert list(tmp_path.iterdir()) == []


def test_without_submitit_the_line_says_how_to_install_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit", None)
    code, printed = run(monkeypatch, capsys, *SMALL, "--launch", "slurm", "--out", tmp_path / "x")
    assert code == 2
    assert "--launch needs submitit: pip install 'grpo_jax[slurm]'" in printed.err


def test_a_share_from_the_command_line(monkeypatch, capsys, tmp_path):
    """A share that is done is no failure, and prints no table; the last one prints it."""
    code, printed = run(monkeypatch, capsys, *SMALL, "--out", tmp_path, "--share", "1/2")
    assert (code, printed.out) == (0, "")
    assert "share 1/2 is done; parts still missing: 1, of share 0" in printed.err
    code, printed = run(monkeypatch, capsys, *SMALL, "--out", tmp_path, "--share", "0/2")
    assert code == 0
    assert len(printed.out.strip().splitlines()) == 4


def test_a_process_that_is_not_first_keeps_silent(monkeypatch, capsys, tmp_path):
    run(monkeypatch, capsys, *SMALL, "--out", tmp_path, "--share", "0/1")
    monkeypatch.setattr(commands.jax, "process_index", lambda: 1)
    assert run(monkeypatch, capsys, *SMALL, "--out", tmp_path, "--share", "0/1")[1].out == ""


@pytest.fixture
def cluster(monkeypatch):
    """What JAX is asked for where its processes are three and this one is process 0."""
    asked = {}
    monkeypatch.setattr(jax.config, "update", lambda name, value: asked.update({name: value}))
    monkeypatch.setattr(jax.distributed, "initialize", lambda **limits: asked.update(limits))
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: asked.update(shutdown=time.monotonic()))
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    return asked


def test_joining_is_bounded_and_a_death_takes_nobody_along(tmp_path, cluster):
    with joined(tmp_path):
        assert cluster["jax_enable_recoverability"] is True
        assert is_held(tmp_path / ".process-0-3")
        assert "shutdown" not in cluster
    assert 0 < cluster["heartbeat_timeout_seconds"] <= 60
    assert 0 < cluster["shutdown_timeout_seconds"] <= 60
    assert "shutdown" in cluster
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [0, 2])
def test_process_0_leaves_last(tmp_path, cluster, monkeypatch, number):
    monkeypatch.setattr(jax, "process_index", lambda: number)
    other = Lock(tmp_path / ".process-1-3")
    let_go = threading.Timer(0.5, other.release)
    with joined(tmp_path):
        let_go.start()
        began = time.monotonic()
    assert (cluster["shutdown"] - began >= 0.4) == (number == 0)
    let_go.join()


def test_a_process_that_hangs_is_not_waited_for_for_ever(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(launch, "HEARTBEAT", 0.2)
    other = Lock(tmp_path / ".process-1-3")
    with joined(tmp_path):
        pass
    assert "shutdown" in cluster
    other.release()


def test_no_cluster_is_said_in_a_line(monkeypatch, tmp_path, cluster):
    def fail(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    sentence = r"--distributed: coordinator_address .* srun, mpirun .*--share 3/16"
    with pytest.raises(ValueError, match=sentence), joined(tmp_path):
        pass
    with pytest.raises(ValueError, match="--distributed needs --out"), joined(None):
        pass


# Jobs


@pytest.fixture
def submitit():
    if installed is None:
        pytest.skip("the extra slurm is not installed")
    return installed


@pytest.mark.slow
def test_a_job_that_is_queued_again_runs_the_same_line_after_it_was_stopped_in_order(submitit, tmp_path):
    """The first run is stopped by SIGTERM, as a sweep is, and takes a while; the second finds its note."""
    line = python(f"""
        import os, pathlib, signal, sys, time
        note = pathlib.Path({str(tmp_path / "note")!r})
        def stop(number, frame):
            time.sleep(0.5)
            note.write_text("part")
            sys.exit(143)
        signal.signal(signal.SIGTERM, stop)
        if note.exists():
            note.write_text(note.read_text() + " and part")
            sys.exit(0)
        note.with_name("job").write_text(str(os.getppid()))
        time.sleep(60)
    """)
    executor = submitit.LocalExecutor(tmp_path / "jobs")
    executor.update_parameters(timeout_min=5)
    job = executor.submit(Command(line))
    until(lambda: (tmp_path / "job").exists() and (tmp_path / "job").read_text())
    os.kill(int((tmp_path / "job").read_text()), signal.SIGUSR2)
    assert job.result() is None
    assert (tmp_path / "note").read_text() == "part and part"


def until(happened):
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_command_that_does_not_stop_is_killed(monkeypatch, submitit, tmp_path):
    monkeypatch.setattr(launch, "STOPPING", 0.1)
    deaf = f"""
        import pathlib, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pathlib.Path({str(tmp_path / "deaf")!r}).touch()
        time.sleep(60)
    """
    command = Command(python(deaf))
    running = threading.Thread(target=pytest.raises, args=(launch.subprocess.CalledProcessError, command))
    running.start()
    until((tmp_path / "deaf").exists)
    again = command.checkpoint()
    running.join()
    assert command._running.returncode == -signal.SIGKILL
    assert again.function.words == command.words
    assert again.function._running is None


def test_a_command_that_fails_is_a_job_that_failed(monkeypatch):
    with pytest.raises(launch.subprocess.CalledProcessError, match="exit status 3"):
        Command(python("raise SystemExit(3)"))()
    waited = []
    monkeypatch.setattr(launch.time, "sleep", waited.append)
    with pytest.raises(launch.subprocess.CalledProcessError, match="exit status 143"):
        Command(python("raise SystemExit(143)"))()
    assert waited == [launch.NOTICE]


def test_submitits_signals_do_not_reach_the_command():
    Command(python("import os; os.kill(os.getpid(), 10); os.kill(os.getpid(), 12)"))()


@pytest.fixture
def slurm(tmp_path, monkeypatch, submitit):
    """As much of SLURM as accepts a job: sbatch that names it 77; gives the scripts that were handed in."""
    tools, handed = tmp_path / "bin", tmp_path / "handed"
    tools.mkdir()
    handed.mkdir()
    for name, script in (("sbatch", f'cp "$1" {handed}/\necho "Submitted batch job 77"'), ("srun", "exit 1")):
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return lambda: [path.read_text() for path in handed.iterdir()]


def commands_of(folder):
    """The command lines that submitit's jobs unpack."""
    from submitit.core.utils import DelayedSubmission

    return sorted(DelayedSubmission.load(path).function.words[3:] for path in folder.glob("*_submitted.pkl"))


def test_an_array_of_shares_is_handed_to_slurm(monkeypatch, capsys, tmp_path, slurm):
    out = tmp_path / "x"
    words = (
        "--launch",
        "slurm",
        "--jobs",
        "3",
        "--cpus-per-task",
        "4",
        "--timeout-min",
        "90",
        "--mem-gb",
        "2",
    )
    more = ("--slurm-partition", "big", "--submitit", "slurm_account=mine", "slurm_array_parallelism=2")
    code, printed = run(monkeypatch, capsys, *SMALL, *words, "--out", out, *more)
    assert code == 0, printed.err
    assert "jobs 77_0, 77_1, 77_2; logs in" in printed.err
    assert commands_of(out / "launch") == [[*SMALL, "--out", str(out), "--share", f"{i}/3"] for i in range(3)]
    (script,) = slurm()
    options = dict(re.findall(r"#SBATCH --([\w-]+)=(.*)", script))
    assert options["array"] == "0-2%2"
    wanted = {"cpus-per-task": "4", "time": "90", "partition": "big", "account": "mine", "nodes": "1"}
    assert {name: options[name] for name in wanted} == wanted
    assert options["mem"] in ("2GB", "2048MB", "2.0GB")
    assert options["signal"].startswith("USR2@")


def test_a_job_of_several_nodes_is_one_of_jax_distributed(monkeypatch, capsys, tmp_path, slurm):
    out = tmp_path / "x"
    words = ("--launch", "slurm", "--nodes", "2", "--tasks-per-node", "4", "--gpus-per-node", "4")
    code, printed = run(monkeypatch, capsys, *SMALL, *words, "--out", out)
    assert code == 0, printed.err
    assert commands_of(out / "launch") == [[*SMALL, "--out", str(out), "--distributed"]]
    (script,) = slurm()
    options = dict(re.findall(r"#SBATCH --([\w-]+)=(.*)", script))
    wanted = {"nodes": "2", "ntasks-per-node": "4", "gpus-per-node": "4"}
    assert {name: options[name] for name in wanted} == wanted
    assert "array" not in options


def test_a_parameter_that_submitit_does_not_know_is_refused(monkeypatch, capsys, tmp_path, slurm):
    for word, said in (
        ("partition", "write name=value"),
        ("slurm_partitoin=a", "'slurm_partitoin'. Valid arguments: "),
    ):
        words = ("--launch", "slurm", "--out", tmp_path / "x", "--submitit", word)
        code, printed = run(monkeypatch, capsys, *SMALL, *words)
        assert (code, slurm()) == (2, [])
        assert said in printed.err


@pytest.mark.slow
def test_jobs_on_this_machine_make_the_sweep_of_one_process(monkeypatch, capsys, tmp_path, submitit):
    words = ("--launch", "local", "--jobs", "2", "--out", tmp_path / "jobs")
    code, printed = run(monkeypatch, capsys, *SMALL, *words)
    assert code == 0, printed.err
    code, alone = run(monkeypatch, capsys, *SMALL, "--out", tmp_path / "alone")
    assert printed.out == alone.out
    xr.testing.assert_equal(gj.load(tmp_path / "jobs"), gj.load(tmp_path / "alone"))
    own = [[*SMALL, "--out", str(tmp_path / "jobs"), "--share", f"{i}/2"] for i in range(2)]
    assert commands_of(tmp_path / "jobs" / "launch") == own


@pytest.mark.slow
def test_a_job_that_fails_is_told_with_its_last_words(monkeypatch, capsys, tmp_path, submitit):
    gj.sweep(
        gj.Config(
            policy=gj.ActionPolicy.uniform(contexts=1, actions=2), task=gj.Questions(table=[[1.0, 0.0]])
        ),
        iterations=1,
        out=tmp_path,
        progress=False,
    )
    words = ("--launch", "local", "--out", tmp_path)
    code, printed = run(monkeypatch, capsys, *SMALL, *words)
    assert code == 2
    assert "1 of 1 jobs failed; the first said" in printed.err
    assert "another sweep (different:" in printed.err
