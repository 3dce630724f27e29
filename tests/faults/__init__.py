"""Planted faults: a piece of the package, what stands there instead, and the fast tests that must notice.

``test_mutations.py`` plants them one at a time. What a fault replaces must stand in its file exactly once, so
that the list cannot go stale unseen.
"""

from tests.faults.checking import CHECK
from tests.faults.expectations import ANEW, DRAWS, EXACT
from tests.faults.fault import Fault
from tests.faults.methods import ADVANTAGES, GAINS, PENALTIES, REDUCTIONS
from tests.faults.policies import NETWORKS, SAMPLER
from tests.faults.runs import FUSED, LOOP, OPTIMIZERS, RESUME, SWEEPS
from tests.faults.shares import SHARES

__all__ = ["FAULTS", "Fault"]

FAULTS = (
    *ADVANTAGES,
    *GAINS,
    *PENALTIES,
    *REDUCTIONS,
    *EXACT,
    *DRAWS,
    *ANEW,
    *OPTIMIZERS,
    *LOOP,
    *SWEEPS,
    *FUSED,
    *RESUME,
    *SHARES,
    *SAMPLER,
    *NETWORKS,
    *CHECK,
)
