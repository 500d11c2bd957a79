"""Calibration: of a Gaussian likelihood's scale to data, and of answers by simulated twins."""
