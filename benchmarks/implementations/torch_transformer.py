"""The library's transformer in plain PyTorch, and GRPO on it: cached sampling, autograd, fused AdamW.

Letters of shapes as in ``grpo_jax.policies.attention``. A function sees one run; ``torch.func.vmap`` makes it
several. Prompts have no padding. Their keys and values are computed once a group.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.case import Unavailable

try:
    import torch
    from torch.nn import functional
except ImportError:
    torch = None

CLIP = 0.2
WAYS = ("seeds one by one, all threads", "seeds one by one, a thread a core", "seeds together by vmap")


def need_torch() -> None:
    """Unavailable where there is none."""
    if torch is None:
        raise Unavailable("torch is not installed")


def loaded(params: Any) -> dict[str, Any]:
    """A flax dictionary as a flat one of tensors."""
    flat = {}

    def walk(path: str, tree: Any) -> None:
        for name, leaf in tree.items():
            if isinstance(leaf, dict):
                walk(f"{path}{name}.", leaf)
            else:
                flat[path + name] = torch.tensor(np.asarray(leaf))

    walk("", params["params"])
    return flat


def norm(x, scale):
    """RMSNorm."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * scale


def turns(first: int, count: int, width: int, like):
    """cos and sin [T, K/2] of rotary positions first..first + count − 1."""
    rate = 10_000.0 ** (-torch.arange(width // 2, dtype=like.dtype) / (width // 2))
    angle = torch.arange(first, first + count, dtype=like.dtype)[:, None] * rate
    return torch.cos(angle), torch.sin(angle)


def rotated(x, turn):
    """x [..., T, K]."""
    a, b = x.chunk(2, -1)
    cos, sin = turn
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def attended(query, key, value, far, bias):
    """[P, N, H, T, K]; ``far`` are keys and values [P, H, Q, K] that all answers of a prompt share."""
    count, group, heads, length, width = query.shape
    query = query * width**-0.5
    near = query @ key.transpose(-1, -2)
    near = near if bias is None else near + bias
    if far is None:
        return torch.softmax(near, -1) @ value
    # One product for a prompt's whole group.
    shared = query.transpose(1, 2).reshape(count, heads, group * length, width)
    seen = (shared @ far[0].transpose(-1, -2)).reshape(count, heads, group, length, -1).transpose(1, 2)
    weight = torch.softmax(torch.cat([seen, near], -1), -1)
    asked = far[0].shape[-2]
    shared = weight[..., :asked].transpose(1, 2).reshape(count, heads, group * length, asked)
    out = (shared @ far[1]).reshape(count, heads, group, length, width).transpose(1, 2)
    return out + weight[..., asked:] @ value


def forward(p, heads: int, tokens, first: int, prefix, own):
    """Logits [P, N, T, V] of tokens at places ``first``..., and every layer's keys and values, own before."""
    count, group, length = tokens.shape
    x = functional.embedding(tokens, p["embed.embedding"])
    width, memories, layer = x.shape[-1], [], 0
    turn = turns(first, length, width // heads, x)
    causal = torch.full((length, length), -1e30, dtype=x.dtype).triu(1) if length > 1 else None
    while f"wide_{layer}.kernel" in p:
        y = norm(x, p[f"norm_attention_{layer}.scale"]) @ p[f"attention_{layer}.qkv.kernel"]
        query, key, value = (
            part.reshape(count, group, length, heads, -1).transpose(2, 3) for part in y.chunk(3, -1)
        )
        query, key = rotated(query, turn), rotated(key, turn)
        if own is not None:
            key, value = torch.cat([own[layer][0], key], 3), torch.cat([own[layer][1], value], 3)
        memories.append((key, value))
        far = None if prefix is None else prefix[layer]
        y = attended(query, key, value, far, causal).transpose(2, 3).reshape(x.shape)
        x = x + y @ p[f"attention_{layer}.out.kernel"]
        y = norm(x, p[f"norm_network_{layer}.scale"]) @ p[f"wide_{layer}.kernel"]
        x = x + functional.gelu(y, approximate="tanh") @ p[f"narrow_{layer}.kernel"]
        layer += 1
    return norm(x, p["norm.scale"]) @ p["logits.kernel"], memories


def read(p, heads: int, prompts):
    """Keys and values [P, H, Q − 1, K] of all but the prompts' last tokens."""
    memories = forward(p, heads, prompts[:, None, :-1], 0, None, None)[1]
    return [(key[:, 0], value[:, 0]) for key, value in memories]


def log_probabilities(p, heads: int, prompts, tokens):
    """[P, N, T] of given answers."""
    last = prompts[:, None, -1:].expand(-1, tokens.shape[1], 1)
    given = torch.cat([last, tokens[:, :, :-1]], 2)
    logits, _ = forward(p, heads, given, prompts.shape[1] - 1, read(p, heads, prompts), None)
    return torch.log_softmax(logits, -1).gather(3, tokens[..., None])[..., 0]


def sample(p, heads: int, prompts, uniforms):
    """[P, N, T] by inverse CDF, with a cache."""
    prefix, own = read(p, heads, prompts), None
    token = prompts[:, None, -1:].expand(-1, uniforms.shape[1], 1)
    drawn = []
    for t in range(uniforms.shape[2]):
        logits, own = forward(p, heads, token, prompts.shape[1] - 1 + t, prefix, own)
        upto = torch.cumsum(torch.softmax(logits, -1), -1)
        token = (uniforms[:, :, t, None, None] * upto[..., -1:] >= upto[..., :-1]).sum(-1)
        drawn.append(token)
    return torch.cat(drawn, 2)


def advantages(rewards):
    """[..., P, N] normalised within the group; 0 for ties."""
    deviation = rewards - rewards.mean(-1, keepdim=True)
    spread = rewards.std(-1, keepdim=True, unbiased=False)
    tied = rewards.amax(-1, keepdim=True) == rewards.amin(-1, keepdim=True)
    return torch.where(tied, 0, deviation / torch.where(tied, 1, spread))


def surrogate(p, heads: int, prompts, tokens, advantage, old=None):
    """−J of GRPO without a penalty; on policy, π_old is π itself."""
    logp = log_probabilities(p, heads, prompts, tokens)
    ratio = torch.exp(logp - (logp.detach() if old is None else old))
    a = advantage[:, :, None]
    return -torch.minimum(ratio * a, ratio.clamp(1 - CLIP, 1 + CLIP) * a).mean()


class Trainer:
    """Runs [R] of a case, all by one call; ``compiled``: sampling, and scores with their gradient."""

    def __init__(self, case: Any, starts: list[dict[str, Any]], *, together: bool, compiled: bool) -> None:
        self.case, self.starts, self.together = case, starts, together
        heads = case.heads
        lift: Callable[..., Any] = torch.func.vmap if together else lambda f: f
        self.draw = lift(lambda p, prompts, uniforms: sample(p, heads, prompts, uniforms))
        losses = lift(lambda p, prompts, tokens, advantage: surrogate(p, heads, prompts, tokens, advantage))

        def loss(*given):
            return losses(*given).sum()

        self.loss = loss
        if compiled:
            self.draw = torch.compile(self.draw, dynamic=False)
            self.loss = torch.compile(self.loss, dynamic=False)

    def train(self, start: dict[str, Any], lead: tuple[int, ...]) -> Any:
        """Mean rewards [iterations, ...] of one run, or of stacked ones."""
        case = self.case
        p = {name: leaf.clone().requires_grad_() for name, leaf in start.items()}
        leaves = list(p.values())
        optimizer = torch.optim.AdamW(
            leaves, lr=case.learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True
        )
        table, found = torch.tensor(case.table), []
        for _ in range(case.iterations):
            prompts = table[torch.randint(len(table), (*lead, case.prompts))]
            uniforms = torch.rand((*lead, case.prompts, case.group, case.answer))
            with torch.no_grad():
                tokens = self.draw(p, prompts, uniforms)
                hits = tokens == prompts[..., :, None, : case.answer]
                rewards = hits.to(uniforms.dtype).mean(-1)
                advantage = advantages(rewards)
            grads = torch.autograd.grad(self.loss(p, prompts, tokens, advantage), leaves)
            with torch.no_grad():
                self.clip(grads, len(lead))
            for leaf, grad in zip(leaves, grads, strict=True):
                leaf.grad = grad
            optimizer.step()
            found.append(rewards.mean((-1, -2)))
        return torch.stack(found)

    @staticmethod
    def clip(grads: Any, lead: int) -> None:
        """Global norm of each run at most 1, in place."""
        if not lead:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            torch._foreach_mul_(grads, 1 / norm.clamp(min=1))
            return
        squares = torch.stack([grad.flatten(1).square().sum(1) for grad in grads]).sum(0)
        factor = 1 / squares.sqrt().clamp(min=1)
        for grad in grads:
            grad.mul_(factor.reshape(-1, *[1] * (grad.ndim - 1)))

    def __call__(self) -> Any:
        """Mean rewards [iterations, R]."""
        if self.together:
            stacked = {name: torch.stack([s[name] for s in self.starts]) for name in self.starts[0]}
            return self.train(stacked, (len(self.starts),))
        return torch.stack([self.train(start, ()) for start in self.starts], 1)


class OnThreads:
    """Seeds one by one on a pool of threads, each with one core."""

    def __init__(self, trainer: Trainer, cores: int) -> None:
        self.trainer = trainer
        self.pool = ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,))

    def __call__(self) -> Any:
        """Mean rewards [iterations, R]."""
        given = self.trainer.starts
        return torch.stack(list(self.pool.map(lambda start: self.trainer.train(start, ()), given)), 1)


def prepare(case: Any, starts: list[Any], cores: int, *, compiled: bool) -> dict[str, Callable[[], Any]]:
    """Each of ``WAYS`` that torch can do, warmed up."""
    need_torch()
    runs = [loaded(start) for start in starts]
    found: dict[str, Callable[[], Any]] = {}
    for way in WAYS:
        trainer = Trainer(case, runs, together=way == WAYS[2], compiled=compiled)
        found[way] = OnThreads(trainer, cores) if way == WAYS[1] else trainer
    return found
