"""Transformers: an 8-seed sweep against torch, sampling with a cache, compiling, and runs of a chunk."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import grpo_jax as gj
from benchmarks.case import Unavailable
from benchmarks.implementations import torch_transformer
from grpo_jax.collectors import Sampled
from grpo_jax.policies.autoregressive import Autoregressive
from grpo_jax.runtime import compiler_options, cores
from grpo_jax.sweeps.layout import default_chunk

TOLERANCE = 1e-9
CHUNKS = (1, 2, 4, 8)
WIDTHS = (16, 32, 64)
SAMPLED = 20
"""Batches sampled in a round."""


@dataclasses.dataclass(frozen=True)
class NetworkCase:
    """GRPO on policy, without a penalty, AdamW behind a clip of the global norm at 1.

    Prompts are drawn from a table; the reward is the share of answered tokens that stand at their place in
    the prompt.
    """

    width: int = 64
    layers: int = 2
    heads: int = 4
    vocab: int = 16
    asked: int = 8
    answer: int = 8
    prompts: int = 16
    group: int = 16
    seeds: int = 8
    iterations: int = 10
    learning_rate: float = 3e-4

    @property
    def table(self) -> np.ndarray:
        """[1000, asked] prompts, no two alike."""
        drawn = np.random.default_rng(0).integers(0, self.vocab, (4000, self.asked))
        return np.unique(drawn, axis=0)[:1000]


CASE = NetworkCase()
SMALL = NetworkCase(width=16, layers=1, heads=2, prompts=2, group=4, seeds=2, iterations=2)
"""What a test can afford."""


def same_place(prompts: Any, tokens: Any, mask: Any) -> Any:
    """[P, N] share of answered tokens that equal the prompt's at their place."""
    return jnp.mean((tokens == prompts[:, None, : tokens.shape[2]]) * 1.0, 2)


def configuration(case: NetworkCase) -> gj.Config:
    """The case as the library's configuration."""
    space = gj.Sequences(vocab=case.vocab, horizon=case.answer)
    policy = gj.TransformerPolicy(
        space=space, prompt_length=case.asked, layers=case.layers, width=case.width, heads=case.heads
    )
    return gj.Config(
        policy=policy,
        task=gj.Verifiable(problems=gj.from_function(case.table, same_place, space), held_out=0.0),
        method=dataclasses.replace(gj.methods.grpo, penalty=None),
        optimizer=gj.ClippedNorm(inner=gj.AdamW(learning_rate=case.learning_rate)),
        loop=gj.Loop(prompts=case.prompts, group_size=case.group),
        expectation=Sampled(),
    )


def small_network() -> gj.Config:
    """An MLP on prompts that are ids, far below ``layout.LARGE`` parameters."""
    space = gj.Sequences(vocab=4, horizon=3)
    table = np.random.default_rng(0).random((4, space.size))
    return gj.Config(
        policy=gj.MLPPolicy(space=space, contexts=4, width=16),
        task=gj.SequenceTable(space=space, table=table),
        loop=gj.Loop(group_size=16),
        expectation=Sampled(),
    )


