"""Amortised cross-coders: networks for any mask, trained only on draws of a frozen model."""

from crosscoding.amortisation.amortise import amortise

__all__ = ["amortise"]
