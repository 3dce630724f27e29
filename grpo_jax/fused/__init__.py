"""A whole run in one kernel: the general step, unrolled over everything but runs, one run to a lane."""
