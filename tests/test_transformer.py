"""The transformer against plain NumPy, its own cache, its padding and its list of outputs."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax.policies import TransformerPolicy
from grpo_jax.policies.autoregressive import Autoregressive

SPACE = gj.Sequences(vocab=5, horizon=4, eos=4, forbidden=((0, 4), (1, 2)))
PROMPTS = np.array([[-1, -1, 3], [2, 0, 1], [-1, 4, 4]])
SHAPES = [
    {"layers": 2, "width": 16, "heads": 2},
    {"layers": 1, "width": 12, "heads": 3, "learned_positions": True, "tied": True},
]


@jax.jit
def scored(policy, params, prompts, tokens, mask):
    return policy.score(params, prompts, tokens, mask)


@jax.jit
def sampled(policy, params, prompts, uniforms):
    return policy.sample(params, prompts, uniforms)


def made(**options):
    return TransformerPolicy(space=SPACE, prompt_length=3, **options)


def stirred(policy, seed=0):
    """Parameters none of which is at a special value."""
    rng = np.random.default_rng(seed)
    start = policy.init(jax.random.key(seed))
    return jax.tree.map(lambda leaf: leaf + 0.3 * jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), start)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def by_hand(policy, params, sequence):
    """[L, V] logits of one whole sequence without padding, position by position and head by head."""
    p = jax.tree.map(np.asarray, params["params"])
    width, heads = policy.width, policy.heads
    each = width // heads

    def norm(x, name):
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * p[name]["scale"]

    def turned(x, position):
        rate = 10_000.0 ** (-np.arange(each // 2) / (each // 2))
        pairs = (x[: each // 2] + 1j * x[each // 2 :]) * np.exp(1j * position * rate)
        return np.concatenate([pairs.real, pairs.imag])

    x = p["embed"]["embedding"][sequence]
    if policy.learned_positions:
        x = x + p["place"]["embedding"][np.arange(len(sequence))]
    for layer in range(policy.layers):
        y = norm(x, f"norm_attention_{layer}")
        query, key, value = np.split(y @ p[f"attention_{layer}"]["qkv"]["kernel"], 3, 1)
        out = np.zeros_like(x)
        for head, t in itertools.product(range(heads), range(len(sequence))):
            own = slice(head * each, (head + 1) * each)
            rotate = (lambda v, i: v) if policy.learned_positions else turned
            scores = np.array(
                [rotate(query[t, own], t) @ rotate(key[s, own], s) / np.sqrt(each) for s in range(t + 1)]
            )
            weights = np.exp(scores - scores.max())
            out[t, own] = weights / weights.sum() @ value[: t + 1, own]
        x = x + out @ p[f"attention_{layer}"]["out"]["kernel"]
        y = norm(x, f"norm_network_{layer}")
        x = x + gelu(y @ p[f"wide_{layer}"]["kernel"]) @ p[f"narrow_{layer}"]["kernel"]
    x = norm(x, "norm")
    return x @ (p["embed"]["embedding"].T if policy.tied else p["logits"]["kernel"])


@pytest.mark.parametrize("options", SHAPES)
@pytest.mark.usefixtures("x64")
def test_scores_are_those_of_a_plain_transformer(options):
    policy = made(**options)
    params = stirred(policy)
    tokens, mask = (x[::17] for x in SPACE.support)
    given = [np.broadcast_to(x, (len(PROMPTS), *x.shape)) for x in (tokens, mask)]
    found = np.asarray(scored(policy, params, PROMPTS, *map(jnp.asarray, given)).logp)
    for i, prompt in enumerate(PROMPTS):
        asked = prompt[prompt >= 0]
        for j, answer in enumerate(tokens):
            logits = by_hand(policy, params, np.concatenate([asked, answer[:-1]]))[len(asked) - 1 :]
            logits = np.where(SPACE.allowed, logits, -np.inf)
            logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            wanted = np.where(mask[j] > 0, logp[np.arange(4), answer], 0)
            np.testing.assert_allclose(found[i, j], wanted, atol=1e-10)


@pytest.mark.parametrize("options", SHAPES)
@pytest.mark.usefixtures("x64")
def test_the_sampler_s_distribution_is_the_one_that_is_scored(options):
    """A uniform just inside a token's interval of the scored distribution gives that token."""
    policy = made(**options)
    params = stirred(policy)
    tokens, mask = SPACE.support
    shape = (len(PROMPTS), *tokens.shape)
    uniforms = np.zeros((2, *shape))
    for t in range(4):
        for v in range(5):
            # Every answer with its token at t replaced: the law of that token given what is before.
            other = tokens.copy()
            other[:, t] = v
            ones = jnp.ones(shape)
            logp = scored(policy, params, PROMPTS, jnp.broadcast_to(other, shape), ones).logp[:, :, t]
            chance = np.where(SPACE.allowed[t, v], np.exp(logp), 0)
            uniforms[0, :, :, t] += np.where(v < tokens[:, t], chance, 0)
            uniforms[1, :, :, t] += np.where(v <= tokens[:, t], chance, 0)
    for given in (uniforms[0] + 1e-9, uniforms[1] - 1e-9):
        drawn, live = sampled(policy, params, PROMPTS, jnp.asarray(given))
        np.testing.assert_array_equal(live, np.broadcast_to(mask, shape))
        np.testing.assert_array_equal(drawn, np.broadcast_to(tokens, shape))


