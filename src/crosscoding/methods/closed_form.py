"""Where p(z|x) has a closed form: observed elements linear in z, under Gaussian noise.

    x = W z + b + σ ε:   p(z|x) = N(P⁻¹ h, P⁻¹),   P = I + Wᵀ M W,   h = Wᵀ M (x − b)
    log p(x) = −½ [(x − b)ᵀ M (x − b) − hᵀ P⁻¹ h + log |P| + Σ log 2πσ²],   M = diag 1 / σ²

Which elements of a datum are linear in z is told by decoding: no code of the decoder is read.

Source: Bishop (2006), section 2.3.3. Differs in: nothing.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from crosscoding.likelihoods import Gaussian
from crosscoding.methods.answers import Answer
from crosscoding.random import normal, quasi_normal
from crosscoding.target import Target, VAETarget
from crosscoding.vae import VAE

_MOST_DIM = 512  # above it P takes more memory than all else, and a fit of low rank is enough
_NUM_PROBES, _TIMES_AS_FAR = 64, (1.0, 10.0, 100.0)
_ROUNDING = 64  # eps of the largest terms that a decoder adds up
_FINE = 1e-3  # nats, of rounding in double, up to which P is taken apart as it is
_CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True, eq=False)
class _LinearElements:
    """The elements of a datum that are W z + b, in double.

    Args:
        weight: W, shape (E, latent); 0 for an element that is not linear.
        bias: b, shape (E,).
        found: Which elements are linear, shape (E,).
    """

    weight: Tensor
    bias: Tensor
    found: Tensor


def has_closed_form(target: Target) -> Tensor:
    """Which queries of a flat target have one, boolean, (B,)."""
    none = torch.zeros(target.num_queries, dtype=torch.bool, device=target.like.device)
    if not isinstance(target, VAETarget) or target.latent_dim > _MOST_DIM:
        return none
    likelihood = target.vae.likelihood
    if not isinstance(likelihood, Gaussian) or likelihood.scale is None:
        return none
    linear = _linear_elements(target.vae)
    return none if linear is None else (linear.found | ~_mask_of(target)).all(-1)


def closed_form(target: Target, num_draws: int, generator: Generator) -> Answer:
    """The exact answer for every query of a flat target, each of which has one."""
    assert isinstance(target, VAETarget)
    eps = normal((target.latent_dim, num_draws), generator=generator, like=target.like.double())
    mask, values = _mask_of(target), target.evidence.values.reshape(target.num_queries, -1)
    most = int(mask.sum(1).max()) if mask.numel() else 0
    size = max(_CHUNK_BYTES // (8 * target.latent_dim * max(most, target.latent_dim)), 1)
    pieces = zip(mask.split(size), values.split(size), strict=True)
    parts = [_solved(target.vae, *piece, eps) for piece in pieces]
    z, log_evidence, error = (torch.cat(several) for several in zip(*parts, strict=True))
    log_evidence, error = log_evidence.to(target.like), error.to(target.like)
    nothing = torch.zeros_like(log_evidence)
    return Answer(
        draws=z.permute(2, 0, 1).to(target.like),
        log_weights=nothing.expand(num_draws, -1),
        log_evidence=log_evidence,
        error=error,
        c_elbo=log_evidence,
        c_elbo_error=error,
        ess=nothing + math.inf,
        pareto_k=nothing + math.nan,
        missed=nothing,
        weighed=nothing + num_draws,
        searched=True,
    )


def _solved(vae: VAE, mask: Tensor, values: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draws (B, latent, S) from noise (latent, S), log p(x) and its rounding, (B,), of queries."""
    linear = _linear_elements(vae)
    assert linear is not None
    assert isinstance(vae.flat_likelihood, Gaussian)
    # Of each query the observed elements alone, in their order, whatever others a datum has.
    most = int(mask.sum(1).max())
    elements = mask.to(torch.int8).sort(dim=1, descending=True, stable=True)[1][:, :most]
    mask, values = mask.gather(1, elements), values.gather(1, elements)
    own = torch.as_tensor(vae.flat_likelihood.scale, dtype=vae.dtype, device=vae.device)
    scale = own.double().expand_as(linear.bias)[elements]
    weight = torch.where(mask[..., None], linear.weight[elements] / scale[..., None], 0.0)
    gaps = torch.where(mask, (values.double() - linear.bias[elements]) / scale, 0.0)
    root, white, squares, error = _by_cholesky(weight, gaps)
    rough = ~(error < _FINE)
    if rough.any():  # NaN too, where rounding left no factor at all
        root[rough], white[rough], squares[rough], error[rough] = _by_qr(weight[rough], gaps[rough])
    half_log_det = root.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
    log_scale = torch.where(mask, scale.log() + 0.5 * math.log(2 * math.pi), 0.0).sum(-1)
    z = torch.linalg.solve_triangular(root, white[..., None] + eps, upper=True)
    return z, -0.5 * squares - half_log_det - log_scale, error


