"""Claim F0, the transfer ledger: which sentences about sequences hold for a table, an MLP and a transformer.

One task, one list of answers, the same seeds; only the policy differs. A policy is what its listed
log-probabilities and their derivatives say (`policies`): all groups, samplers and penalties are sums over
answers in NumPy (`enumeration`), held against the library's surrogate, and training takes expected
updates through the policy's own derivatives (`training`). A file a letter judges the claims, `table` runs
them and writes `transfer.json`.
"""
