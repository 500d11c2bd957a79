"""Targets p(z, x): what every method works on."""
