"""One script per claim of the papers, and a small harness that runs them, judges them and keeps records."""
