"""The command line: strings become objects at the border, errors are one line."""

import ast
import errno
import os
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
    assert assignments(["a=1,2", "b.c=3"], "--set") == {"a": ["1", "2"], "b.c": ["3"]}
    assert axes(["learning_rate=1e-3,1e-2"]) == {"learning_rate": [1e-3, 1e-2]}
    found = variants(
        ["method=grpo,dapo", "group_size=4,8", "optimizer=sgd", "prompts=none,2"], build(Setup())
    )
    assert found["method"]["dapo"] is gj.methods.dapo
    assert found["group_size"] == [4, 8]
    assert found["prompts"] == [None, 2]
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


def test_what_has_axes_of_its_own_is_shown_by_its_places(monkeypatch, capsys):
    """Two contexts by name; of sixteen probabilities the first eight, and that there are more."""
    words = ("--actions", "8", "--contexts", "2", "--seeds", "4", "--iterations", "2", "--record-every", "2")
    code, printed = run(monkeypatch, capsys, "run", *words, "--record", "prompt_reward", "probabilities")
    assert code == 0
    _, heading, values, left_out = printed.out.strip().splitlines()
    expected = [f"prompt_reward[{i}]" for i in range(2)]
    assert heading.split()[:2] == expected
    assert "probabilities[0, 7]" in heading
    assert "probabilities[1, 0]" not in heading
    assert len(values.split()) == 2 + 8
    assert left_out == "probabilities has 16 places (context x output); the first 8 are shown"


def test_a_summary_holds_the_numbers_of_the_dataset_and_says_what_was_averaged():
    config = build(Setup(actions=3, contexts=2))
    asked = {"seeds": 4, "iterations": 6, "progress": False, "record": ["prompt_reward"]}
    data = gj.sweep(config, {"learning_rate": [0.1, 0.2]}, average_from=3, **asked)
    first, heading, *rows = commands.summary(data).splitlines()
    assert first == "averages over the iterations from 3 to 6, mean ± standard deviation over 4 seeds"
    for row, rate in zip(rows, (0.1, 0.2), strict=True):
        found = dict(zip(heading.split(), row.split(), strict=True))
        values = data.prompt_reward.sel(learning_rate=rate, context=1).values
        assert found["prompt_reward[1]"] == f"{values.mean():.4g}±{values.std():.2g}"


def test_methods_lists_every_method_with_its_numbers(monkeypatch, capsys):
    code, printed = run(monkeypatch, capsys, "methods")
    assert code == 0
    for name in gj.methods.METHODS:
        assert f"{name}\n" in printed.out
    assert "gain        Clip(low=0.0003, high=0.0004)" in printed.out
    assert "penalty     Penalty(divergence=K3, coef=0.04)" in printed.out
    told = printed.out.splitlines()[-1]
    assert "grpo 0.04," in told
    assert " dr_grpo" not in told
    assert "gspo [0.9997, 1.0004]" in told


