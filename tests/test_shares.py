"""Processes that share a sweep: every part once, the single process's numbers to the bit, no wait in vain."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import grpo_jax as gj
from grpo_jax.sweeps import layout, runner, shares, storage, turns
from grpo_jax.sweeps.lock import Lock, is_held
from grpo_jax.sweeps.shares import Others, Share, Unfinished
from tests.sharing import CONFIG, PARTS, assert_same, child, names, swept


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(layout, "PART_RUNS", 4)


@pytest.fixture(scope="module")
def alone():
    """What one process computes that knows of no other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "PART_RUNS", 4)
        return swept(None)


@pytest.fixture
def written(monkeypatch):
    """(variant, part) of every part that is computed and written here."""
    found, write = [], storage.Store.write
    monkeypatch.setattr(storage.Store, "write", lambda s, v, p, r: (found.append((v, p)), write(s, v, p, r)))
    return found


# Whose which part is


@settings(deadline=None)
@given(count=st.integers(1, 40), parts=st.integers(0, 100))
def test_every_part_is_in_one_share_and_shares_differ_by_one_at_most(count, parts):
    found = [Share(i, count).of(range(parts)) for i in range(count)]
    assert sorted(number for share in found for number in share) == list(range(parts))
    assert max(map(len, found)) - min(map(len, found)) <= 1


