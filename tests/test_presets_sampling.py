"""Who samples, by the libraries' own options: each engine's order, filters and log-probabilities."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax import presets
from grpo_jax.decoding import TRANSFORMERS, VLLM
from grpo_jax.presets.engines import Sampling, drawn
from tests.filters import softmax, top_p

TOP_K = gj.Decoding(temperature=0.7, top_k=20)
RAW = gj.Behavior(records="raw")


@pytest.mark.parametrize("library", presets.PRESETS)
def test_defaults_sample_from_what_is_trained(library):
    assert presets.sampling(library) == Sampling(None, None)


@pytest.mark.parametrize(
    ("library", "options", "trainer", "behavior"),
    [
        # The temperature alone is the trainer's, too, so that nobody samples otherwise than is scored.
        ("trl", {"temperature": 0.7}, gj.Decoding(temperature=0.7), None),
        ("verl", {"temperature": 0.7}, gj.Decoding(temperature=0.7), None),
        ("prime_rl", {"temperature": 0.7}, gj.Decoding(temperature=0.7), None),
        ("nemo_rl", {"temperature": 0.7}, gj.Decoding(temperature=0.7), None),
        ("open_instruct", {"temperature": 0.7}, gj.Decoding(temperature=0.7), None),
        # Filters that the trainer scores through, too; one that it does not.
        ("nemo_rl", {"temperature": 0.7, "top_k": 20}, TOP_K, None),
        ("nemo_rl", {"temperature": 0.7, "logprobs_mode": "raw_logprobs"}, gj.Decoding(temperature=0.7), RAW),
        ("open_instruct", {"vllm_top_p": 0.9}, None, gj.Behavior(decoding=gj.Decoding(top_p=0.9))),
        # Values that switch a filter off.
        ("trl", {"top_p": 1.0, "top_k": 0, "min_p": 0.0}, None, None),
        ("verl", {"top_k": -1, "top_p": 1, "calculate_log_probs": True}, None, None),
        ("areal", {"gconfig": {"top_k": int(1e8)}}, None, None),
        ("prime_rl", {"extra_body": {"top_k": -1, "min_p": 0.0}}, None, None),
        # Orders.
        (
            "trl",
            {"temperature": 0.7, "top_p": 0.9, "min_p": 0.05},
            gj.Decoding(temperature=0.7),
            gj.Behavior(decoding=gj.Decoding(temperature=0.7, top_p=0.9, min_p=0.05, order=TRANSFORMERS)),
        ),
        (
            "trl",
            {"top_p": 0.9, "top_k": 20, "use_vllm": True},
            None,
            gj.Behavior(decoding=gj.Decoding(top_p=0.9, top_k=20, order=VLLM)),
        ),
        (
            "liger",
            {"top_p": 0.9, "use_vllm": True},
            None,
            gj.Behavior(decoding=gj.Decoding(top_p=0.9, order=VLLM)),
        ),
        (
            "verl",
            {"rollout.temperature": 0.7, "rollout.top_k": 20, "rollout.name": "hf"},
            gj.Decoding(temperature=0.7),
            gj.Behavior(decoding=dataclasses.replace(TOP_K, order=TRANSFORMERS)),
        ),
        (
            "verl",
            {"top_p": 0.9, "name": "sglang"},
            None,
            gj.Behavior(decoding=gj.Decoding(top_p=0.9, order=TRANSFORMERS, joint=True), records="tempered"),
        ),
        (
            "prime_rl",
            {"temperature": 0.7, "extra_body": {"top_k": 20}},
            gj.Decoding(temperature=0.7),
            gj.Behavior(decoding=TOP_K),
        ),
        # An engine's temperature apart from the trainer's.
        (
            "trl",
            {"temperature": 0.7, "generation_kwargs": {"temperature": 1.0}},
            gj.Decoding(temperature=0.7),
            gj.Behavior(decoding=gj.Decoding(order=TRANSFORMERS)),
        ),
        (
            "areal",
            {"gconfig": {"temperature": 0.7}},
            None,
            gj.Behavior(decoding=gj.Decoding(temperature=0.7, order=TRANSFORMERS, joint=True)),
        ),
        # vLLM's default reports raw log-probabilities.
        (
            "areal",
            {"actor.temperature": 0.7, "gconfig": {"temperature": 0.7}, "backend": "vllm"},
            gj.Decoding(temperature=0.7),
            gj.Behavior(decoding=gj.Decoding(temperature=0.7), records="raw"),
        ),
        (
            "openrlhf",
            {"rollout.temperature": 0.7, "rollout.top_p": 0.9},
            gj.Decoding(temperature=0.7),
            gj.Behavior(decoding=gj.Decoding(temperature=0.7, top_p=0.9), records="raw"),
        ),
        (
            "openrlhf",
            {"top_p": 0.9, "is_correction_level": "token"},
            None,
            gj.Behavior(decoding=gj.Decoding(top_p=0.9)),
        ),
        (
            "verl",
            {"top_p": 0.9, "logprobs_mode": "raw_logprobs"},
            None,
            gj.Behavior(decoding=gj.Decoding(top_p=0.9), records="raw"),
        ),
    ],
)
def test_options_say_who_samples(library, options, trainer, behavior):
    assert presets.sampling(library, **options) == Sampling(trainer, behavior)
    changed = {"is_correction_level"} & set(options)
    alike = {"use_vllm": True} if options.get("use_vllm") else {}
    if not changed:  # the same dictionary makes the method that it made without them
        assert presets.PRESETS[library](**options) == presets.PRESETS[library](**alike)


@pytest.mark.parametrize(
    ("library", "options", "message"),
    [
        ("trl", {"temperature": 0.0}, "temperature"),
        ("trl", {"temperature": -1.0}, "temperature"),
        ("trl", {"top_p": 0.0}, "top_p"),
        ("trl", {"min_p": 1.5}, "min_p"),
        ("trl", {"generation_kwargs": {"num_beams": 4}}, "num_beams"),
        ("trl", {"tempreature": 0.7}, "did you mean temperature"),
        ("verl", {"name": "vlm"}, "did you mean vllm"),
        ("verl", {"logprobs_mode": "raw_logits"}, "raw_logprobs"),
        ("verl", {"do_sample": False}, "do_sample=False is not modelled"),
        ("areal", {"gconfig": {"greedy": True}}, "greedy=True is not modelled"),
        ("areal", {"gconfig": {"topp": 0.9}}, "areal.gconfig: topp.*did you mean top_p"),
        ("areal", {"backend": "sgl"}, "sglang"),
        ("prime_rl", {"extra_body": {"stop": "x"}}, "stop"),
        ("vrl", {}, "did you mean verl"),
    ],
)
def test_what_nobody_can_sample_is_named(library, options, message):
    with pytest.raises(ValueError, match=message):
        presets.sampling(library, **options)


def test_numbers_of_the_sampler_are_leaves():
    traced = {"temperature": jnp.asarray(0.7), "top_p": jnp.asarray(0.9)}
    made = [presets.sampling("trl", **o) for o in (traced, {"temperature": 0.7, "top_p": 0.9})]
    assert jax.tree.structure(made[0]) == jax.tree.structure(made[1])
    same = drawn(traced["temperature"])
    assert same.behavior is None
    assert same.trainer.temperature is traced["temperature"]


OPTIONS = {
    "trl": {"temperature": 0.7, "top_p": 0.8, "use_vllm": True},
    "areal": {"temperature": 0.8, "gconfig": {"temperature": 0.6, "top_p": 0.8}, "backend": "vllm"},
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("library", "drawn_at", "scored_at"), [("trl", 0.7, 0.7), ("areal", 0.6, 0.8)])
def test_a_run_samples_and_scores_as_the_library_does(library, drawn_at, scored_at):
    """A run's draws against softmaxes and a filter in NumPy; AReaL's vLLM reports the policy at 1."""
    logits = np.array([[1.0, 0.4, -0.3, -1.5], [0.2, 0.9, -2.0, 0.1]])
    found = presets.sampling(library, **OPTIONS[library])
    config = gj.Config(
        policy=gj.ActionPolicy(logits=logits, decoding=found.trainer),
        task=gj.Questions(table=np.eye(2, 4)),
        method=presets.PRESETS[library](**OPTIONS[library]),
        optimizer=gj.SGD(learning_rate=0.0),
        loop=gj.Loop(group_size=64),
        expectation=gj.Sampled(),
        behavior=found.behavior,
    )
    rollout = config.expectation.collect(config, gj.train.init(config)).rollout
    drawn_tokens = 0
    for prompt, row in enumerate(np.asarray(rollout.prompts)):
        p, scored, raw = (softmax(logits[row] / t) for t in (drawn_at, scored_at, 1.0))
        kept = top_p(p, 0.8)
        reported = np.where(kept, p / p[kept].sum(), 0) if library == "trl" else raw
        tokens = np.asarray(rollout.tokens)[prompt, :, 0]
        assert kept[tokens].all()
        assert not kept.all()
        np.testing.assert_allclose(rollout.old_logp[prompt, :, 0], np.log(scored[tokens]), rtol=1e-9)
        np.testing.assert_allclose(rollout.sampling_logp[prompt, :, 0], np.log(reported[tokens]), rtol=1e-9)
        drawn_tokens += len(set(tokens.tolist()))
    assert drawn_tokens > 2
