"""Files that a YAML names as its ``defaults``: which lies over which, and what is wrong in one of them."""

import re

import pytest
import yaml

from grpo_jax import presets
from grpo_jax.check import check_file
from grpo_jax.check.inheritance import with_parents


def test_files_lie_under_each_other_as_nemo_rl_s_launcher_lays_them(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "grpo: {num_generations_per_prompt: 4, normalize_rewards: true,\n"
        " adv_estimator: {normalize_rewards: '${grpo.normalize_rewards}'}}\n"
        "policy: {max_total_sequence_length: 100,\n"
        " generation: {max_new_tokens: '${policy.max_total_sequence_length}'}}\n"
        "loss_fn: {ratio_clip_max: 0.3, ratio_clip_min: 0.1}\n"
    )
    (tmp_path / "sub").mkdir()
    child = tmp_path / "sub" / "child.yaml"
    child.write_text(
        "defaults: ../base.yaml\npolicy.max_total_sequence_length: 50\ngrpo: {num_prompts_per_step: 7}\n"
        "loss_fn: {_override_: true, ratio_clip_max: 0.5}\n"
    )
    found = check_file(child, ["grpo.normalize_rewards=false"]).setting
    assert (found.at.group_size, found.at.prompts, found.at.tokens) == (4, 7, 50)
    assert found.method == presets.nemo_rl(ratio_clip_max=0.5, normalize_rewards=False)
    assert not found.assumed
    child.write_text("defaults: [../base.yaml, gone.yaml]\nloss_fn: {ratio_clip_max: 0.5}\n")
    missing = check_file(child).setting
    assert missing.method == presets.nemo_rl(ratio_clip_max=0.5, ratio_clip_min=0.1)
    assert any("gone.yaml" in line and "not beside the file" in line for line in missing.assumed)
    child.write_text("defaults: ../base.yaml\nloss_fn.ratio_clip_max: 0.5\nloss_fn: {ratio_clip_max: 0.4}\n")
    with pytest.raises(ValueError, match="loss_fn is given twice"):
        check_file(child)
    child.write_text("defaults: child.yaml\nloss_fn: {ratio_clip_max: 0.5}\n")
    with pytest.raises(ValueError, match="more than 10 files lie under each other"):
        check_file(child)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("loss_fn: {\n", "broken YAML in line 2"),
        ("loss_fn.ratio_clip_max: 1\nloss_fn: {ratio_clip_max: 2}\n", "loss_fn is given twice"),
        ("- loss_fn\n", "it holds a list; options by name are needed"),
        ("  \n", "is empty"),
    ],
)
def test_what_is_wrong_in_a_file_under_another_is_said_of_it(tmp_path, text, said):
    (tmp_path / "base.yaml").write_text(text)
    (tmp_path / "middle.yaml").write_text("defaults: base.yaml\n")
    child = tmp_path / "child.yaml"
    child.write_text("defaults: middle.yaml\n" + "grpo: {num_prompts_per_step: 7}\n")
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path / 'base.yaml'))}:? {said}"):
        check_file(child)


def test_a_file_that_many_name_is_read_once(tmp_path):
    """Nine files, each naming the next six times, are 6⁸ ways down."""
    for level in range(8):
        names = ", ".join([f"{level + 1}.yaml"] * 6)
        (tmp_path / f"{level}.yaml").write_text(f"defaults: [{names}]\ngrpo: {{of_{level}: 1}}\n")
    (tmp_path / "8.yaml").write_text("grpo: {of_8: 1}\n")
    read = []

    def load(path):
        read.append(path.name)
        return yaml.safe_load(path.read_text())

    top = tmp_path / "0.yaml"
    found = with_parents(load(top), top, load)
    assert found == {"grpo": {f"of_{level}": 1 for level in range(9)}}
    assert read == [f"{level}.yaml" for level in range(9)]


def test_the_word_that_lets_a_file_replace_is_no_option(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "loss_fn: {ratio_clip_min: 0.1}\ngrpo: {_override_: true, num_prompts_per_step: 7}\n"
    )
    child = tmp_path / "child.yaml"
    child.write_text(
        "defaults: base.yaml\nloss_fn: {_override_: true, ratio_clip_max: 0.5}\n"
        "policy: {_override_: true, max_grad_norm: 2}\n"
    )
    found = check_file(child).setting
    assert (found.ignored, found.at.prompts) == ((), 7)
    assert found.method == presets.nemo_rl(ratio_clip_max=0.5)
    assert found.at.optimizer.max_norm == 2
