"""The benchmarks measure one computation: NumPy, torch and the library agree, and the tables count right."""

import importlib
import shutil

import numpy as np
import pytest

from benchmarks import measure, networks, report
from benchmarks.case import SHAPES, Case, Shape
from benchmarks.implementations import numpy_blocked, ours, with_c, with_numpy
from benchmarks.parity import PARITY, parity


def test_the_library_and_numpy_compute_the_same_sweep():
    modules = [with_numpy, numpy_blocked, ours] + ([with_c] if shutil.which("gcc") else [])
    gaps = parity(modules)
    assert set(gaps) >= {"numpy", "grpo_jax"}
    assert PARITY.shape.inner == 8
    assert PARITY.learning_rate >= 0.3


@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")
def test_the_c_kernel_leaves_subnormal_numbers_to_the_rest_of_the_process():
    with_c.library(PARITY.shape, double=True)
    assert np.array([5e-324]) / 1.0 > 0


def test_parity_notices_a_difference():
    class Wrong:
        NAME = "wrong"

        @staticmethod
        def prepare(case, draws):
            run = with_numpy.prepare(case, draws)
            return lambda: type(run())(*(values + 1e-6 for values in run()))

    with pytest.raises(RuntimeError, match="differ"):
        parity([with_numpy, Wrong])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["with_torch", "torch_compiled", "with_numba"])
def test_the_optional_implementations_agree(name):
    pytest.importorskip("torch" if "torch" in name else "numba")
    gaps = parity([with_numpy, importlib.import_module(f"benchmarks.implementations.{name}")])
    assert len(gaps) == 2


def test_ratios_and_targets_are_computed_from_the_rows():
    rows = [measure.Row("grpo_jax", shape, 8, 1, 100, [1.0, 1.0], [1.0, 1.0]) for shape in SHAPES[:2]]
    rows += [
        measure.Row("numpy", shape, 8, 1, 100, [4.0 * (1 + i)] * 2, [1.0] * 2)
        for i, shape in enumerate(SHAPES[:2])
    ]
    found = report.ratios(rows, 8)["numpy"]
    np.testing.assert_allclose([found["mean"], found["least"]], [np.sqrt(32), 4])
    assert not found["met"]


def test_an_unsteady_row_is_marked():
    row = measure.Row("numpy", Shape(2, 1, 8, 2), 8, 1, 100, [1.0, 2.0], [1.0, 1.0])
    assert "~" in report.table([row], 8)


def test_a_round_stays_short():
    for shape in SHAPES:
        count = measure.iterations(shape, 16384)
        assert count * Case(shape, runs=16384, iterations=count).runs * shape.actions < 2e8


@pytest.mark.slow
def test_torch_trains_the_library_s_transformer():
    pytest.importorskip("torch")
    gaps = networks.parity(networks.SMALL)
    assert set(gaps) == {"log-probabilities", "gradient", "sampled tokens"}


@pytest.mark.slow
def test_parity_of_networks_notices_a_difference(monkeypatch):
    pytest.importorskip("torch")
    right = networks.torch_transformer.advantages
    monkeypatch.setattr(networks.torch_transformer, "advantages", lambda rewards: right(rewards) * (1 + 1e-5))
    with pytest.raises(RuntimeError, match=r"differ.*gradient"):
        networks.parity(networks.SMALL)