@pytest.mark.parametrize("library", presets.PRESETS)
def test_options_of_a_library_are_listed_and_can_be_written(library, monkeypatch, capsys):
    code, printed = run(monkeypatch, capsys, "options", library)
    assert code == 0
    words = printed.out.strip().splitlines()
    assert len(words) > 10
    for word in words:
        name, _, value = word.partition("=")
        assert presets.PRESETS[library](**{name: ast.literal_eval(value)}) == presets.PRESETS[library]()


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
        (("run", "--horizon", "0"), "--horizon is 0; it must be at least 1"),
        (("run", "--contexts", "0"), "--contexts is 0; it must be at least 1"),
        (("run", "--contexts", "2000000"), "2000000 times 8 answers are more than 10,000,000 rewards"),
        (("run", "--horizon", "4294967296"), "8 tokens at each of 4,294,967,296 places are more than"),
        (("run", "--actions", "-2"), "--actions is -2; it must be at least 1"),
        (("run", "--task-seed", "-1"), "--task-seed is -1; it must be at least 0"),
        (("run", "--root", "-1"), "root is -1"),
        (("run", "--seeds", "0"), "seeds is 0"),
        (("run", "--seeds", "100000000000000"), "between 1 and 2^32"),
        (("run", "--record", "entropi"), "did you mean entropy"),
        (("run", "--set", "clip_low=.1", "clip_low=.2"), "--set gives clip_low twice"),
        (
            ("run", "--set", "clip_low=.1", "gain.low=.2"),
            "gives method.gain.low twice, as clip_low",
        ),
        (("sweep", "--sweep", "clip_low=.1", "clip_low=.2"), "--sweep gives clip_low twice"),
        (("sweep", "--sweep", "clip_low=.1,.1"), "repeats a setting"),
        (("sweep", "--variants", "method=grpo,grpo"), "--variants gives method=grpo twice"),
        (("sweep", "--variants", "methd=grpo"), "unknown path 'methd'; did you mean method"),
        (("sweep", "--variants", "group_size=4,4"), "--variants gives group_size=4 twice"),
        (("sweep", "--variants", "group_size=four"), "group_size takes whole numbers here, not four"),
        (("sweep", "--variants", "group_size=none"), "whole number"),
        (("sweep", "--variants", "method.gain=Clip"), "by name there are method, optimizer, expectation"),
        (("options", "trll"), "did you mean trl"),
        (("chek",), "error: unknown command 'chek'; did you mean check?"),
        (("sweap", "--help"), "error: unknown command 'sweap'; did you mean sweep?"),
        (("qqq",), "error: unknown command 'qqq'; known: check, diff, methods, "),
    ],
)
def test_bad_words_are_one_line_and_exit_2(monkeypatch, capsys, words, message):
    code, printed = run(monkeypatch, capsys, *words)
    assert code == 2
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert len(printed.err.strip().splitlines()) == 1


def test_an_error_about_a_file_starts_with_its_name(monkeypatch, capsys, tmp_path):
    code, printed = run(monkeypatch, capsys, "check", str(tmp_path / "größe.yaml"))
    assert code == 2
    assert printed.err == f"error: {tmp_path / 'größe.yaml'}: {os.strerror(errno.ENOENT)}\n"


def test_help_is_generated_from_docstrings():
    found = subprocess.run(
        [sys.executable, "-m", "grpo_jax", "sweep", "--help"], capture_output=True, text=True, check=True
    )
    assert "--group-size" in found.stdout
    assert "one program for all" in found.stdout


def test_a_wrong_option_is_answered_with_this_command_s_options(monkeypatch, capsys):
    code, printed = run(monkeypatch, capsys, "run", "--sed", "3")
    assert code == 2
    assert "--seeds INT" in printed.err
    assert "python -m grpo_jax run --help" in printed.err
    assert "simulate" not in printed.err


def test_the_version_is_printed(monkeypatch, capsys):
    code, printed = run(monkeypatch, capsys, "--version")
    assert (code, printed.out) == (0, f"{gj.__version__}\n")


def test_a_library_s_method_is_a_method():
    assert build(Setup(method="trl:dapo")).method == presets.parse("trl:dapo")
    found = variants(["method=grpo,verl:vanilla"], build(Setup()))
    assert found["method"]["verl:vanilla"] == presets.parse("verl:vanilla")


def test_paths_show_the_short_names(monkeypatch, capsys):
    code, printed = run(monkeypatch, capsys, "paths")
    assert code == 0
    assert "method.penalty.coef = 0.04  (kl_coef)" in printed.out


@pytest.mark.parametrize(
    "words",
    [
        "grpo_jax methods | head -n 1",
        "grpo_jax run --help | true",
        pytest.param("grpo_jax methods | true", marks=pytest.mark.slow),
        pytest.param("grpo_jax run --help | head -n 1", marks=pytest.mark.slow),
        pytest.param("experiments --list | head -n 1", marks=pytest.mark.slow),
    ],
)
def test_a_closed_pipe_is_no_error(words):
    """Whether its reader takes a line or none at all, and however much is written."""
    command = f"{sys.executable} -m {words}"
    found = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert found.stderr == ""
    assert len(found.stdout.splitlines()) == (not words.endswith("true"))
