"""What a sweep says of itself is true of every variant: labels, attributes, warnings, the closing line."""

import jax.numpy as jnp
import numpy as np

import grpo_jax as gj
from grpo_jax.sequences import Sequences

QUIET = {"seeds": 2, "progress": False}
CONFIG = gj.Config(
    policy=gj.ActionPolicy.uniform(contexts=1, actions=3),
    task=gj.Questions(table=[[1.0, 0.5, 0.0]]),
    loop=gj.Loop(group_size=4),
)


def length(prompts, tokens, mask):
    return jnp.sum(mask, 2)


def test_outputs_are_labelled_by_tokens_only_where_all_variants_list_the_same():
    """With EOS 2 the outputs are 2, 02, 12, 00, 01, ...; with EOS 0 they are 0, 10, ...: seven each."""
    last, first = (gj.TreePolicy.uniform(Sequences(vocab=3, horizon=2, eos=eos)) for eos in (2, 0))
    tree = gj.Config(policy=last, task=gj.SequenceReward(function=length), loop=gj.Loop(group_size=4))
    asked = {"iterations": 1, "record": ["probabilities", "reward"], **QUIET}
    apart = gj.sweep(tree, variants={"policy": {"last": last, "first": first}}, **asked)
    np.testing.assert_array_equal(apart.output, np.arange(7))
    alike = gj.sweep(tree, variants={"group_size": [4, 5]}, **asked)
    tokens = {"<eos>", *(f"{i} {j}" for i in "01" for j in ("0", "1", "<eos>"))}
    assert set(alike.output.values) == tokens
