"""Six methods' J as formulas in NumPy."""

import numpy as np


def by_hand(name: str, rewards: np.ndarray, logp: np.ndarray, mask: np.ndarray, coef: float) -> np.ndarray:
    """[H] J of every group, from rewards [H, P, G], logp [3, H, P, G, T] and mask [H, P, G, T]."""
    new, old, ref = logp
    prompts, size = rewards.shape[1:]
    length = mask.sum(3)
    spread = rewards.std(2, keepdims=True)
    shift = rewards - rewards.mean(2, keepdims=True)
    scaled = np.divide(shift, spread, out=np.zeros_like(shift), where=np.ptp(rewards, 2)[..., None] > 0)
    others = (rewards.sum(2, keepdims=True) - rewards) / (size - 1)
    weighted = rewards - (length * rewards).sum(2, keepdims=True) / length.sum(2, keepdims=True)
    k3 = np.exp(ref - new) - (ref - new) - 1
    token = np.exp(new - old)
    whole = np.exp((new - old).sum(3))[..., None]

    def clipped(ratio, a, low=0.2, high=0.2):
        a = a[..., None]
        return np.minimum(ratio * a, np.clip(ratio, 1 - low, 1 + high) * a) - coef * k3

    each_sequence = mask / length[..., None] / (prompts * size)
    each_entry = mask / (prompts * size)
    terms = {
        "grpo": lambda: each_sequence * clipped(token, scaled),
        "dr_grpo": lambda: each_entry * clipped(token, shift),
        "rloo": lambda: each_sequence * clipped(whole, rewards - others),
        "opo": lambda: each_entry * (weighted[..., None] * new - coef * k3),
        "group_tokens": lambda: mask / length.sum(2)[..., None, None] / prompts * clipped(token, shift),
        "dapo": lambda: mask / length.sum((1, 2))[:, None, None, None] * clipped(token, scaled, high=0.28),
    }
    return terms[name]().sum((1, 2, 3))


HAND = ("grpo", "dr_grpo", "rloo", "opo", "group_tokens", "dapo")