def _by_cholesky(weight: Tensor, gaps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """R with P = Rᵀ R, R⁻ᵀ h, the square brackets less log |P|, and how far rounding takes them.

    Args:
        weight: W / σ, shape (B, E, latent).
        gaps: (x − b) / σ, shape (B, E).
    """
    identity = torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device)
    precision = identity + weight.mT @ weight
    root = torch.linalg.cholesky_ex(precision)[0]
    white = torch.linalg.solve_triangular(root, weight.mT @ gaps[..., None], upper=False)[..., 0]
    size = gaps.square().sum(-1)
    trace = precision.diagonal(dim1=-2, dim2=-1).sum(-1)
    error = torch.finfo(gaps.dtype).eps * (size + weight.shape[-1] * trace)
    return root.mT.contiguous(), white, size - white.square().sum(-1), error


def _by_qr(weight: Tensor, gaps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same from W itself, not from its square: slower, and of twice as many digits."""
    identity = torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device)
    stacked = torch.cat([weight, identity.expand(len(weight), -1, -1)], 1)
    values = nn.functional.pad(gaps, (0, weight.shape[-1]))
    ortho, root = torch.linalg.qr(stacked)
    white = (ortho.mT @ values[..., None])[..., 0]
    rest = values - (ortho @ white[..., None])[..., 0]
    size = weight.square().sum((1, 2)).sqrt() + values.norm(dim=-1) * (1 + rest.norm(dim=-1))
    error = torch.finfo(gaps.dtype).eps * weight.shape[-1] * size
    return root, white, rest.square().sum(-1), error


def _mask_of(target: VAETarget) -> Tensor:
    return target.evidence.mask.reshape(target.num_queries, -1)


def _linear_elements(vae: VAE) -> _LinearElements | None:
    """The elements that are linear in z; None where there are none. Told at the first call."""
    if "linear elements" not in vae.kept:
        vae.kept["linear elements"] = _found_linear_elements(vae)
    return vae.kept["linear elements"]


@torch.no_grad()
def _found_linear_elements(vae: VAE) -> _LinearElements | None:
    like = torch.empty(0, dtype=vae.dtype, device=vae.device)
    probes = quasi_normal(
        _NUM_PROBES, vae.latent_dim, generator=Generator().manual_seed(0), like=like
    )
    # Few decoders have such elements, and three points show most of those that have none.
    first, second = probes[1:2], probes[2:3]
    together = torch.cat([first + second, first, second, torch.zeros_like(first)])
    total, one, other, bias = vae.decode_flat(together).double()
    size = one.abs() + other.abs() + total.abs() + bias.abs()
    found = _is_zero(total - one - other + bias, size, vae.dtype)
    if not found.any():
        return None
    axes = torch.eye(vae.latent_dim, dtype=vae.dtype, device=vae.device)
    weight = (vae.decode_flat(axes).double() - bias).mT
    weight = torch.where(found[:, None], weight, 0.0)
    for factor in _TIMES_AS_FAR:
        far = factor * probes
        size = far.double().abs() @ weight.mT.abs() + bias.abs()
        gap = vae.decode_flat(far).double() - far.double() @ weight.mT - bias
        found = found & _is_zero(gap, size, vae.dtype).all(0)
    if not found.any():
        return None
    return _LinearElements(
        torch.where(found[:, None], weight, 0.0), torch.where(found, bias, 0.0), found
    )


def _is_zero(gap: Tensor, size: Tensor, dtype: torch.dtype) -> Tensor:
    """Where a gap is but for rounding, of sums of terms of some size; NaN is not."""
    return gap.abs() <= _ROUNDING * torch.finfo(dtype).eps * size
