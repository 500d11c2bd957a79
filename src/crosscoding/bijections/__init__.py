"""Invertible maps with the log determinant of their Jacobian (ladj), as functions of tensors.

Each map takes points (*sample, B, dim) and parameters (B, …), one set for each query of the batch.
"""

from crosscoding.bijections.affine import affine, affine_inverse, scale_matrix
from crosscoding.bijections.low_rank import low_rank, low_rank_inverse
from crosscoding.bijections.planar import constrained, planar, planar_inverse
from crosscoding.bijections.spline import spline, spline_inverse

__all__ = [
    "affine",
    "affine_inverse",
    "constrained",
    "low_rank",
    "low_rank_inverse",
    "planar",
    "planar_inverse",
    "scale_matrix",
    "spline",
    "spline_inverse",
]
