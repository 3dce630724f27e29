"""The command line: strings become objects at the border, errors are one line."""

import subprocess
import sys

import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax import presets
from grpo_jax.cli import commands
from grpo_jax.cli.build import Setup, assignments, axes, build, variants


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["grpo_jax", *words])
    code = 0
    try:
        commands.main()
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr()


def test_words_become_numbers_and_parts():
    assert assignments(["a=1,2", "b.c=3"]) == {"a": ["1", "2"], "b.c": ["3"]}
    assert axes(["learning_rate=1e-3,1e-2"]) == {"learning_rate": [1e-3, 1e-2]}
    found = variants(["method=grpo,dapo", "group_size=4,8", "optimizer=sgd"])
    assert found["method"]["dapo"] is gj.methods.dapo
    assert found["group_size"] == [4, 8]
    assert isinstance(found["optimizer"]["sgd"], gj.SGD)


def test_set_reaches_the_leaf():
    config = build(Setup(set=("learning_rate=0.5", "clip_high=0.28")))
    assert config.optimizer.learning_rate == 0.5
    assert config.method.gain.high == 0.28


def test_start_and_rewards_reach_the_tables():
    config = build(Setup(contexts=2, actions=3, rewards=(1, 0, 0), start=(0.2, 0.3, 0.5)))
    np.testing.assert_allclose(np.exp(config.policy.logits), [[0.2, 0.3, 0.5]] * 2)
    np.testing.assert_array_equal(config.task.table, [[1, 0, 0]] * 2)


def test_sequences_have_a_row_for_every_output():
    config = build(Setup(actions=3, horizon=2, contexts=1))
    assert config.task.table.shape == (1, len(config.policy.space.support[0]))


def test_sweep_prints_a_row_per_setting_and_show_reads_it_back(monkeypatch, capsys, tmp_path):
    words = ("--actions", "3", "--contexts", "1", "--seeds", "4", "--iterations", "4", "--record-every", "2")
    sweep = ("--sweep", "learning_rate=1e-3,1e-2", "--out", str(tmp_path))
    code, printed = run(monkeypatch, capsys, "sweep", *words, *sweep)
    assert code == 0
    assert len(printed.out.strip().splitlines()) == 4
    assert "1 program compiled" in printed.err
    code, shown = run(monkeypatch, capsys, "show", str(tmp_path))
    assert code == 0
    assert printed.out.strip() in shown.out


def test_methods_lists_every_method(monkeypatch, capsys):
    code, printed = run(monkeypatch, capsys, "methods")
    assert code == 0
    for name in gj.methods.METHODS:
        assert f"{name}\n" in printed.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "--method", "grop"), "did you mean grpo"),
        (("run", "--optimizer", "adamx"), "did you mean"),
        (("sweep", "--sweep", "learning_rat=1"), "did you mean optimizer.learning_rate"),
        (("sweep", "--sweep", "learning_rate"), "name=value"),
        (("sweep", "--sweep", "learning_rate=fast"), "takes numbers"),
        (("sweep", "--variants", "method=grop"), "did you mean grpo"),
        (("run", "--rewards", "1", "2"), "there are 8 answers"),
        (("run", "--group-size", "1"), "at least 2"),
        (("run", "--set", "learning_rate=1,2"), "use sweep"),
        (("run", "--set", "clip_low=-1"), "allowed is"),
        (("run", "--actions", "1", "--horizon", "2"), "no room for EOS"),
    ],
)
def test_bad_words_are_one_line_and_exit_2(monkeypatch, capsys, words, message):
    code, printed = run(monkeypatch, capsys, *words)
    assert code == 2
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert len(printed.err.strip().splitlines()) == 1


def test_help_is_generated_from_docstrings():
    found = subprocess.run(
        [sys.executable, "-m", "grpo_jax", "sweep", "--help"], capture_output=True, text=True, check=True
    )
    assert "--group-size" in found.stdout
    assert "one program for all" in found.stdout


def test_a_library_s_method_is_a_method():
    assert build(Setup(method="trl:dapo")).method == presets.parse("trl:dapo")
    assert variants(["method=grpo,verl:vanilla"])["method"]["verl:vanilla"] == presets.parse("verl:vanilla")


def test_paths_show_the_short_names(monkeypatch, capsys):
    code, printed = run(monkeypatch, capsys, "paths")
    assert code == 0
    assert "method.penalty.coef = 0.04  (kl_coef)" in printed.out


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m grpo_jax methods | head -n 1"
    found = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert found.stdout == "grpo\n"
    assert found.stderr == ""
