"""Next-token training on a mix of answers with a chain of thought and answers without one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax import warm_start
from grpo_jax.random import Stream, uniforms

TASK = gj.Verifiable(problems=gj.Parity(bits=3, chain="optional"), held_out=0.25)
POLICY = gj.TransformerPolicy(space=TASK.space, prompt_length=TASK.prompt_length, layers=1, width=8, heads=2)
BATCH, SEED = 16, 5


def answer(prompt, long):
    """Running parities of "101=" or the last of them alone, then EOS (3), and zeros; and what counts."""
    running = [sum(prompt[: k + 1]) % 2 for k in range(3)]
    said = [*(running if long else running[-1:]), 3]
    return said + [0] * (4 - len(said)), [1] * len(said) + [0] * (4 - len(said))


@pytest.mark.parametrize("long", [0.0, 0.3, None])
def test_one_step_descends_the_likelihood_of_the_answers_that_the_share_says(long):
    """One step of SGD is −lr times the gradient of −Σ log π(token)/tokens, on answers written by hand."""
    made = warm_start.imitate(
        POLICY, TASK, steps=1, long=long, optimizer=gj.SGD(learning_rate=0.5), batch=BATCH, seed=SEED
    )
    start = POLICY.init(jax.random.fold_in(jax.random.key(0), SEED))
    at = (jnp.uint32(SEED), jnp.uint32(0), jnp.uint32(0))
    prompts = np.asarray(TASK.prompts(uniforms(*at, Stream.PROMPT, (BATCH,))))
    coins = np.asarray(uniforms(*at, Stream.REWARD, (BATCH, 1)))[:, 0]
    shown = np.ones(BATCH, bool) if long is None else coins < long
    assert long != 0.3 or 0 < shown.sum() < BATCH / 2 + 1
    tokens, mask = (
        np.array(each)
        for each in zip(
            *(answer(list(map(int, p[:3])), s) for p, s in zip(prompts, shown, strict=True)), strict=True
        )
    )

    def loss(params):
        logp = POLICY.score(params, prompts, tokens[:, None], mask[:, None].astype(float)).logp
        return -jnp.sum(logp) / mask.sum()

    slope = jax.grad(loss)(start)
    for new, old, down in zip(*map(jax.tree.leaves, (made.start, start, slope)), strict=True):
        np.testing.assert_allclose(new, old - 0.5 * down, atol=2e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"long": 1.5}, r"long is 1\.5; it must be a share in \[0, 1\]"),
        ({"long": True}, "long is True"),
        ({"long": float("nan")}, "long is nan"),
        ({"steps": 0}, "steps"),
        ({"batch": 0}, "batch"),
    ],
)
def test_imitations_that_cannot_be(options, words):
    with pytest.raises(ValueError, match=words):
        warm_start.imitate(POLICY, TASK, **{"steps": 1, **options})


def test_problems_without_short_answers_say_so():
    task = gj.Verifiable(problems=gj.Addition(digits=1))
    policy = dataclasses.replace(POLICY, space=task.space, prompt_length=task.prompt_length)
    with pytest.raises(ValueError, match="Addition has no answers without a chain of thought"):
        warm_start.imitate(policy, task, steps=1, long=0.5)
    with pytest.raises(ValueError, match="Addition has no answers without a chain of thought"):
        warm_start.fit(policy, task, long=0.5, progress=False)


def test_a_task_without_short_answers_says_so():
    @dataclasses.dataclass(frozen=True)
    class Shows:
        def held_out_prompts(self, uniforms):
            return TASK.held_out_prompts(uniforms)

        def grade(self, prompts, tokens, mask):
            return TASK.grade(prompts, tokens, mask)

        def demonstrations(self, uniforms):
            return TASK.demonstrations(uniforms)

    with pytest.raises(ValueError, match="Shows has no short answers to mix with long ones"):
        warm_start.imitate(POLICY, Shows(), steps=1, long=0.5)
