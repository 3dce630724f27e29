"""What commands print reaches screens, pipes and files of every kind, and those that nobody reads."""

import io
import subprocess
import sys

import pytest

from grpo_jax import runtime
from grpo_jax.check import check, words
from tests.folders import environment

PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""A system that writes ASCII."""


def test_a_letter_that_a_stream_lacks_is_a_question_mark_and_a_closed_stream_takes_all(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(sys, "stderr", None)
    runtime.forgiving_streams()
    print("σ = 1")
    print("σ = 1", file=sys.stderr, flush=True)
    sys.stdout.flush()
    sys.stderr.close()
    assert written.getvalue() == b"? = 1\n"


@pytest.mark.parametrize("width", [20, 60, 110, 500])
def test_prose_fits_the_screen_and_is_the_same_words(width):
    found = check("num_generations: 8\nbeta: 0.04\nloss_type: grpo")
    whole, lines = words.text(*found), words.text(*found, brief=True, width=width).splitlines()
    assert max(map(len, lines[1:])) <= max(40, min(width, 110))
    told = " ".join(lines).split()
    assert told == " ".join(words.text(*found, brief=True).splitlines()).split()
    assert " ".join(told[-20:]) in " ".join(whole.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", ["grpo_jax check grpo.yaml --fail-on never", "experiments --list"], ids=["check", "list"]
)
def test_commands_print_where_nothing_but_ascii_is_known_and_where_nobody_listens(command, tmp_path):
    (tmp_path / "grpo.yaml").write_text("num_generations: 8\nbeta: 0.04\n", encoding="utf-8")
    for end, shown in (("", True), (">&-", False)):
        ended = subprocess.run(
            f"'{sys.executable}' -m {command} {end}",
            shell=True,
            cwd=tmp_path,
            check=False,
            env=environment() | PLAIN,
            capture_output=True,
        )
        assert (ended.returncode, ended.stderr) == (0, b"")
        assert ("?" in ended.stdout.decode("ascii")) == shown
