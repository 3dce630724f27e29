"""Closed forms that belong to a claim's paper and not to the library's theory."""
