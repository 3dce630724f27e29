"""The commands check and simulate: exit codes, JSON, the standard input, curves."""

import dataclasses
import io
import json
import sys

import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax.check import check
from grpo_jax.check.simulate import LEANINGS, TOKENS, curves, right, small
from grpo_jax.cli import main

TEXT = "num_generations: 8\nbeta: 0.04\nloss_type: grpo\nentropy_coef: 0.1\noutput_dir: x\n"
TEXT += "epsilon_high: 0.28\n"


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["grpo_jax", *map(str, words)])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr()


@pytest.fixture
def path(tmp_path):
    found = tmp_path / "a b.yaml"
    found.write_text(TEXT)
    return found


def test_the_text_has_everything(monkeypatch, capsys, path):
    code, printed = run(monkeypatch, capsys, "check", path)
    assert code == 1
    for said in (
        "TRL 1.16.0: groups of 8, 1 prompt a batch, one optimizer step on each",
        "gain         Clip(low=0.2, high=0.28)",
        "penalty      Penalty(divergence=K3, coef=0.04, weight=RatioWeight(ratio=Token))",
        "loop         Loop(group_size=8, prompts=1, inner_steps=1), answers of up to 256 tokens",
        "hazard (2)",
        "beta 0.04: of 0.7 on the worse of two answers 3.2e-27 is left",
        "(B6)",
        "a loss of 0 at step 1 is expected",
        "entropy_coef entropy_coef=0.1 is not modelled; only 0.0 is",
        "not read: output_dir",
        "taken where the file is silent: one process",
    ):
        assert said in printed.out
    assert max(map(len, printed.out.splitlines())) <= 130
    _, brief = run(monkeypatch, capsys, "check", path, "--brief")
    assert "Clip(" not in brief.out
    assert "hazard (2)" in brief.out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), 1),
        (("--fail-on", "never"), 0),
        (("beta=0.0", "loss_type=dapo"), 0),
        (("beta=0.0", "loss_type=dapo", "--fail-on", "worth-knowing"), 1),
        (("beta=0.0", "loss_type=dapo", "epsilon_high=null", "--fail-on", "worth-knowing"), 0),
        (("beta=0.0", "loss_type=dapo", "--fail-on", "note"), 1),
        (("--library", "verl"), 2),
        (("beta=a",), 2),
        (("epsilon_hihg=0.3",), 2),
    ],
)
def test_exit_codes(monkeypatch, capsys, path, words, code):
    found, printed = run(monkeypatch, capsys, "check", path, *words)
    assert found == code
    assert (printed.err != "") == (code == 2)
    assert "Traceback" not in printed.err
    if code == 2:
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1


def test_a_file_that_is_not_there_is_one_line(monkeypatch, capsys, tmp_path):
    code, printed = run(monkeypatch, capsys, "check", tmp_path / "none.yaml")
    assert code == 2
    assert printed.err.count("\n") == 1
    assert "none.yaml" in printed.err


def test_json_holds_what_the_text_says(monkeypatch, capsys, path):
    code, printed = run(monkeypatch, capsys, "check", path, "--json")
    assert code == 1
    found = json.loads(printed.out)
    assert found["library"] == "trl"
    assert found["loop"]["steps_on_a_batch"] == 1
    assert found["not_modelled"].keys() == {"entropy_coef"}
    assert found["ignored"] == ["output_dir"]
    told = {item["name"]: item for item in found["findings"]}
    assert told["reference_kept"]["level"] == "hazard"
    assert told["reference_kept"]["claim"] == "A8"
    assert told["reference_kept"]["size"] == check(TEXT).findings[0].size
    assert [item["name"] for item in found["findings"]] == [f.name for f in check(TEXT).findings]


def test_long_lists_of_what_is_not_read_are_cut(monkeypatch, capsys, path):
    path.write_text(TEXT + "".join(f"other_thing_{i}: {i}\n" for i in range(20)))
    _, printed = run(monkeypatch, capsys, "check", path)
    assert "other_thing_10, and 9 more (--json lists them)" in " ".join(printed.out.split())


def test_json_has_no_number_that_json_lacks(monkeypatch, capsys, path):
    words = ("adam_beta2=0.0", "steps_per_generation=4", "--json")
    _, printed = run(monkeypatch, capsys, "check", path, *words)
    sizes = {item["name"]: item["size"] for item in json.loads(printed.out)["findings"]}
    assert sizes["coasting_grows"] == "inf"


