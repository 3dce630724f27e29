"""What a folder of a sweep gives back is what was put in, whatever happened to its files meanwhile."""

import contextlib
import os
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from grpo_jax.sweeps import load, netcdf, storage
from grpo_jax.sweeps.storage import Store, held_layout
from tests.folders import MINE, OTHER, filled, hidden, part, same, values

# What is written is read


def test_parts_are_read_as_they_were_written(tmp_path):
    draw = np.random.default_rng(0)
    bits = draw.integers(0, 2**32, size=(2, 5), dtype=np.uint32)  # every kind of NaN among them
    written = {
        "run": bits.view(np.float32),
        "record": draw.integers(0, 2**64, size=(2, 3, 5), dtype=np.uint64).view(np.float64),
        "a b.0": np.array([[-0.0, 0.0, np.inf, -np.inf, 5e-324]]),
        "κλ": draw.integers(-(2**62), 2**62, size=(1, 2, 2, 5)),
        "finite": bits > 2**31,
        "dtype": bits,
        "small": bits.astype(np.int8),
        "half": bits.view(np.float16),
        "turned": np.asfortranarray(draw.normal(size=(4, 5))),
        "column": np.arange(5),
    }
    with Store(tmp_path, MINE) as store:
        store.write(3, 1234567, written)
        assert same(store.read(3, 1234567), written)
        assert store.read(3, 0) is None
    assert hidden(tmp_path) == []


def test_a_result_is_loaded_as_it_was_written(tmp_path):
    draw = np.random.default_rng(0)
    data = xr.Dataset(
        {
            "reward": (("algorithm", "rate", "seed"), draw.normal(size=(2, 3, 4)), {"about": "mean reward"}),
            "finite": (("seed",), np.array([True, False, True, True])),
            "total": ((), 3.5),
        },
        {
            "algorithm": ["grpo", "κ"],
            "seed": np.array([0, 1, 5, 2**32 - 1], np.uint32),
            "kl_coef": ("rate", [0.0, np.nan, 1e-300]),
            "tied": ("rate", [True, False, True]),
            "days": ("rate", [1.0, 2.0, 3.0], {"units": "days since 2000-01-01"}),
        },
        {"config": "x" * 3_000_000, "width": 96, "seconds": 0.125, "because": "", "odd": None},
    )
    with Store(tmp_path, MINE) as store:
        store.finish(data)
        lazy = store.open()
    loaded = load(tmp_path)
    for found in (loaded, lazy.load()):
        xr.testing.assert_identical(found.assign_attrs(odd=None), data)
        assert all(found[n].dtype == data[n].dtype for n in data.data_vars)
    lazy.close()
    with xr.open_dataset(tmp_path / storage.RESULT, engine="h5netcdf", decode_times=False) as plain:
        xr.testing.assert_equal(plain.load(), data)


@pytest.mark.parametrize("size", [1, 8, 100, 2**20])
def test_blocks_of_any_size_write_the_same(tmp_path, monkeypatch, size):
    monkeypatch.setattr(netcdf, "BLOCK", size)
    for shape in ((), (3,), (5, 1, 7), (2, 3, 4, 5)):
        count = np.zeros(shape, int)
        for block in netcdf._blocks(shape, 8):
            count[block] += 1
            assert count[block].size * 8 <= max(size, 8)
        assert (count == 1).all()
    filled(tmp_path)
    with Store(tmp_path, MINE) as store:
        assert same(store.read(0, 2), values(2))


@pytest.mark.parametrize(
    ("name", "dtype", "error"),
    [
        ("a/b", np.float32, ValueError),
        ("..", np.float32, ValueError),
        ("", np.float32, ValueError),
        ("mine", jnp.bfloat16, TypeError),  # h5py would keep its bytes and forget its type
        ("mine", jnp.float8_e5m2, TypeError),
        ("mine", object, TypeError),
        ("mine", "U3", TypeError),
        ("mine", complex, TypeError),
    ],
)
def test_what_netcdf_cannot_hold_is_refused(tmp_path, name, dtype, error):
    with pytest.raises(error, match=repr(name) if error is ValueError else name):
        netcdf.check_storable({"fine": np.float32, name: dtype})
    with Store(tmp_path, MINE) as store, pytest.raises(error):
        store.write(0, 0, {name: np.zeros((2, 3), dtype)})


