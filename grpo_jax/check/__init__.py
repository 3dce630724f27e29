"""Reads a library's configuration and says what it does."""
