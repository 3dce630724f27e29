"""Files at random: read as they were written, or refused with a sentence; nothing of them is executed."""

import contextlib
import json
import shutil
import warnings
from html.parser import HTMLParser

import h5py
import numpy as np
import xarray as xr
from hypothesis import strategies as st

import grpo_jax as gj
from experiments.harness import report
from experiments.harness.run import read_record
from grpo_jax import checkpoints
from grpo_jax.pages import sweep_page
from grpo_jax.sweeps import load, netcdf, storage, tuning
from grpo_jax.sweeps.storage import Store, held_layout, held_manifest
from tests.folders import MINE, filled, part, same, values
from tests.fuzzing import TEXT, draw, examples, outcome

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
"""Among them NaN and infinities, which Python's JSON knows."""
DAMAGE = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("flip"), st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=4)),
    st.tuples(st.just("put"), st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=40))),
    st.tuples(st.just("replace"), st.binary(max_size=200)),
)


def damaged(whole, kind, how):
    """Other bytes than these."""
    if kind == "cut":
        return whole[: int(how * len(whole))]
    if kind == "put":
        place = int(how[0] * len(whole))
        return whole[:place] + how[1] + whole[place + len(how[1]) :]
    if kind == "flip":
        bits = np.frombuffer(whole, np.uint8).copy()
        for place in how:
            bits[int(place * len(bits))] ^= 1 << int(place * 8 * len(bits)) % 8
        return bits.tobytes()
    return how


def paths_in(folder):
    return sorted(str(p) for p in folder.rglob("*"))


@examples(fast=30, slow=600)
def test_damaged_files_of_a_sweep_are_noticed(count, tmp_path, record_property):
    """A part, the result and the manifest, each with other bytes: never another value."""
    folder, data = tmp_path / "sweep", xr.Dataset({"reward": ("run", np.arange(5.0))})
    with Store(filled(folder), MINE) as store:
        store.finish(data)
    names = (part(folder).name, storage.RESULT, storage.MANIFEST)
    whole = {name: (folder / name).read_bytes() for name in names}
    seen = dict.fromkeys(names, 0)

    def check(name, damage):
        content = damaged(whole[name], *damage)
        if content == whole[name]:
            return
        seen[name] += 1
        (folder / name).write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            if name == storage.RESULT:
                assert outcome(lambda: load(folder))[0] == "refused"
            else:
                with Store(folder, MINE) as store:
                    held = store.read(0, 1)
                assert held is None if name != storage.MANIFEST else same(held, values(1))
        for left in folder.glob("*.damaged*"):
            left.unlink()
        for again, held in whole.items():
            (folder / again).write_bytes(held)

    draw(count, check, name=st.sampled_from(names), damage=DAMAGE)
    record_property("found", f"damaged files noticed: {seen}")


def sealed(path):
    """Give a file that was tampered with a checksum that is right."""
    data = path.read_bytes()
    with path.open("rb") as file:
        path.write_bytes(data + netcdf.MARK + netcdf._digest(file, len(data)) + b"\n")


SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 2**31, 2**40]), max_size=3).map(tuple)
TYPES = st.sampled_from(["f2", "f4", "f8", "i1", "u8", ">f8", "c16", "S5", "O", "V8", "bool", "str", "enum"])
LABELS = st.one_of(
    TEXT.filter(bool),
    st.sampled_from(["../../x", "/etc/x", "a/b", ".", "reward", "__reduce__", "{{7*7}}", "%s", "$HOME"]),
)


ATTRIBUTES = st.dictionaries(
    st.one_of(LABELS, st.sampled_from(["dtype", "units", "_FillValue", "scale_factor", "coordinates"])),
    st.one_of(st.text(max_size=8), st.integers(-5, 5), st.floats(), st.sampled_from(["bool", "days"])),
    max_size=3,
)


def plant(file, name, shape, kind, attributes):
    """A variable of any name, shape and type; large ones take no place."""
    types = {"O": h5py.string_dtype(), "str": h5py.string_dtype("ascii"), "enum": h5py.enum_dtype({"A": 1})}
    dtype = np.dtype(types.get(kind, kind))
    made = file.create_dataset(name, shape, dtype, chunks=True if shape and max(shape) >= 2**31 else None)
    for key, value in attributes.items():
        with contextlib.suppress(TypeError, ValueError, OSError):  # what HDF5 cannot hold
            made.attrs[key] = value


