"""Masks, True = observed: ready-made ones, and distributions of them for `crosscoding.amortise`."""

from crosscoding.masks.distributions import MaskDistribution, halves, mixed, rectangles, shares
from crosscoding.masks.single import random_mask, rectangle_mask, stroke_mask

__all__ = [
    "MaskDistribution",
    "halves",
    "mixed",
    "random_mask",
    "rectangle_mask",
    "rectangles",
    "shares",
    "stroke_mask",
]


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
