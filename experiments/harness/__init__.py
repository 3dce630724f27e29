"""Finds the claims, runs each in a process of its own, judges them and publishes what came out."""
