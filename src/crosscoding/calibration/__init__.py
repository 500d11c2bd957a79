"""Fits the scale of a Gaussian likelihood to data, and checks answers on simulated twins."""
