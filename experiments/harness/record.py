"""Run one claim in this process and write its data, figure and record into a folder.

The check and the drawing see the data as read back from disk, so that a verdict can always be recomputed from
the file published with it.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import jax
import xarray as xr

from experiments.harness.numbers import Number
from experiments.harness.provenance import commit, source, versions
from experiments.harness.scripts import Refusal
from experiments.harness.verdict import Claim
from grpo_jax import plotting, runtime

Data = xr.Dataset | dict[str, xr.Dataset]


def run_claim(job: dict[str, Any]) -> None:
    """Simulate, check and draw one claim.

    Args:
      job: `script`, `claim`, `says`, `about`, `paper`, `precision`, `size`, `seed`, and `folder`, where
        `data.nc`, `figure.png`, `figure.svg` and `record.json` are written.
    """
    start = time.perf_counter()
    jax.config.update("jax_enable_x64", job["precision"] == "float64")
    runtime.keep_compilations()
    script, folder = load_script(Path(job["script"])), Path(job["folder"])
    made = script.simulate(job["seed"], script.SIZES[job["size"]])
    write_data(made, folder / "data.nc", claim=job["claim"], size=job["size"], seed=job["seed"])
    data = read_data(folder / "data.nc")
    claim = Claim(job["claim"], job["says"])
    if script.check(data, claim) is not None:
        raise TypeError("check(data, claim) tells the claim what it measures and returns nothing")
    rows = [row_record(row) for row in (claim, *claim.rows)]
    figure = plotting.figure("page")
    plotting.styled(script.draw)(figure, data)
    plotting.save(figure, folder / "figure")
    record = {key: job[key] for key in ("claim", "about", "paper", "size", "seed")} | {"rows": rows}
    record |= {"seconds": round(time.perf_counter() - start, 3), "device": device()}
    record |= {"versions": versions(), "commit": commit(), "source": source()}
    record |= {"table": script.site_table(data)} if hasattr(script, "site_table") else {}
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "record.json").write_text(text + "\n", encoding="utf-8")


def write_data(data: Data, path: Path, **attributes: Any) -> None:
    """Write a dataset, or several by name as groups of one file."""
    if isinstance(data, xr.Dataset):
        data.assign_attrs(attributes).to_netcdf(path, engine="h5netcdf")
        return
    if not isinstance(data, Mapping) or not all(isinstance(d, xr.Dataset) for d in data.values()):
        raise TypeError(f"simulate returns a Dataset or several by name; got {type(data).__name__}")
    groups = {"/": xr.Dataset(attrs=attributes), **cast(dict[str, Any], data)}
    xr.DataTree.from_dict(groups).to_netcdf(path, engine="h5netcdf")


def read_data(path: Path) -> Data:
    """What `write_data` was given, read into memory."""
    with xr.open_datatree(path, engine="h5netcdf") as tree:
        if not tree.children:
            return tree.to_dataset().load()
        return {name: node.to_dataset(inherit=False).load() for name, node in tree.children.items()}


def load_script(path: Path) -> ModuleType:
    """Import a script from its file; it need not lie on the path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python script")
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not isinstance(getattr(module, "SIZES", None), Mapping) or not {"smoke", "quick", "full"} <= set(
        module.SIZES
    ):
        raise Refusal(f"{path.name} gives no SIZES for smoke, quick and full: see harness.scripts.sizes")
    return module


def row_record(claim: Claim) -> dict[str, Any]:
    """One sentence with its verdict and its numbers, for JSON."""
    judged = claim.verdict()
    numbers = {
        name: {"role": judged.roles[name]} | number_record(number) for name, number in judged.numbers.items()
    }
    words = {"verdict": judged.verdict, "found": judged.found, "because": judged.because}
    return {"id": claim.id, "says": claim.says, **words, "numbers": numbers}


def number_record(number: Number) -> dict[str, Any]:
    """A number for JSON: what it does not have is left out, and what is not finite is null.

    >>> number_record(Number(float("nan"), expected=1.0))
    {'value': None, 'expected': 1.0, 'holds': False}
    """
    ends = {name: float(end) for name, end in asdict(number).items() if isinstance(end, (int, float))}
    record: dict[str, Any] = {name: end if math.isfinite(end) else None for name, end in ends.items()}
    record |= {"at": number.at} if number.at else {}
    if number.expected is not None:
        record |= {"relation": number.relation} if number.relation != "equals" else {}
        record |= {"holds": number.holds}
    return record


def device() -> str:
    """The devices that ran, such as `1 x cpu (x86_64, 2 cores)`."""
    counts = Counter(device.device_kind for device in jax.devices())
    host = f"({platform.machine()}, {os.cpu_count()} cores)"
    return ", ".join(f"{count} x {kind}" for kind, count in counts.items()) + f" {host}"
