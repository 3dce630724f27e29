"""Files become options: every kind of file, and every kind that is none."""

import contextlib
import json
import time

import pytest

from grpo_jax.check import check, check_file
from grpo_jax.check.reading import literal, parsed, read
from grpo_jax.check.shell import options

WANTED = {"beta": 0.04, "num_generations": 8, "loss_type": "grpo", "use_vllm": True, "learning_rate": 1e-6}


@pytest.mark.parametrize(
    "text",
    [
        "beta: 0.04\nnum_generations: 8\nloss_type: grpo\nuse_vllm: true\nlearning_rate: 1e-6\n",
        json.dumps(WANTED),
        'beta = 0.04\nnum_generations = 8\nloss_type = "grpo"\nuse_vllm = true\nlearning_rate = 1e-6\n'
        "[x]\ny = 1",
        "from trl import GRPOConfig\nRATE = 1e-6\nargs = trl.GRPOConfig(beta=0.4 / 10, num_generations=2 * 4,"
        " loss_type='grpo', use_vllm=True, learning_rate=RATE)",
        "#!/bin/bash\nG=4\naccelerate launch grpo.py --beta 0.04 --num_generations $((G * 2)) \\\n"
        "  --loss_type=grpo --use_vllm True --learning_rate ${RATE:-1e-6}",
    ],
    ids=["yaml", "json", "toml", "python", "shell"],
)
def test_every_kind_of_file_says_the_same(text):
    found = dict(parsed(text).values)
    found.pop("x.y", None)
    assert found == WANTED


def test_a_number_that_yaml_takes_for_text_is_one():
    """YAML 1.1 has no 1e-6; trainers cast it."""
    assert parsed("learning_rate: 1e-6").values["learning_rate"] == 1e-6
    assert literal("-1") == -1
    assert isinstance(literal("8"), int)
    assert literal("2e3") == 2000.0
    assert literal("'0.5_2.0'") == "0.5_2.0"


