"""Likelihood scales that data ask for."""
