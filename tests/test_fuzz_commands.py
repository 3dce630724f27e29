"""Words at random after ``python -m grpo_jax``: an exit status that is documented, and never a traceback."""

import io
import sys

import pytest
from hypothesis import strategies as st

from grpo_jax import presets
from grpo_jax.cli import commands, main
from grpo_jax.cli.build import Setup, build
from grpo_jax.part import leaf_paths, static_paths
from grpo_jax.sweeps import runner
from tests.fuzzing import TEXT, Reached, draw, either, examples

COMMANDS = (
    "methods", "penalties", "problems", "options", "run", "sweep", "show", "report", "paths", "diff", "check",
    "simulate",
)  # fmt: skip
FLAGS = (
    "--method", "--optimizer", "--contexts", "--actions", "--horizon", "--rewards", "--noise", "--start",
    "--task-seed", "--group-size", "--inner-steps", "--minibatches", "--refresh-every", "--set", "--seeds",
    "--iterations", "--record-every", "--record", "--root", "--out", "--x64", "--no-x64", "--sweep",
    "--variants", "--markdown", "--draws", "--json", "--brief", "--fail-on", "--library", "--learning-rate",
    "--longest", "--help", "--simulate",
)  # fmt: skip
NUMBER = st.one_of(
    st.integers(-2, 40).map(str),
    st.floats().map(str),
    st.sampled_from(["1e999", "-0", "1_000", "0x10", "9" * 30, "4294967296", "1,2", "1e-3,1e-2", "٣"]),
)
PATHS = sorted({path for tree in (leaf_paths, static_paths) for path in tree(build(Setup()))})
NAMES = st.sampled_from(
    [
        *PATHS, *(path.rpartition(".")[2] for path in PATHS), "kl_coef", "clip_high", "grpo", "dapo", "adamw",
        "bernoulli", "gaussian", "none", "hazard", "never", *presets.PRESETS, "trl:dapo", "verl:vanilla",
        "reward", "entropy", "probabilities", "config.yaml", "train.sh", "script.py", "broken.json", "-",
    ]
)  # fmt: skip
WORD = st.one_of(NAMES, NAMES, NUMBER, TEXT)
PAIR = st.tuples(WORD, WORD)
VALUE = st.one_of(WORD, PAIR.map("=".join), st.tuples(PAIR.map("=".join), WORD).map(",".join))
ASSIGNED = st.tuples(NAMES, st.lists(either(NUMBER, NAMES), min_size=1, max_size=2).map(",".join)).map(
    "=".join
)
TAKES = {
    "--method": NAMES, "--optimizer": NAMES, "--noise": NAMES, "--set": ASSIGNED, "--sweep": ASSIGNED,
    "--variants": ASSIGNED, "--record": NAMES, "--contexts": NUMBER, "--actions": NUMBER, "--horizon": NUMBER,
    "--rewards": NUMBER, "--start": NUMBER, "--task-seed": NUMBER, "--group-size": NUMBER, "--seeds": NUMBER,
    "--inner-steps": NUMBER, "--minibatches": NUMBER, "--refresh-every": NUMBER, "--iterations": NUMBER,
    "--record-every": NUMBER, "--root": NUMBER,
}  # fmt: skip
NEAR = st.sampled_from(sorted(TAKES)).flatmap(lambda flag: st.tuples(st.just(flag), TAKES[flag]))
ANY = either(
    st.tuples(st.sampled_from(FLAGS), VALUE),
    st.tuples(st.sampled_from(FLAGS), VALUE, VALUE),
    st.tuples(st.sampled_from(FLAGS)),
    st.tuples(VALUE),
)
WORDS = either(
    st.tuples(st.sampled_from(("run", "sweep")), st.lists(NEAR, max_size=3)),
    st.tuples(st.sampled_from(COMMANDS), st.lists(ANY, max_size=3)),
    st.tuples(WORD, st.lists(ANY, max_size=2)),
)
FILES = {
    "config.yaml": "num_generations: 8\nbeta: 0.04\nloss_type: grpo\n",
    "train.sh": "python -m verl.trainer.main_ppo algorithm.adv_estimator=grpo trainer.total_epochs=1\n",
    "script.py": "GRPOConfig(beta=0.1)\n",
    "broken.json": '{"beta": ',
}


@pytest.fixture
def shut(monkeypatch, tmp_path):
    """Stops every sweep where it would begin to compile, and what else would compute for long."""

    def reached(*args, **options):
        raise Reached

    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "program_of", reached)
    monkeypatch.setattr(commands.penalty_table, "report", lambda: "")
    monkeypatch.setattr(commands.chance, "table", lambda draws: "")


@examples(fast=60, slow=1200)
def test_any_words_end_with_a_status_that_is_documented(count, shut, monkeypatch, capsys, record_property):
    seen: dict[str, int] = {}

    def check(words):
        command, options = words
        given = [command, *(word for option in options for word in option)]
        monkeypatch.setattr(sys, "argv", ["grpo_jax", *given])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"beta: 0.1\n")))
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        except Reached:
            code = "runs"
        printed = capsys.readouterr()
        assert code in ((0, 1, 2, "runs") if command in ("check", "simulate") else (0, 2, "runs")), given
        assert "Traceback" not in printed.err + printed.out
        if code == 2:
            said = printed.err.strip()
            assert said, given
            assert not said.startswith("error: ") or len(said.split()) > 3, said
        seen[str(code)] = seen.get(str(code), 0) + 1

    draw(count, check, words=WORDS)
    record_property("found", f"command lines by exit status: {seen}")