def test_the_cache_samples_what_whole_passes_sample_in_single_precision():
    policy = made(**SHAPES[0])
    params = stirred(policy)
    uniforms = np.random.default_rng(1).uniform(size=(3, 400, 4)).astype(np.float32)
    cached = sampled(policy, params, PROMPTS, uniforms)
    whole = jax.jit(Autoregressive.sample)(policy, params, PROMPTS, uniforms)
    assert np.mean(np.any(np.asarray(cached[0]) != np.asarray(whole[0]), 2)) < 0.002


@pytest.mark.parametrize("options", SHAPES)
@pytest.mark.usefixtures("x64")
def test_padding_changes_nothing(options):
    """Neither more padding before a prompt nor what stands behind EOS."""
    policy = made(**options)
    params = stirred(policy)
    uniforms = np.random.default_rng(2).uniform(size=(3, 40, 4))
    tokens, mask = sampled(policy, params, PROMPTS, uniforms)
    assert 0 < np.mean(np.asarray(mask)) < 1
    logp = scored(policy, params, PROMPTS, tokens, mask).logp
    wider = np.concatenate([np.full((3, 2), -1), PROMPTS], 1)
    if not policy.learned_positions:  # these have one row for each place
        longer = dataclasses.replace(policy, prompt_length=5)
        np.testing.assert_allclose(scored(longer, params, wider, tokens, mask).logp, logp, atol=1e-12)
        np.testing.assert_array_equal(sampled(longer, params, wider, uniforms)[0], tokens)
    rubbish = jnp.where(mask > 0, tokens, np.random.default_rng(3).integers(0, 5, tokens.shape))
    np.testing.assert_array_equal(scored(policy, params, PROMPTS, rubbish, mask).logp, logp)


@pytest.mark.usefixtures("x64")
def test_gradients_are_causal():
    """Logits of step t have a gradient in the embedding of every place up to it, and of no later one."""
    policy = made(**SHAPES[1])
    params = stirred(policy)
    prompt, tokens = np.array([[0, 1, 2]]), jnp.array([[[3, 1, 0, 2]]])

    def logits(places):
        given = {"params": params["params"] | {"place": {"embedding": places}}}
        return policy.token_logits(given, prompt, tokens)[0, 0]

    gradient = np.abs(np.asarray(jax.jacrev(logits)(params["params"]["place"]["embedding"]))).sum((1, 3))
    for step, place in np.ndindex(gradient.shape):
        assert (gradient[step, place] > 1e-6) == (place <= 2 + step), (step, place)