def test_the_standard_input(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    code, printed = run(monkeypatch, capsys, "check", "-", "--brief")
    assert code == 1
    assert "hazard (2)" in printed.out


def test_help_has_examples(monkeypatch, capsys):
    code, printed = run(monkeypatch, capsys, "check", "--help")
    assert code == 0
    assert "python -m grpo_jax check grpo.yaml" in printed.out
    assert "--fail-on" in printed.out


def test_the_small_task_keeps_the_configuration():
    setting = check(
        "num_generations: 200\nsteps_per_generation: 64\ntop_p: 0.8\ntemperature: 0.7\nloss_type: dr_grpo\n"
        "max_completion_length: 2048\nmax_grad_norm: 0.5\nadam_beta2: 0.95"
    ).setting
    config, changed = small(setting, learning_rate=0.1)
    assert (config.loop.group_size, config.loop.minibatches, config.loop.prompts) == (64, 16, 16)
    assert config.optimizer.inner == gj.AdamW(learning_rate=0.1, b2=0.95)
    assert config.optimizer.max_norm == 0.5
    assert config.behavior.decoding.top_p == 0.8
    assert config.policy.decoding.temperature == 0.7
    assert config.method.reduction.length == TOKENS
    assert setting.method.reduction.length == 2048
    told = "; ".join(changed)
    assert "groups of 64, not 200" in told
    assert "16 optimizer steps a pass, not 64" in told
    assert "learning rate of 0.1" in told


def test_lengths_and_ages_are_those_of_the_small_task():
    setting = check(
        "algorithm.adv_estimator: grpo\nactor_rollout_ref.rollout.n: 4\ndata.max_response_length: 1000\n"
        "reward_model.overlong_buffer: {enable: true, len: 200, penalty_factor: 0.5}"
    ).setting
    shaping = small(setting)[0].method.shaping
    assert (shaping.limit, shaping.buffer, shaping.factor) == (TOKENS, TOKENS / 5, 0.5)
    old = check("[orchestrator]\ngroup_size = 4\nmax_off_policy_steps = 20\n").setting
    config, changed = small(old)
    assert config.behavior.age.lag == 8
    assert "weights 8 batches old, not 20" in "; ".join(changed)
    assert small(old, iterations=3)[0].behavior.age.lag == 2
    assert small(old, iterations=1)[0].behavior is None


def test_a_correction_has_something_to_correct():
    config, changed = small(check("num_generations: 4\nuse_vllm: true").setting)
    assert config.behavior == gj.Behavior(mismatch=gj.Rounded())
    assert "an engine that holds weights in bfloat16" in "; ".join(changed)
    filtered = check("num_generations: 4\nuse_vllm: true\ntop_p: 0.9").setting
    assert small(filtered)[0].behavior.mismatch is None
    assert small(check("num_generations: 4").setting)[0].behavior is None


def test_one_reward_stands_for_several():
    config, changed = small(check("num_generations: 4\nreward_weights: [1.0, 0.1]").setting)
    assert config.method.shaping == gj.methods.grpo.shaping
    assert any("one reward" in line for line in changed)
    alone = small(check("num_generations: 4").setting)[1]
    assert not any("one reward" in line for line in alone)


def test_the_reward_of_the_small_task():
    assert right((1, 2, 0)) == 1.0
    assert right((1, 2)) == 0.0
    assert right((0,) * TOKENS) == 0.0
    assert len(LEANINGS) == 4


def test_simulate_trains_and_shows_curves(monkeypatch, capsys, path, tmp_path):
    out = tmp_path / "out put"
    words = ("--seeds", 2, "--iterations", 4, "--out", out)
    code, printed = run(monkeypatch, capsys, "simulate", path, *words)
    assert code == 0
    lines = printed.out.splitlines()
    assert lines[0] == "TRL 1.16.0 on a small task: 2 runs of 4 batches"
    assert (out / "curves.svg").stat().st_size > 1000
    data = gj.load(out)
    ends = data.expected_reward.mean("seed").to_numpy()
    shown = next(line for line in lines if line.strip().startswith("expected_reward"))
    assert shown.endswith(f"{ends[0]:.3g} to {ends[-1]:.3g}")
    assert 0 <= float(data.expected_reward.min()) <= float(data.expected_reward.max()) <= 1
    assert f"show {out}" in printed.err


def test_curves_name_runs_that_turned_non_finite():
    setting = check("num_generations: 4").setting
    config, _ = small(setting)
    data = gj.sweep(config, seeds=2, iterations=2, progress=False, record=["expected_reward", "finite"])
    for name in ("length", "kl_ref", "entropy", "tied", "clip_fraction_high", "surrogate"):
        data[name] = data.expected_reward * np.nan
    data["finite"] = data.finite & False
    assert "2 of 2 runs turned non-finite" in curves(data)


def test_the_commands_of_the_readme_run(monkeypatch, capsys, tmp_path, pytestconfig):
    text = (pytestconfig.rootpath / "README.md").read_text(encoding="utf-8")
    block = text.split("## What does my configuration do?")[1].split("```sh\n")[1].split("```")[0]
    made, *commands = block.strip().splitlines()
    monkeypatch.chdir(tmp_path)
    content = made.removeprefix("printf '").removesuffix("' > grpo.yaml").replace("\\n", "\n")
    (tmp_path / "grpo.yaml").write_text(content)
    codes = {"check": [], "simulate": []}
    for command in commands:
        words = command.partition("#")[0].split()
        assert words[:3] == ["python", "-m", "grpo_jax"]
        few = ("--seeds", 2, "--iterations", 4) if words[3] == "simulate" else ()
        code, printed = run(monkeypatch, capsys, *words[3:], *few)
        codes[words[3]].append(code)
        assert printed.out
    assert codes == {"check": [1, 0], "simulate": [0]}
    assert "of 0.7 on the worse of two answers 3.2e-27 is left" in text


def test_gdpo_s_weights_of_several_rewards_fall_away():
    text = "loss_fn.token_level_loss: true\ngrpo.adv_estimator: {name: gdpo, reward_weights: [0.5, 2.0]}"
    found = check(text).setting
    assert found.method.shaping.weights == (0.5, 2.0)
    config, changed = small(found)
    assert config.method.shaping == dataclasses.replace(found.method.shaping, weights=())
    assert any("one reward" in line for line in changed)
