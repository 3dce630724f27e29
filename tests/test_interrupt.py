"""SIGINT and SIGTERM let the part in flight finish and say how to go on; a second one acts at once."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from grpo_jax.cli import commands
from grpo_jax.sweeps import interrupt
from grpo_jax.sweeps.interrupt import Interrupted, interruptible
from grpo_jax.sweeps.netcdf import Damaged


@pytest.fixture(autouse=True)
def usual_signals():
    """Python's own handlers, also where the tests run in the background, which ignores Ctrl-C."""
    before = [(n, signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before:
        signal.signal(number, handler)


def parts(out, signals, finished, count=5):
    """A sweep's loop: ``signals`` arrive within part 1 (the last where there is no other)."""
    with interruptible(out) as stop:
        for part in range(count):
            stop.check(part, count)
            assert stop() is False
            if part == min(1, count - 1):
                for number in signals:
                    signal.raise_signal(number)
                assert stop() is True
            finished.append(part)
        stop.check(count, count)  # everything is written: nothing to go on with


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_part_in_flight(number, capsys):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    finished = []
    with pytest.raises(Interrupted, match=r"after part 2 of 5; the same call with out='x' goes on") as got:
        parts("x", [number], finished)
    assert finished == [0, 1]
    assert got.value.exit_code == 128 + number
    assert "once more stops at once" in capsys.readouterr().err
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_in_the_last_part_is_not_swallowed():
    finished = []
    with pytest.raises(Interrupted, match=r"all parts were done; grpo_jax\.load\('x'\)"):
        parts(Path("x"), [signal.SIGTERM], finished, count=1)
    assert finished == [0]


def test_a_second_signal_stops_at_once():
    finished = []
    with pytest.raises(KeyboardInterrupt) as caught:
        parts("x", [signal.SIGTERM, signal.SIGINT], finished)
    assert finished == [0]
    assert not isinstance(caught.value, Interrupted)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signals_are_as_ever_without_a_folder_and_in_other_threads():
    before = signal.getsignal(signal.SIGINT)
    held = []

    def elsewhere():
        with interruptible("x") as stop:
            held.append(signal.getsignal(signal.SIGINT))
            stop.check(0, 1)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    with pytest.raises(KeyboardInterrupt):
        parts(None, [signal.SIGINT], held)
    assert held == [before, 0]


def test_an_error_of_the_sweeps_own_comes_first():
    with pytest.raises(ZeroDivisionError):
        parts("x", [signal.SIGINT, 1 // 0], [])


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible("x") as stop:
            signal.raise_signal(signal.SIGINT)
            assert not stop()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_second_sigterm_ends_the_process():
    script = f"""
import sys, signal
sys.path.insert(0, {str(Path(interrupt.__file__).parent)!r})
from interrupt import interruptible
with interruptible("x"):
    signal.raise_signal(signal.SIGTERM)
    print("goes on", flush=True)
    signal.raise_signal(signal.SIGTERM)
    print("not reached", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "goes on\n"
    assert done.returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (Interrupted("stopped after part 1 of 2", signal.SIGINT), 130, "stopped after part 1 of 2\n"),
        (Interrupted("stopped after part 1 of 2", signal.SIGTERM), 143, "stopped after part 1 of 2\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
        (OSError(28, "No space left", "x"), 2, "error: x: No space left\n"),
        (Damaged("x is damaged"), 2, "error: x is damaged\n"),
    ],
)
def test_commands_end_with_a_sentence_and_a_code(raised, code, said, monkeypatch, capsys):
    def fail(_):
        raise raised

    monkeypatch.setattr(commands, "dispatch", fail)
    monkeypatch.setattr(commands.os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert ended.value.code == code
    assert capsys.readouterr().err == said
