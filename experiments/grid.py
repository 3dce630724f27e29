"""Settings as runs."""

import numpy as np
from numpy.typing import ArrayLike


def grid(*axes: ArrayLike) -> list[np.ndarray]:
    """The product of the axes, flattened to runs.

    >>> [axis.tolist() for axis in grid([1, 2], [5, 6])]
    [[1, 1, 2, 2], [5, 6, 5, 6]]
    """
    return [axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")]
