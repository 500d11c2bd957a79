"""Amortised cross-coders: trained on nothing but draws of a frozen model, for any mask."""

from crosscoding.amortisation.amortise import amortise

__all__ = ["amortise"]
