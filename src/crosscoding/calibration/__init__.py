"""Calibration of a Gaussian likelihood's scale to data."""
