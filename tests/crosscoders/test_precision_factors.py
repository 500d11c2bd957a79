"""Factors of precisions: L Lᵀ = P⁻¹ to the dtype's precision, and rounding never crashes them."""

import pytest
import torch
from problems import seeded
from torch import Tensor

from crosscoding.crosscoders import Gaussian, Mixture
from crosscoding.crosscoders.precision_factors import covariance_root, precision_root


def ill_conditioned(dim: int, condition: float, dtype: torch.dtype, batch: int = 3) -> Tensor:
    """Precisions with eigenvalues from 1 to `condition`, in random directions."""
    noise = torch.randn(batch, dim, dim, generator=seeded(0), dtype=torch.double)
    vectors = torch.linalg.qr(noise).Q
    values = torch.logspace(0, torch.tensor(condition).log10(), dim, dtype=torch.double)
    precision = (vectors * values) @ vectors.mT
    return (0.5 * (precision + precision.mT)).to(dtype)


@pytest.mark.parametrize("condition", [1e4, 1e6, 1e8, 1e10, 1e12, 1e14])
@pytest.mark.parametrize("dim", [2, 5, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.double])
def test_the_factor_is_that_of_the_inverse_up_to_rounding(dtype, dim, condition):
    precision = ill_conditioned(dim, condition, dtype)
    root = covariance_root(precision)
    assert root.isfinite().all()
    assert torch.equal(root, root.tril())
    assert (root.diagonal(dim1=-2, dim2=-1) > 0).all()
    # Lᵀ P L is I up to the rounding of P times its condition number; above 1 nothing is left.
    rounding = condition * dim * torch.finfo(dtype).eps
    if rounding < 0.1:
        whitened = root.mT.double() @ precision.double() @ root.double()
        gap = whitened - torch.eye(dim, dtype=torch.double)
        assert torch.linalg.matrix_norm(gap, 2).max() < 4 * rounding


def test_only_a_matrix_that_rounding_made_indefinite_is_regularised():
    sound = ill_conditioned(5, 1e4, torch.float32)
    broken = ill_conditioned(5, 1e12, torch.float32)
    assert (torch.linalg.cholesky_ex(broken).info > 0).all()
    together = precision_root(torch.cat([sound, broken]))
    assert torch.equal(together[:3], torch.linalg.cholesky(sound))
    raised = together[3:] @ together[3:].mT - broken
    # At most ten times what rounding requires, a few 1e-7 of the diagonal.
    diagonal = broken.diagonal(dim1=-2, dim2=-1)
    assert (raised.diagonal(dim1=-2, dim2=-1) < 1e-4 * diagonal).all()


def test_a_clearly_indefinite_matrix_is_refused():
    wrong = torch.stack([torch.eye(2), torch.diag(torch.tensor([1.0, -1.0]))])
    with pytest.raises(ValueError, match="expected positive definite precisions, got 1 that are"):
        precision_root(wrong)


def test_a_gaussian_has_the_precision_and_the_means_dtype():
    precision = ill_conditioned(4, 1e3, torch.double)
    mean = torch.randn(3, 4, generator=seeded(1))
    q = Gaussian.from_precision(mean, precision)
    assert {tensor.dtype for tensor in q.params.values()} == {torch.float32}
    normal = torch.distributions.MultivariateNormal(mean.double(), precision_matrix=precision)
    z = torch.randn(6, 3, 4, generator=seeded(2))
    # Squares of up to 1e4 in float32.
    torch.testing.assert_close(q.log_prob(z).double(), normal.log_prob(z), rtol=1e-5, atol=1e-2)
    mixture = Mixture.from_components(torch.zeros(3, 1), mean[:, None], precision[:, None])
    assert {tensor.dtype for tensor in mixture.params.values()} == {torch.float32}
    torch.testing.assert_close(mixture.log_prob(z), q.log_prob(z), rtol=1e-5, atol=1e-2)