def test_a_write_that_takes_a_little_at_a_time_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(netcdf.Target, "put", lambda self, view: os.write(self.fileno(), view[:7]))
    with Store(filled(tmp_path), MINE) as store:
        assert same(store.read(0, 1), values(1))


# Damage


def test_no_flipped_bit_is_read_as_another_value(tmp_path):
    """Once a wrong checksum is noticed the file is renamed, so that each flip has a fresh one."""
    filled(tmp_path)
    path = part(tmp_path)
    whole = path.read_bytes()
    draw = np.random.default_rng(0)
    last = range(8 * (len(whole) - netcdf.FOOTER), 8 * len(whole))  # the checksum itself
    flips = [draw.integers(0, 8 * len(whole), size=draw.integers(1, 4)) for _ in range(400)]
    flips += [np.array([bit]) for bit in draw.choice(last, 60)]
    with Store(tmp_path, MINE) as store:
        for flip in flips:
            data = np.frombuffer(whole, np.uint8).copy()
            np.bitwise_xor.at(data, flip // 8, (1 << flip % 8).astype(np.uint8))
            path.write_bytes(data.tobytes())
            if data.tobytes() == whole:
                continue
            with pytest.warns(UserWarning, match=r"part-000-000001\.nc does not"):
                assert store.read(0, 1) is None
            kept = [p for p in tmp_path.iterdir() if ".damaged" in p.name]
            assert [p.read_bytes() for p in kept] == [data.tobytes()]
            kept[0].unlink()
        path.write_bytes(whole)
        assert same(store.read(0, 1), values(1))


@pytest.mark.parametrize("kept", [0, 1, 72, 73, 74, 0.5, -1])
def test_a_truncated_part_reads_as_missing_and_is_kept(tmp_path, kept):
    path = part(filled(tmp_path))
    whole = path.read_bytes()
    cut = whole[: int(kept * len(whole)) if kept == 0.5 else kept]
    path.write_bytes(cut)
    with Store(tmp_path, MINE) as store:
        with pytest.warns(UserWarning, match=r"part-000-000001\.nc.*truncated.*kept as .*\.damaged.*again"):
            assert store.read(0, 1) is None
        store.write(0, 1, values(1))
        assert same(store.read(0, 1), values(1))
    assert path.with_name(f"{path.name}.damaged").read_bytes() == cut


def test_what_was_set_aside_is_never_overwritten(tmp_path):
    path = part(filled(tmp_path))
    for i in range(3):
        path.write_bytes(b"%d" % i)
        with Store(tmp_path, MINE) as store, pytest.warns(UserWarning, match="damaged"):
            store.read(0, 1)
    kept = sorted(p for p in tmp_path.iterdir() if ".damaged" in p.name)
    assert [p.read_bytes() for p in kept] == [b"0", b"1", b"2"]


def test_swapped_and_copied_parts_are_not_taken_for_others(tmp_path):
    filled(tmp_path)
    first, second, third = (part(tmp_path, i) for i in range(3))
    first.rename(tmp_path / "x")
    second.rename(first)
    (tmp_path / "x").rename(second)
    shutil.copy(third, tmp_path / "part-001-000002.nc")
    with Store(tmp_path, MINE) as store:
        for place, told in (((0, 0), "part 1 of variant 0"), ((0, 1), "part 0 of"), ((1, 2), "of variant 0")):
            with pytest.warns(UserWarning, match=f"part-00{place[0]}-00000{place[1]}.nc holds .*{told}"):
                assert store.read(*place) is None
        assert same(store.read(0, 2), values(2))


def test_another_sweeps_part_is_refused_and_stays(tmp_path):
    mine, other = filled(tmp_path / "mine"), filled(tmp_path / "other", manifest=OTHER)
    shutil.copy(part(other), part(mine))
    before = part(mine).read_bytes()
    with Store(mine, MINE) as store:
        with pytest.raises(ValueError, match=r"part-000-000001\.nc belongs to another sweep.*seeds"):
            store.read(0, 1)
        assert same(store.read(0, 0), values(0))
    assert part(mine).read_bytes() == before


# Identity of a folder


@pytest.mark.parametrize("lost", ["gone", "empty", "partial", "changed", "not a table", "deep", "binary"])
def test_a_lost_manifest_is_taken_from_the_parts(tmp_path, lost):
    path = filled(tmp_path) / storage.MANIFEST
    whole = path.read_bytes()
    texts = {
        "empty": b"",
        "partial": whole[:30],
        "changed": whole.replace(b'"chunk_size": 2', b'"chunk_size": 3'),
        "not a table": b"[1, 2]",
        "deep": b"[" * 10**6,
        "binary": bytes(range(256)),
    }
    path.unlink() if lost == "gone" else path.write_bytes(texts[lost])
    part(tmp_path, 0).write_bytes(b"damaged, too")
    assert held_layout(tmp_path) == (2, 3)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"holds another sweep.*different: seeds"):
            Store(tmp_path, OTHER)
    said = contextlib.nullcontext() if lost == "gone" else pytest.warns(UserWarning, match=r"manifest\.json")
    with said, Store(tmp_path, MINE) as store:
        assert same(store.read(0, 1), values(1))
    assert path.read_bytes() == whole
    kept = tmp_path / f"{storage.MANIFEST}.damaged"
    assert not kept.exists() if lost == "gone" else kept.read_bytes() == texts[lost]


