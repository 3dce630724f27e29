"""What an engine's filters keep, by a loop."""

import numpy as np


def softmax(x):
    weight = np.exp(x - x.max())
    return weight / weight.sum()


def top_p(p, level):
    """The fewest likeliest entries that reach the level, by a loop."""
    kept, mass = np.zeros(len(p), bool), 0.0
    for place in np.argsort(-p, kind="stable"):
        if mass >= level:
            break
        kept[place] = True
        mass += p[place]
    return kept