@pytest.mark.usefixtures("x64")
def test_exact_expectations_apply_where_answers_can_be_listed():
    """J, its gradient through the surrogate of Exact, and the sum of all probabilities."""
    space = gj.Sequences(vocab=3, horizon=2, eos=2)
    policy = TransformerPolicy(space=space, contexts=2, layers=1, width=8, heads=2)
    table = np.array([[0.0, 0.3, 1.0, 0.2, 0.9, 0.4, 0.7], [0.5, 0.0, 0.1, 1.0, 0.3, 0.2, 0.6]])[
        :, : space.size
    ]
    params = stirred(policy)
    task = gj.SequenceTable(space=space, table=table)

    def chances(at):
        return jnp.exp(jnp.sum(policy.score_support(at, np.arange(2)).logp, 2))

    np.testing.assert_allclose(chances(params).sum(1), 1, atol=1e-12)
    wanted = jax.grad(lambda at: jnp.mean(jnp.sum(chances(at) * table, 1)))(params)
    config = gj.Config(
        policy=dataclasses.replace(policy, start=jax.tree.map(np.asarray, params)),
        task=task, method=gj.methods.get("reinforce"), optimizer=gj.SGD(learning_rate=1.0),
        loop=gj.Loop(group_size=1), expectation=gj.Exact(),
    )  # fmt: skip
    after, info = gj.train.run(config, gj.train.init(config, 0), iterations=1, record=["expected_reward"])
    moved = jax.tree.map(lambda new, old: np.asarray(new - old), after.params, params)
    for (name, own), other in zip(
        jax.tree_util.tree_leaves_with_path(moved), jax.tree.leaves(wanted), strict=True
    ):
        np.testing.assert_allclose(own, other, atol=1e-12, err_msg=jax.tree_util.keystr(name))
    np.testing.assert_allclose(info["expected_reward"][0], np.mean(np.sum(chances(after.params) * table, 1)))


def test_a_sweep_is_its_runs_one_by_one():
    problems = gj.Verifiable(problems=gj.Addition(digits=1), length_cost=0.1)
    policy = TransformerPolicy(
        space=problems.space, prompt_length=problems.prompt_length, layers=1, width=8, heads=2
    )
    config = gj.Config(
        policy=policy, task=problems, loop=gj.Loop(prompts=3, group_size=4), method=gj.methods.grpo
    )
    rates = [1e-3, 1e-2]
    data = gj.sweep(
        config, {"learning_rate": rates}, seeds=[3, 5], iterations=3, record=["reward", "grad_norm"],
        progress=False, measure={"held_out": gj.measures.held_out(16)},
    )  # fmt: skip
    assert data.reward.shape == (2, 2, 3)
    for rate, seed in itertools.product(rates, (3, 5)):
        one = dataclasses.replace(config, optimizer=gj.AdamW(learning_rate=rate))
        _, info = gj.train.run(
            one, gj.train.init(one, seed), iterations=3, record=["reward", "grad_norm"],
            measure={"held_out": gj.measures.held_out(16)},
        )  # fmt: skip
        here = data.sel(learning_rate=rate, seed=seed)
        for name in ("reward", "grad_norm", "held_out"):
            np.testing.assert_allclose(here[name], info[name], rtol=2e-4, err_msg=name)
    apart = data.grad_norm.isel(iteration=0)
    assert abs(apart[0, 0] - apart[0, 1]) > 1e-4
    np.testing.assert_allclose(apart[0], apart[1], rtol=1e-5)


def test_half_precision_is_stored_and_computed_apart():
    for options, stored in (({"dtype": "bfloat16"}, jnp.float32), ({"storage": "bfloat16"}, jnp.bfloat16)):
        policy = made(**SHAPES[0], **options)
        params = policy.init(jax.random.key(0))
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(stored)}
        tokens, mask = sampled(policy, params, PROMPTS, jnp.full((3, 4, 4), 0.5))
        near = scored(policy, params, PROMPTS, tokens, mask)
        assert near.logp.dtype == jnp.float32
        plain = scored(
            made(**SHAPES[0]),
            jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params),
            PROMPTS,
            tokens,
            mask,
        )
        gap = float(jnp.abs(near.logp - plain.logp).max())
        assert 0 < gap < 0.05 if "dtype" in options else gap < 1e-5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": 3, "width": 16}, "3 heads do not divide a width of 16"),
        ({"heads": 2, "width": 6}, "cannot be rotated in pairs"),
        ({"dtype": "float16"}, "'float16'; it must be one of float32, bfloat16, float64"),
        ({"contexts": 2}, "says that prompts are ids"),
        ({"layers": 0}, "layers"),
    ],
)
def test_bad_architectures_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        made(**options)


def test_a_start_of_another_architecture_and_prompts_of_another_length_are_refused():
    small, large = made(layers=1, width=8, heads=2), made(layers=1, width=16, heads=2)
    with pytest.raises(ValueError, match=r"another architecture: .* has shape \(8, .*needs \(16"):
        dataclasses.replace(large, start=small.init(jax.random.key(0)))
    with pytest.raises(ValueError, match=r"prompts have shape \(3, 2\); this policy reads \[P, 3\]"):
        small.sample(small.init(jax.random.key(0)), PROMPTS[:, 1:], jnp.zeros((3, 1, 4)))