@examples(fast=15, slow=400)
def test_files_with_a_right_checksum_and_anything_in_them(count, tmp_path, record_property):
    """As somebody would make them who knows the format: read without harm, or refused."""
    seen = {"accepted": 0, "refused": 0}
    folder = filled(tmp_path / "sweep")
    path = folder / storage.RESULT

    def check(variables, attributes, number):
        path.unlink(missing_ok=True)
        with h5py.File(path, "w") as file:
            for name, (shape, kind) in variables.items():
                with contextlib.suppress(ValueError, TypeError, OSError):  # one below the other, say
                    plant(file, name, shape, kind, attributes)
            file.attrs.update(manifest=json.dumps(MINE), variant=0, part=number)
            for key, value in attributes.items():
                with contextlib.suppress(TypeError, ValueError, OSError):
                    file.attrs[key] = value
        sealed(path)
        shutil.copy(path, part(folder))
        before = paths_in(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seen[outcome(lambda: load(folder))[0]] += 1
            with Store(folder, MINE) as store:
                outcome(lambda: store.read(0, 1))
        for left in folder.glob("*.damaged*"):
            left.rename(part(folder))
        assert paths_in(tmp_path) == before

    draw(
        count,
        check,
        variables=st.dictionaries(LABELS, st.tuples(SHAPES, TYPES), max_size=3),
        attributes=ATTRIBUTES,
        number=st.sampled_from([1, 1, -1, 2**40, "1", "x"]),
    )
    record_property("found", f"files with a right checksum: {seen}")


@examples(fast=60, slow=1000)
def test_json_of_any_kind_is_no_manifest_no_memory_and_no_record(count, tmp_path, monkeypatch):
    monkeypatch.setenv("GRPO_JAX_CACHE", str(tmp_path / "cache" / "jax"))
    claim = tmp_path / "results" / "A1"
    claim.mkdir(parents=True)
    (tmp_path / "weights").mkdir()
    policy = gj.ActionPolicy.uniform(contexts=1, actions=2)
    record = {
        "claim": "A1", "about": "Words.", "paper": "A", "size": "full", "seed": 7, "seconds": 1.0, "rows": [],
        "device": "cpu", "versions": {}, "commit": None,
    }  # fmt: skip

    def check(tree, damage, swapped):
        texts = [json.dumps(tree).encode(), damaged(json.dumps(MINE).encode(), *damage)]
        texts.append(json.dumps(record | {swapped: tree}).encode())
        for text in texts:
            (tmp_path / "cache" / "tuning.json").write_bytes(text)
            tuning.foreseen_compiling(["x"])
            (tmp_path / storage.MANIFEST).write_bytes(text)
            outcome(lambda: held_manifest(tmp_path))
            outcome(lambda: held_layout(tmp_path))
            (tmp_path / "weights" / checkpoints.ARCHITECTURE).write_bytes(text)
            assert outcome(lambda: checkpoints.load(tmp_path / "weights", policy))[0] == "refused"
            (claim / "record.json").write_bytes(text)
            if read_record(claim) is not None:
                report.write_index(claim.parent)

    (tmp_path / "cache").mkdir()
    draw(count, check, tree=JSON, damage=DAMAGE, swapped=st.sampled_from(sorted(record)))


class Elements(HTMLParser):
    """The elements of a page, and their attributes' names."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, [name for name, _ in attrs]))


@examples(fast=40, slow=1000)
def test_no_text_of_a_user_s_changes_a_page_s_elements(count):
    def page(text):
        one, other = text + "a", text + "b"
        data = {
            "finite": ("seed", [True, False]),
            one: ("seed", [1.0, 2.0]),
            other: (("seed", "x"), [[1], [2]]),
        }
        attributes = dict.fromkeys(("config", "because", "expectation", "note"), text)
        data = xr.Dataset(data, {"seed": [text, "7"]}, attributes)
        return Elements(sweep_page(data, title=text, folder=text)).found

    def check(text):
        assert page(text) == plain

    plain, markup = page("plain"), st.text(st.sampled_from("<>&\"'{}%#/=; \nscriptonload"), max_size=30)
    draw(count, check, text=st.one_of(markup, st.text()))
