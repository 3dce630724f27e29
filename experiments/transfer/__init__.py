"""Claim F0, the transfer ledger: which sentences about sequences hold for a table, an MLP and a transformer.

One task, one list of answers, the same seeds; only the policy differs. A policy is what its listed
log-probabilities and their derivatives say (`policies`): all groups, samplers and penalties are sums over
answers in NumPy (`enumeration`), and training takes expected updates through the policy's own derivatives
(`training`). A4, B6, C1, C2, E1 and E3 are held against the library's surrogate; the other sums are compared
with brute force in tests at most. A file a letter judges the claims, `table` runs them and writes
`transfer.json`.
"""
