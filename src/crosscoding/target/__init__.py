"""Targets p(z, x), on which every method works."""
