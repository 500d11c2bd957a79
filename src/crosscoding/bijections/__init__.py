"""Invertible maps with the log-determinant of their Jacobian (ladj), as functions on tensors.

Each map takes points (*sample, B, dim) and parameters (B, …), one set for each query of the batch.
"""

from crosscoding.bijections.affine import affine, affine_inverse
from crosscoding.bijections.planar import constrained, planar, planar_inverse

__all__ = ["affine", "affine_inverse", "constrained", "planar", "planar_inverse"]
