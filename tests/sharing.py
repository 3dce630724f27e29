"""A sweep of few parts that processes share, and how to start one."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import xarray as xr

import grpo_jax as gj

ROOT = Path(gj.__file__).parents[1]
SHORT = {"iterations": 4, "record_every": 2, "progress": False}
CONFIG = gj.Config(
    policy=gj.ActionPolicy.uniform(contexts=2, actions=3),
    task=gj.Questions(table=np.arange(6.0).reshape(2, 3) / 6),
    loop=gj.Loop(group_size=4, inner_steps=2),
)
PARTS = 8
"""Two variants of 2 x 7 runs in parts of four: the last one of each has two."""


def swept(out, **changes):
    """Two methods, two rates, seven seeds."""
    return gj.sweep(
        CONFIG,
        {"learning_rate": [0.01, 0.2]},
        variants={"method": {"grpo": gj.methods.grpo, "dapo": gj.methods.dapo}},
        seeds=7,
        out=out,
        **{"chunk_size": 2, "devices": 1, **SHORT, **changes},
    )


def assert_same(found, wanted):
    xr.testing.assert_equal(found, wanted)
    for name in wanted.data_vars:
        assert found[name].dtype == wanted[name].dtype
        assert found[name].values.tobytes() == wanted[name].values.tobytes(), name


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("part-"))


def child(script, *words, **environment):
    """A process of its own that runs a script."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