def parity(case: NetworkCase = CASE) -> dict[str, float]:
    """Greatest differences from torch in float64; RuntimeError beyond ``TOLERANCE``.

    The same weights sample the same tokens from the same uniforms. Log-probabilities and the gradient of the
    surrogate are taken away from θ_old, where the clip holds some of the gain.
    """
    torch_transformer.need_torch()
    torch, theirs = torch_transformer.torch, torch_transformer
    with jax.enable_x64(True):
        config = configuration(case)
        state = gj.train.init(config, 0)
        rng = np.random.default_rng(1)
        noise = 0.1 if case.width < 64 else 0.03
        params = jax.tree.map(lambda x: x + noise * jnp.asarray(rng.normal(size=x.shape)), state.params)
        assert config.expectation is not None
        batch = jax.jit(config.expectation.collect)(config, state)
        rollout = batch.rollout
        uniforms = rng.random(rollout.tokens.shape)
        drawn, _ = jax.jit(config.policy.sample)(params, rollout.prompts, uniforms)
        logp = jax.jit(config.policy.score)(params, rollout.prompts, rollout.tokens, rollout.mask).logp

        def negated(at: Any) -> Any:
            return -jnp.sum(Sampled().objective(config, batch, at)[0])

        gradient = theirs.loaded(jax.jit(jax.grad(negated))(params))
    own = {name: leaf.requires_grad_() for name, leaf in theirs.loaded(params).items()}
    asked, tokens, old = (
        torch.tensor(np.asarray(x)) for x in (rollout.prompts, rollout.tokens, rollout.old_logp)
    )
    advantage = theirs.advantages(torch.tensor(np.asarray(rollout.rewards[:, :, 0])))
    asked, tokens = asked.long(), tokens.long()
    other = theirs.log_probabilities(own, case.heads, asked, tokens)
    loss = theirs.surrogate(own, case.heads, asked, tokens, advantage, old)
    found = dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True))
    with torch.no_grad():
        again = theirs.sample(own, case.heads, asked, torch.tensor(uniforms))
    ratio = np.exp(np.asarray(logp) - np.asarray(rollout.old_logp))
    gaps = {
        "log-probabilities": float((other.detach() - torch.tensor(np.asarray(logp))).abs().max()),
        "gradient": max(float((found[name] - leaf).abs().max()) for name, leaf in gradient.items()),
        "sampled tokens": float((again.numpy() != np.asarray(drawn)).mean()),
    }
    size = max(float(leaf.abs().max()) for leaf in gradient.values())
    clipped = float(np.mean(np.abs(ratio - 1) > torch_transformer.CLIP))
    if size < 1e-4 or clipped < 0.01:
        raise RuntimeError(f"gradient {size:.1e}, clipped {clipped:.1e}: parity would prove little")
    different = {name: gap for name, gap in gaps.items() if not gap <= TOLERANCE}
    if different:
        raise RuntimeError(f"the library and torch differ: {different}")
    return gaps


