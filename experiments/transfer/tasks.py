"""What is asked: three prompts of unequal difficulty, with rewards that read different things."""

from __future__ import annotations

import numpy as np

from experiments.transfer.policies import EOS, LENGTH, PROMPTS, SPACE, TOKENS

_RNG = np.random.default_rng(14)
SHARES = (0.15, 0.4, 0.7)
"""Share of the answers that are right, by prompt."""
BINARY = np.stack([_RNG.permutation(SPACE.size) < share * SPACE.size for share in SHARES]).astype(float)
"""[C, S] right or wrong, at random."""
GRADED = _RNG.integers(0, 3, BINARY.shape) / 2
"""[C, S] 0, 1/2 or 1, at random."""
WANTED = np.arange(PROMPTS) % 2
"""The first token that each prompt asks for."""
FIRST = (TOKENS[:, 0] == WANTED[:, None]).astype(float)
"""[C, S] 1 if the first token is the one asked for; the rest of an answer is not read."""
_ENDS = np.any(TOKENS == EOS, 1)
ENDED = np.broadcast_to(_ENDS.astype(float), BINARY.shape)
"""[C, S] 1 if the answer ended in time."""
SHORT = FIRST * (LENGTH == 2)
"""[C, S] the wanted token, then the end: one answer of two tokens."""
LONG = FIRST * np.all(TOKENS[:, 1:] == (1, 0, EOS), 1)
"""[C, S] one answer of four tokens."""
RARE = FIRST * (LENGTH == 4) * (TOKENS[:, 1] == 1)
"""[C, S] right answers, six of them, are long."""
