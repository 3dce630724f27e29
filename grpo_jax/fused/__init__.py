"""Whole runs in one kernel: the general step, unrolled over all but runs and, if it can be, questions."""
