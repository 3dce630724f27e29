"""Faults in what several processes do at one sweep."""

from tests.faults.fault import Fault

SHARES = (
    Fault(
        "shares overlap",
        "sweeps/shares.py",
        "return list(parts[self.index :: self.count])",
        "return list(parts[self.index :])",
        "test_shares",
    ),
    Fault(
        "one that died is waited for as one that has not begun",
        "sweeps/shares.py",
        "limit = PATIENCE if owners & self._unseen else LATE",
        "limit = PATIENCE",
        "test_shares",
    ),
    Fault(
        "one at work is taken for dead",
        "sweeps/shares.py",
        "if working or len(left) < len(before):",
        "if len(left) < len(before):",
        "test_shares",
    ),
    Fault(
        "every process plans for itself",
        "sweeps/turns.py",
        "if folder is not None and not share.alone and not has_manifest(folder):",
        "if False:",
        "test_shares",
    ),
    Fault(
        "a share may be started twice",
        "sweeps/storage.py",
        "self._locks.append(Lock(share.lock(self.folder), patience=GLANCE, what=what))",
        "pass",
        "test_shares",
    ),
    Fault(
        "a share that ends opens the folder to another sweep",
        "sweeps/lock.py",
        "if not self.shared or _locked(self._file, shared=False):",
        "if True:",
        "test_shares",
    ),
    Fault(
        "one whose lock cannot be seen is taken for dead",
        "sweeps/shares.py",
        "if not is_held(self._share.lock(self._folder, i))",
        "if False",
        "test_shares",
    ),
    Fault(
        "a result is assembled anew by every process",
        "sweeps/runner.py",
        "data = store.result()",
        "data = None",
        "test_shares",
    ),
    Fault(
        "a signal for the job ends its command",
        "cli/launch.py",
        """DEAF = 'trap "" USR1 USR2; exec "$@"'""",
        """DEAF = 'exec "$@"'""",
        "test_launch",
    ),
    Fault(
        "process 0 leaves the others",
        "cli/launch.py",
        "while index == 0 and any(map(is_held, locks[1:]))",
        "while index == 7 and any(map(is_held, locks[1:]))",
        "test_launch",
    ),
)