def test_a_lost_manifest_is_written_anew_where_there_are_no_parts(tmp_path):
    (tmp_path / storage.MANIFEST).write_bytes(b"")
    assert held_layout(tmp_path) is None
    with pytest.warns(UserWarning, match=r"manifest\.json has no readable manifest"):
        filled(tmp_path)
    assert held_layout(tmp_path) == (2, 3)


@pytest.mark.parametrize("manifest", [None, b""])
@pytest.mark.parametrize("file", ["part-000-000000.nc", "sweep.nc"])
def test_files_that_nothing_vouches_for_are_refused(tmp_path, manifest, file):
    """As an earlier version wrote them, without checksums."""
    xr.Dataset({"reward": ("run", [1.0])}).to_netcdf(tmp_path / file, engine="h5netcdf")
    if manifest is not None:
        (tmp_path / storage.MANIFEST).write_bytes(manifest)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    for act in (held_layout, lambda folder: Store(folder, MINE)):
        with pytest.raises(ValueError, match=rf"manifest\.json .*, and .*{file} .*another folder, or move"):
            act(tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_result_alone_keeps_other_sweeps_out(tmp_path):
    with Store(tmp_path, MINE) as store:
        store.finish(xr.Dataset({"reward": ("run", [1.0])}))
    (tmp_path / storage.MANIFEST).unlink()
    with pytest.raises(ValueError, match="different: seeds"):
        Store(tmp_path, OTHER)
    assert load(tmp_path).reward == 1


@pytest.mark.parametrize("size", [True, 0, -3, 2.0, "2", None, [2]])
@pytest.mark.parametrize("name", ["chunk_size", "chunks"])
def test_a_layout_of_a_wrong_type_is_ignored(tmp_path, name, size):
    with Store(tmp_path, MINE | {name: size}):
        pass
    assert held_layout(tmp_path) is None


# load


def test_load_says_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no sweep"):
        load("~/empty")
    filled(tmp_path / "begun")
    with pytest.raises(FileNotFoundError, match="unfinished sweep: run it again"):
        load("~/begun")
    for name, manifest in (("mine", MINE), ("other", OTHER)):
        with Store(tmp_path / name, manifest) as store:
            store.finish(xr.Dataset({"reward": ("run", [1.0])}))
    assert load("~/mine").reward == 1
    result = tmp_path / "mine" / storage.RESULT
    whole = result.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    for damaged in (b"", whole[:-1], whole[: len(whole) // 2], bytes(flipped)):
        result.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"sweep\.nc does not .*run the same sweep .* again"):
            load("~/mine")
    shutil.copy(tmp_path / "other" / storage.RESULT, result)
    with pytest.raises(ValueError, match="result of another sweep"):
        load("~/mine")


def test_a_damaged_result_is_assembled_again(tmp_path):
    data = xr.Dataset({"reward": ("run", [1.0])})
    for damage in (b"", b"x" * 1000):
        with Store(tmp_path, MINE) as store:
            store.finish(data)
        (tmp_path / storage.RESULT).write_bytes(damage)
    with Store(tmp_path, MINE) as store:
        store.finish(data)
    xr.testing.assert_identical(load(tmp_path), data)