@settings(deadline=None)
@given(
    runs=st.integers(1, 10**6),
    processes=st.integers(1, 64),
    numbers=st.integers(1, 10**4),
)
def test_there_is_a_part_for_every_process_where_runs_are_many(runs, processes, numbers):
    shape = layout.layout(CONFIG, runs, numbers, devices=1, processes=processes)
    parts = -(-runs // shape.runs)
    assert parts >= min(processes, max(1, runs // layout.WORTH_SHARING)) // 2
    assert (parts - 1) * shape.runs < runs


@pytest.mark.parametrize(
    ("share", "error", "match"),
    [
        ("3/16", TypeError, r"share is '3/16'; it must be a pair: \(3, 16\)"),
        ((1, 2, 3), TypeError, "must be a pair"),
        (3, TypeError, "must be a pair"),
        ((0.0, 2), TypeError, "index of share is 0.0; it must be a whole number"),
        ((-1, 2), ValueError, "index of share is -1; it must be at least 0"),
        ((0, 0), ValueError, "count of share is 0; it must be at least 1"),
        ((2, 2), ValueError, "share is 2 of 2; shares are counted from 0 to 1"),
    ],
)
def test_what_is_no_share_is_refused_before_compiling(tmp_path, monkeypatch, share, error, match):
    monkeypatch.setattr(runner, "program_of", None)
    with pytest.raises(error, match=match):
        swept(tmp_path, share=share)
    assert list(tmp_path.iterdir()) == []


def test_several_need_a_folder(monkeypatch):
    monkeypatch.setattr(runner, "program_of", None)
    with pytest.raises(ValueError, match="out is None; 3 shares need a folder that all of them see"):
        swept(None, share=(1, 3))
    monkeypatch.setattr(runner.jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"2 processes need a folder.*share=\(0, 1\) runs this process by"):
        swept(None)


# Shares


def test_shares_in_any_order_make_the_sweep_of_one_process(tmp_path, alone, written):
    """The last to end assembles; each computes its own parts and no other."""
    own = {0: [(0, 0), (0, 3), (1, 2)], 1: [(0, 1), (1, 0), (1, 3)], 2: [(0, 2), (1, 1)]}
    for i, others in ((2, "5, of shares 0, 1"), (0, "3, of share 1")):
        with pytest.raises(Unfinished, match=rf"share {i}/3 is done; parts still missing: .*{others[3:]}"):
            swept(tmp_path, share=(i, 3))
        assert written == own[i]
        written.clear()
        with pytest.raises(FileNotFoundError, match="unfinished"):
            gj.load(tmp_path)
    assert_same(swept(tmp_path, share=(1, 3)), alone)
    assert written == own[1]
    assert_same(gj.load(tmp_path), alone)
    assert names(tmp_path) == [storage.MANIFEST, storage.RESULT]


def test_more_shares_than_parts(tmp_path, alone, written):
    for i in (11, 9, *range(7)):
        with pytest.raises(Unfinished):
            swept(tmp_path, share=(i, 12))
    assert len(written) == 7
    assert_same(swept(tmp_path, share=(7, 12)), alone)
    assert_same(swept(tmp_path, share=(10, 12)), alone)
    assert len(written) == PARTS


def test_a_call_without_a_share_takes_over(tmp_path, alone, written):
    with pytest.raises(Unfinished):
        swept(tmp_path, share=(1, 2))
    (tmp_path / ".share-0-2").write_text("of a process that was killed")
    (tmp_path / ".part-000-000000.nc.123").touch()
    assert_same(swept(tmp_path), alone)
    assert sorted(written) == [(v, p) for v in range(2) for p in range(4)]
    assert names(tmp_path) == [storage.MANIFEST, storage.RESULT]


def test_a_result_on_disk_is_assembled_without_memory_and_read_as_it_is_used(tmp_path, alone, monkeypatch):
    monkeypatch.setattr(runner, "STREAM_BYTES", 0)
    with pytest.raises(Unfinished):
        swept(tmp_path, share=(0, 2))
    for _ in range(2):
        with swept(tmp_path, share=(1, 2)) as found:
            assert_same(found, alone)
        monkeypatch.setattr(storage.Store, "finish", None)  # once it is there, nobody writes it again


def test_a_damaged_result_and_a_damaged_part_are_made_again_by_a_share(tmp_path, alone, written):
    with pytest.raises(Unfinished):
        swept(tmp_path, share=(0, 2))
    swept(tmp_path, share=(1, 2))
    written.clear()
    (tmp_path / storage.RESULT).write_bytes(b"")
    part = tmp_path / "part-000-000001.nc"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="kept as .*damaged"):
        assert_same(swept(tmp_path, share=(0, 2)), alone)
    assert written == [(0, 1)]
    assert_same(gj.load(tmp_path), alone)


def test_shares_follow_the_layout_of_the_first(tmp_path, monkeypatch):
    """As machines with other cores, and other measurements, would choose another."""
    monkeypatch.setattr(layout, "PART_RUNS", 65536)
    monkeypatch.setattr(layout, "hands", lambda runs, devices: (1, 1))
    asked = {"seeds": 300, "iterations": 2, "progress": False, "record": ["reward"]}
    whole = gj.sweep(CONFIG, out=tmp_path / "whole", **asked)
    with pytest.raises(Unfinished, match="still missing: 1, of share 1"):
        gj.sweep(CONFIG, out=tmp_path / "shared", share=(0, 2), **asked)
    held = storage.held_layout(tmp_path / "shared")
    assert held[0] * held[1] < 300
    monkeypatch.setattr(layout, "hands", lambda runs, devices: (1, 5))
    for size in ({}, {"chunk_size": held[0]}):
        found = gj.sweep(CONFIG, out=tmp_path / "shared", share=(1, 2), **size, **asked)
        assert storage.held_layout(tmp_path / "shared") == held
        np.testing.assert_allclose(found.reward, whole.reward, rtol=1e-6)
    with pytest.raises(ValueError, match=r"another sweep \(different: chunk"):
        gj.sweep(CONFIG, out=tmp_path / "shared", share=(1, 2), chunk_size=7, **asked)


# Locks


def test_shares_let_each_other_in_and_nobody_else(tmp_path, monkeypatch):
    mine = {"seeds": 3, "chunk_size": 2, "chunks": 1}
    monkeypatch.setattr(storage, "GLANCE", 0.1)
    with storage.Store(tmp_path, mine, Share(0, 3)), storage.Store(tmp_path, mine, Share(2, 3)):
        with pytest.raises(BlockingIOError, match=r"share 2/3 of .* is in use by another sweep \(process"):
            storage.Store(tmp_path, mine, Share(2, 3))
        with pytest.raises(BlockingIOError, match=f"{tmp_path} is in use"):
            storage.Store(tmp_path, mine)
        assert [is_held(tmp_path / f".share-{i}-3") for i in range(3)] == [True, False, True]
        with pytest.raises(ValueError, match=r"another sweep \(different: seeds"):
            storage.Store(tmp_path, mine | {"seeds": 4}, Share(1, 3))
    with storage.Store(tmp_path, mine, Share(0, 3)):
        with storage.Store(tmp_path, mine, Share(2, 3)):
            pass
        with pytest.raises(BlockingIOError, match=f"{tmp_path} is in use"):
            storage.Store(tmp_path, mine)
    assert names(tmp_path) == [storage.MANIFEST]
    with storage.Store(tmp_path, mine), pytest.raises(BlockingIOError, match="in use"):
        storage.Store(tmp_path, mine, Share(1, 3))


def test_a_lock_is_waited_for(tmp_path):
    path = tmp_path / "lock"
    script = f"""
        import sys, time
        from grpo_jax.sweeps.lock import Lock
        lock = Lock(__import__("pathlib").Path({str(path)!r}))
        print("held", flush=True)
        sys.stdin.read()
    """
    with child(script) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=f"process {other.pid}"):
            Lock(path, patience=0.2)
        assert is_held(path)
        other.kill()
        lock = Lock(path, patience=60)
    assert is_held(path)
    lock.release()
    assert not is_held(path)
    assert not path.exists()


def test_who_plans_first_is_followed(tmp_path):
    """A second process does not plan while the first does, and then finds what that decided."""
    mine = {"seeds": 3, "chunk_size": 2, "chunks": 1}
    with turns.planning(tmp_path, Share(0, 2)):
        assert is_held(tmp_path / turns.TURN)
        with storage.Store(tmp_path, mine, Share(0, 2)):
            pass
    with turns.planning(tmp_path, Share(1, 2)):
        assert not (tmp_path / turns.TURN).exists()
        assert storage.held_layout(tmp_path) == (2, 1)
    (tmp_path / storage.MANIFEST).write_bytes(b"")
    with turns.planning(tmp_path, Share(1, 2)):
        assert is_held(tmp_path / turns.TURN)
    with turns.planning(tmp_path / "new", Share()):
        assert not (tmp_path / "new").exists()


# Waiting


class Clock:
    """Time that passes while one sleeps, and what happens at which second."""

    def __init__(self, **events):
        self.now, self.events = 0.0, sorted((int(k[1:]), act) for k, act in events.items())

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        while self.events and self.events[0][0] <= self.now:
            self.events.pop(0)[1]()


def waiting(monkeypatch, tmp_path, left, clock, index=0):
    monkeypatch.setattr(shares, "time", clock)
    others = Others(tmp_path, Share(index, 3, waits=True), lambda: sorted(left))
    return others.wait(lambda: False, lambda number: f"part {number}")


def test_a_process_that_was_seen_and_has_gone_is_not_waited_for(tmp_path, monkeypatch):
    lock, left = Lock(tmp_path / ".share-1-3"), {1, 4, 7}
    clock = Clock(t100=lambda: left.discard(1), t400=lambda: left.discard(4), t700=lock.release)
    sentence = r"parts still missing: 1, of process 1 \(part 7\); it ended before .* same call goes on"
    with pytest.raises(Unfinished, match=sentence):
        waiting(monkeypatch, tmp_path, left, clock)
    assert 700 + shares.LATE <= clock.now <= 700 + shares.LATE + 3 * shares.PAUSES[1]


def test_a_process_without_a_sign_is_waited_for_longer_from_the_last_part_on(tmp_path, monkeypatch):
    left = {1, 2, 4}
    (tmp_path / ".share-1-3").touch()  # left by an earlier call, or its lock is not seen on other machines
    clock = Clock(t500=lambda: left.discard(4))
    with pytest.raises(
        Unfinished, match=r"2, of processes 1, 2 .*no sign of 1, 2 in 600 s: do all of them see"
    ):
        waiting(monkeypatch, tmp_path, left, clock)
    assert 500 + shares.PATIENCE <= clock.now <= 500 + shares.PATIENCE + 3 * shares.PAUSES[1]


def test_waiting_ends_with_the_last_part_or_a_signal(tmp_path, monkeypatch):
    left = {1, 2}
    lock = Lock(tmp_path / ".share-2-3")
    clock = Clock(t5=lambda: left.discard(1), t3000=left.clear)
    assert waiting(monkeypatch, tmp_path, left, clock) == []
    assert clock.now < 3000 + 2 * shares.PAUSES[1]
    lock.release()
    others = Others(tmp_path, Share(0, 3, waits=True), lambda: [1])
    assert others.wait(lambda: True, str) == [1]


def test_one_s_own_part_that_vanished_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    lock = Lock(tmp_path / ".share-0-3")
    with pytest.raises(Unfinished, match="of process 0"):
        waiting(monkeypatch, tmp_path, {3}, Clock())
    lock.release()