def test_overrides_lie_over_the_file(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("beta: 0.04\nnum_generations: 8\n")
    found = read(path, ["beta=0.1", "+loss_type=grpo"]).values
    assert found == {"beta": 0.1, "num_generations": 8, "loss_type": "grpo"}
    with pytest.raises(ValueError, match="'beta' is not of the form name=value"):
        read(path, ["beta"])


def test_interpolations_are_put_in_and_others_are_named():
    text = "a: {n: 4}\nb: ${a.n}\nc: ${oc.select:x.y,512}\nd: ${env.HOME}\ne: {f: 2, g: '${.f}'}\nh: ${b}"
    found = parsed(text)
    assert found.values == {"a.n": 4, "b": 4, "c": 512, "e.f": 2, "e.g": 2, "h": 4}
    assert list(found.unread) == ["d"]
    assert parsed("a: ${b}\nb: ${a}\nc: 1").values == {"c": 1}


def test_a_script_is_not_executed(tmp_path):
    mark = tmp_path / "ran"
    text = (
        f"open({str(mark)!r}, 'w').write('x')\n"
        "args = GRPOConfig(beta=__import__('os').getpid(), num_generations=8, **extra)"
    )
    found = parsed(text)
    assert not mark.exists()
    assert found.values == {"num_generations": 8}
    assert set(found.unread) == {"beta", "**extra"}


def test_names_that_are_bound_twice_have_no_value():
    found = parsed("b = 0.04\nb = 0.1\nargs = GRPOConfig(beta=b, epsilon=0.2)")
    assert found.values == {"epsilon": 0.2}
    assert "beta" in found.unread


def test_the_trainer_of_a_class_is_its_loss():
    assert parsed("RLOOConfig(beta=0.05)").values == {"beta": 0.05, "loss_type": "rloo"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\nprint(x)\nGRPOConfig(\n", "no Python that can be read: .* line"),
        ("GRPOConfig(beta=1)\nGRPOConfig(beta=2)", "2 configurations \\(lines 1, 2\\)"),
    ],
)
def test_scripts_that_say_nothing(text, said):
    with pytest.raises(ValueError, match=said):
        parsed(text, ".py")
    with pytest.raises(ValueError, match="calls none of GRPOConfig"):
        parsed("x = 1", ".py")


def test_a_shell_script_with_quotations_over_lines_and_positional_defaults():
    text = (
        "set -x\n# don't stop here\nname=${1:-vllm}\nN=5\nCONFIG=\"\n  actor_rollout_ref.rollout.n=$N \\\n"
        '  actor_rollout_ref.rollout.name=$name"\n'
        "python3 -m verl.trainer.main_ppo $CONFIG data.train_batch_size=$((2 * (3 + 1))) "
        "trainer.logger=['console'] $@ 2>&1 | tee log\n"
    )
    found, hints = options(text)
    assert found["actor_rollout_ref.rollout.name"] == "vllm"
    assert found["data.train_batch_size"] == "8"
    assert found["actor_rollout_ref.rollout.n"] == "5"
    assert hints == {"verl"}
    other = parsed(text.replace("N=5\n", ""))
    assert "actor_rollout_ref.rollout.n" in other.unread
    assert "actor_rollout_ref.rollout.n" not in other.values


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.yaml", b"", "is empty"),
        ("blank.yaml", b" \n\t\n", "is empty"),
        ("null.yaml", b"# nothing\n", "the YAML is empty"),
        ("list.yaml", b"- 1\n- 2\n", "holds a list"),
        ("word.yaml", b"hello", "holds a str"),
        ("broken.yaml", b"a: [1, 2\nb: 3", "broken YAML in line"),
        ("tab.yaml", b"a:\n\tb: 1", "broken YAML in line 2"),
        ("twice.yaml", b"beta: 0.1\nnum_generations: 8\nbeta: 0.2", "line 3: beta is given twice"),
        ("tag.yaml", b"a: !!python/object/apply:os.system ['true']", "broken YAML in line 1: could not"),
        ("broken.json", b'{"a": 1,}', "broken JSON in line 1"),
        ("broken.toml", b"a = = 1", "broken TOML"),
        ("binary.yaml", bytes(range(256)), "no text in UTF-8"),
        ("zero.yaml", b"a: 1\0", "zero bytes"),
        ("huge.yaml", b"a: 1\n" * 300_000, "more than 400,000 bytes"),
        ("deep.yaml", b"[" * 5000, "nested|broken YAML"),
        ("deep.json", b'{"a":' * 3000 + b"1" + b"}" * 3000, "nested more than"),
        ("many.json", json.dumps({f"k{i}": 0 for i in range(21_000)}).encode(), "more than 20,000 entries"),
        ("cycle.yaml", b"a: &x\n  b: *x\n", "nested more than"),
        ("note.ipynb", b'{"cells": []}', "a notebook"),
        ("other.yaml", b"colour: green\nsize: 3\n", "no library's options are in the file"),
    ],
)
def test_what_is_no_configuration_is_refused_with_the_reason(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        check_file(path)


def test_a_bomb_of_aliases_is_refused():
    levels = ["a0: &a0 {x: 1, y: 2}"]
    levels += [f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}" for i in range(1, 40)]
    with pytest.raises(ValueError, match=r"more than 20,000 entries|nested more than"):
        check("\n".join(levels))


@pytest.mark.parametrize(
    "holds", ["[*a{}, *a{}, *a{}]", "\n  <<: [*a{}, *a{}, *a{}]"], ids=["lists", "merged"]
)
def test_a_bomb_of_aliases_is_refused_before_it_is_written_out(holds):
    """3^40 entries in forty lines, as a value of an option, and as keys."""
    first = "a0: &a0 [1]" if "<<" not in holds else "a0: &a0 {k: 1}"
    lines = [first, *(f"a{i}: &a{i} {holds.replace('{}', str(i - 1))}" for i in range(1, 40))]
    began = time.process_time()
    with pytest.raises(ValueError, match="more than 20,000 entries with its aliases written out"):
        check("\n".join([*lines, "num_generations: 8", "beta: *a39"]))
    with pytest.raises(ValueError, match="an alias stands within what it names"):
        check("a: &a [*a]\nnum_generations: 8")
    assert time.process_time() - began < 3
    assert parsed("a: &a {b: 1, c: 2}\nd: {<<: *a, c: 3}").values == {"a.b": 1, "a.c": 2, "d.b": 1, "d.c": 3}


@pytest.mark.parametrize(
    "text",
    [
        "beta: 0.04\nbeta: 1.0",
        '{"beta": 0.04, "b": {"beta": 1}, "beta": 1.0}',
        "beta = 0.04\nbeta = 1.0\n[b]\n",
        "GRPOConfig(beta=0.04, beta=1.0)",
        "GRPOConfig(beta=unknown, beta=1.0)",
        "a.beta: 0.04\na: {beta: 1.0}",
        '{"a.beta": 0.04, "a": {"beta": 1.0}}',
    ],
)
def test_an_option_given_twice_is_refused_in_every_kind_of_file(text):
    with pytest.raises(ValueError, match=r"beta.? is given twice|Cannot overwrite a value"):
        parsed(text)


def test_what_is_merged_into_what_is_merged_is_not_given_twice():
    """PyYAML writes a merge into the mapping in place, so that ``b`` then holds ``lr`` twice."""
    text = "x: &a {lr: 1, eps: 2}\npolicy: {inner: {opt: &b {<<: *a, lr: 3}}}\nother: {<<: *b}\n"
    values = parsed(text).values
    assert values["policy.inner.opt.lr"] == values["other.lr"] == 3
    assert values["other.eps"] == 2
    with pytest.raises(ValueError, match="line 2: lr is given twice"):
        parsed("x: &a {lr: 1}\nopt: {<<: *a, lr: 3, lr: 4}\n")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-8"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_files_as_other_systems_write_them(tmp_path, encoding, end):
    path = tmp_path / "grpo.yaml"
    path.write_bytes(end.join(["# Größe", "num_generations: 8", "beta: 0.04", ""]).encode(encoding))
    assert read(path).values == {"num_generations": 8, "beta": 0.04}


def test_half_a_character_of_utf_16_is_refused(tmp_path):
    path = tmp_path / "grpo.yaml"
    path.write_bytes("beta: 1".encode("utf-16") + b"x")
    with pytest.raises(ValueError, match="is no text in UTF-16: byte"):
        read(path)


def test_a_name_that_a_screen_obeys_is_refused():
    with pytest.raises(ValueError, match=r"the name 'a.\\x1b\[2J', which no screen shows"):
        parsed('num_generations: 8\na: {"\\e[2J": 1}')


def test_a_number_of_five_thousand_digits_is_refused_in_our_own_words():
    """Python's says how to raise its limit on digits."""
    with pytest.raises(ValueError, match="num_generations is inf; it must be a whole number"):
        check(f'{{"num_generations": {"9" * 5000}}}')


def test_options_that_only_the_running_script_says_are_named():
    with pytest.raises(ValueError, match=r"none of the file's 0 options is .*; beta: its value is b / 0"):
        check("GRPOConfig(beta=b / 0)")


def test_folders_and_missing_files(tmp_path):
    with pytest.raises(ValueError, match="is no file"):
        check_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        check_file(tmp_path / "none.yaml")


def test_names_of_files_with_spaces_and_other_alphabets(tmp_path):
    path = tmp_path / "eine größe 配置 .yaml"
    path.write_bytes("\ufeffnum_generations: 8\nrun_name: größe\n".encode())
    assert check_file(path).setting.at.group_size == 8


def test_what_is_still_to_be_given_counts_as_not_given():
    assert parsed("a: ???\nb: 1").values == {"b": 1}


@pytest.mark.parametrize(
    "text",
    [
        "it's\n" * 3000 + "--beta 1",
        "a" + ".a" * 30_000,
        "--beta 1 " + "$((" * 30_000,
        "--beta 1\n" + "${A-" * 25_000,
        "\n" * 325_000 + "--beta 1",
        "--beta " + "9" * 325_000,
        "[" * 325_000,
        "beta: " + "!!a " * 25_000,
        "x = " + "(" * 30_000 + "\nGRPOConfig(beta=1)",
        "GRPOConfig(beta=" + "-" * 30_000 + "1)",
        *("GRPOConfig(beta=" + "-" * depth + "1)" for depth in (90, 180, 900, 3000)),
        *("GRPOConfig(beta=" + "[" * depth + "]" * depth + ")" for depth in (90, 150)),
        "GRPOConfig(beta=a" + ".a" * 900 + ")",
        "GRPOConfig(beta=" + "1+" * 20_000 + "1)",
    ],
    ids=range(18),
)
def test_hostile_texts_cost_little_time_and_no_crash(text):
    began = time.process_time()
    with contextlib.suppress(ValueError):
        parsed(text)
    assert time.process_time() - began < 3
