"""One claim a file; how to add one is in `experiments/README.md`."""
