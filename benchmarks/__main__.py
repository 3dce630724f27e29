"""``python -m benchmarks``: parity, the table over the seven shapes, JSON with the machine, the plot."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from benchmarks import measure, report
from benchmarks.case import SHAPES, WIDTHS, Shape
from benchmarks.parity import parity

MODULES = ("ours", "with_numpy", "numpy_blocked", "with_torch", "torch_compiled", "with_numba", "with_c")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", nargs="*", help="K,Q,G,μ each; default the seven published ones")
    parser.add_argument(
        "--widths", nargs="*", type=int, default=[5120], help="runs in the sweep; 0: all five"
    )
    parser.add_argument("--only", nargs="*", default=MODULES, choices=MODULES)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    parser.add_argument("--general", action="store_true", help="noisy per-sample rewards instead")
    parser.add_argument("--scale", action="store_true", help="a million runs and the cost per run instead")
    parser.add_argument("--engines", action="store_true", help="what a sampler of its own costs instead")
    parser.add_argument("--fused", action="store_true", help="one kernel against the general path instead")
    parser.add_argument("--networks", action="store_true", help="transformers against torch instead")
    parser.add_argument(
        "--soak", nargs="?", type=float, const=30.0, metavar="MINUTES", help="whether anything grows instead"
    )
    return parser.parse_args()


def main() -> None:
    """Parity, rounds, table, JSON, plot."""
    from grpo_jax.runtime import keep_compilations

    keep_compilations()
    wanted = arguments()
    wanted.out.mkdir(parents=True, exist_ok=True)
    for name in ("general", "scale", "engines", "fused", "networks"):
        if getattr(wanted, name):
            found = importlib.import_module(f"benchmarks.{name}").main(wanted.rounds)
            _save(wanted.out / f"{name}.json", found)
            return
    if wanted.soak is not None:
        _save(wanted.out / "soak.json", importlib.import_module("benchmarks.soak").main(wanted.soak))
        return
    modules = [importlib.import_module(f"benchmarks.implementations.{name}") for name in wanted.only]
    gaps = parity(modules)
    print("parity, float64:", ", ".join(f"{name} {gap:.1e}" for name, gap in gaps.items()), flush=True)
    shapes = [Shape(*map(int, text.split(","))) for text in wanted.shapes] if wanted.shapes else SHAPES
    widths = WIDTHS if wanted.widths == [0] else wanted.widths
    rows: list[measure.Row] = []
    for shape in shapes:
        for runs in widths:
            rows += measure.rounds(modules, shape, runs, wanted.rounds)
            print(report.table([r for r in rows if r.shape == shape], runs).splitlines()[-1], flush=True)
    everything = {"machine": measure.machine(), "parity": gaps, "rows": [row.record() for row in rows]}
    everything["notes"] = {module.NAME: module.NOTE for module in modules}
    for runs in widths:
        found = report.ratios(rows, runs)
        everything[f"ratios at {runs}"] = found
        print(f"\n{runs} runs\n\n{report.table(rows, runs)}\n\n{report.summary(found)}")
        cores = everything[f"ratios at {runs}, per core-second"] = report.ratios(rows, runs, per_core=True)
        print(f"\n{report.table(rows, runs, per_core=True)}\n\n{report.summary(cores)}")
    _save(wanted.out / "benchmarks.json", everything)
    if len(widths) > 1:
        report.draw(rows, wanted.out / "benchmarks.png")


def _save(path: Path, found: dict) -> None:
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(path, file=sys.stderr)


if __name__ == "__main__":
    main()