def interleaved(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side, once a round, after a round that warms up."""
    from benchmarks.measure import PAUSE

    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds + 1):
        for name, run in sides.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            run()
            if i:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def training(case: NetworkCase, rounds: int, compiled: bool = True) -> dict[str, Any]:
    """The sweep against torch: medians of whole calls, and ratios to the better way that torch has."""
    config = configuration(case)
    running: list[float] = []

    def ours() -> None:
        data = gj.sweep(
            config, seeds=case.seeds, iterations=case.iterations, record=["reward"], progress=False
        )
        running.append(data.attrs["run_seconds"])

    sides: dict[str, Callable[[], Any]] = {"grpo_jax": ours}
    try:
        starts = [gj.train.init(config, seed).params for seed in range(case.seeds)]
        for name, on in (("eager", False), ("torch.compile", True)):
            if on and not compiled:
                continue
            ways = torch_transformer.prepare(case, starts, cores(), compiled=on)
            sides |= {f"{name}: {way}": run for way, run in ways.items()}
    except Unavailable as missing:
        print(missing)
    seconds = interleaved(sides, rounds)
    medians = {name: statistics.median(s) for name, s in seconds.items()}
    medians["grpo_jax, running"] = statistics.median(running[1:])
    work = case.seeds * case.iterations
    print(f"\n| {case.seeds} seeds, {case.iterations} iterations | ms a run-iteration | greatest/least |")
    print("|---|---|---|")
    for name, median in medians.items():
        spread = f"{max(seconds[name]) / min(seconds[name]):.2f}" if name in seconds else ""
        print(f"| {name} | {1e3 * median / work:.1f} | {spread} |")
    found: dict[str, Any] = {"seconds": seconds, "medians": medians, "ratios": {}}
    for name, target in (("eager", 2.0), ("torch.compile", 1.0)):
        ways = {n: m for n, m in medians.items() if n.startswith(f"{name}:")}
        if ways:
            best = min(ways, key=ways.__getitem__)
            ratio = found["ratios"][name] = ways[best] / medians["grpo_jax"]
            only = ways[best] / medians["grpo_jax, running"]
            print(f"torch {best} / grpo_jax: {ratio:.2f} whole call, {only:.2f} running; target {target:g}")
    return found


def sampling(case: NetworkCase, rounds: int) -> dict[str, Any]:
    """A batch sampled with the cache, and with all logits computed anew at every step."""
    policy = configuration(case).policy
    params = policy.init(jax.random.key(0))
    prompts = jnp.asarray(case.table[: case.prompts])
    uniforms = jnp.asarray(
        np.random.default_rng(0).random((case.prompts, case.group, case.answer)), jnp.float32
    )
    sides = {}
    for name, sample in (("cache", type(policy).sample), ("recomputed", Autoregressive.sample)):
        compiled = jax.jit(sample, compiler_options=compiler_options(networks=True))

        def run(compiled: Any = compiled) -> None:
            for _ in range(SAMPLED):
                jax.block_until_ready(compiled(policy, params, prompts, uniforms))

        sides[name] = run
    seconds = interleaved(sides, rounds)
    ratio = statistics.median(seconds["recomputed"]) / statistics.median(seconds["cache"])
    each = {name: 1e3 * statistics.median(s) / SAMPLED for name, s in seconds.items()}
    print(
        f"\nsampling: {each['cache']:.1f} ms with the cache, {each['recomputed']:.1f} without: {ratio:.1f}; "
        "target 4"
    )
    return {"seconds": seconds, "ratio": ratio}


CHILD = """
import json, sys, time
from benchmarks.networks import NetworkCase, configuration
import grpo_jax as gj
case = NetworkCase(**json.loads(sys.argv[1]))
config = configuration(case)
start, busy = time.perf_counter(), time.process_time()
data = gj.sweep(config, seeds=case.seeds, iterations=1, record=["reward"], progress=False)
print(json.dumps({"compiling": data.attrs["compile_seconds"], "call": time.perf_counter() - start,
                  "core-seconds of the call": time.process_time() - busy}))
"""


def compiling(case: NetworkCase) -> dict[str, Any]:
    """Seconds of a process's first sweep, of one iteration: with an empty cache, and once more."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        own = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
        given = json.dumps(dataclasses.asdict(case))
        for name in ("cold", "cached"):
            done = subprocess.run(
                [sys.executable, "-c", CHILD, given],
                env=own | {"GRPO_JAX_CACHE": folder}, check=True, capture_output=True, text=True,
            )  # fmt: skip
            found[name] = json.loads(done.stdout)
            print(
                f"{name}:",
                ", ".join(f"{k} {v:.2f} s" for k, v in found[name].items()),
                "(compiling: target 5)",
            )
    return found


def layouts(case: NetworkCase, rounds: int) -> dict[str, Any]:
    """Seconds a run-iteration by runs in a chunk, of three widths of transformer and of an MLP."""
    configs = {f"transformer, width {w}": configuration(dataclasses.replace(case, width=w)) for w in WIDTHS}
    configs["MLP"] = small_network()
    found: dict[str, Any] = {}
    runs = 2 * case.seeds
    print("\n| ms a run-iteration, runs in a chunk |", " | ".join(map(str, CHUNKS)), "| default |")
    print("|---|" + "---|" * (len(CHUNKS) + 1))
    for name, config in configs.items():
        seconds: dict[int, list[float]] = {size: [] for size in CHUNKS}
        count = case.iterations * (50 if name == "MLP" else 1)
        for i in range(rounds + 1):
            for size in CHUNKS:
                data = gj.sweep(
                    config, seeds=runs, iterations=count, record=["reward"], chunk_size=size, progress=False
                )
                if i:
                    seconds[size].append(data.attrs["run_seconds"] / (runs * count))
        medians = {size: statistics.median(s) for size, s in seconds.items()}
        default, best = default_chunk(config, runs, 1), min(medians, key=medians.__getitem__)
        cells = " | ".join(f"{1e3 * m:.3g}" for m in medians.values())
        loss = medians[default] / medians[best] if default in medians else float("nan")
        print(f"| {name} | {cells} | {default}: {loss:.2f} of the fastest's time ({best}) |", flush=True)
        found[name] = {"seconds": seconds, "default": default, "fastest": best, "default/fastest": loss}
    return found


def main(rounds: int, case: NetworkCase = CASE, *, compiled: bool = True) -> dict[str, Any]:
    """Parity first, then all that is timed; prints tables and returns the numbers."""
    from benchmarks.measure import machine

    found: dict[str, Any] = {"machine": machine(), "case": dataclasses.asdict(case)}
    try:
        found["parity"] = parity(case)
        print(
            "parity, float64:", ", ".join(f"{n} {gap:.1e}" for n, gap in found["parity"].items()), flush=True
        )
    except Unavailable as missing:
        print(f"{missing}: no parity, no comparison")
    found["training"] = training(case, rounds, compiled)
    found["sampling"] = sampling(case, rounds)
    found["compiling"] = compiling(case)
    found["layouts"] = layouts(case, rounds)
    return found
