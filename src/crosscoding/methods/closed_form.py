"""Where p(z|x) has a closed form: observed elements linear in z, under Gaussian noise.

    x = W z + b + σ ε:   p(z|x) = N(P⁻¹ h, P⁻¹),   P = I + Wᵀ M W,   h = Wᵀ M (x − b)
    log p(x) = −½ [(x − b)ᵀ M (x − b) − hᵀ P⁻¹ h + log |P| + Σ log 2πσ²],   M = diag 1 / σ²

Which elements of a datum are linear in z is told by decoding: no code of the decoder is read.

Source: Bishop (2006), section 2.3.3. Differs in: nothing.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from crosscoding.clock import UNLIMITED, Clock, OutOfTime
from crosscoding.likelihoods import Gaussian
from crosscoding.methods.answers import Answer
from crosscoding.random import normal, quasi_normal
from crosscoding.target import Target, VAETarget
from crosscoding.vae import VAE

_MOST_DIM = 512  # above it P takes more memory than all else, and a fit of low rank is enough
_NUM_PROBES, _TIMES_AS_FAR = 64, (1.0, 10.0, 100.0)
_ROUNDING = 64  # eps of the largest terms that a decoder adds up
_CHUNK_BYTES = 64 * 2**20
_MOST_BYTES = 256 * 2**20  # of W: what has more is answered as decoders that are not linear
_SHARE = 0.2  # of the time that is left, for finding out which elements are linear


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
    linear = _linear_elements(target.vae, target.clock)
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
    z, log_evidence = (torch.cat(several) for several in zip(*parts, strict=True))
    log_evidence = log_evidence.to(target.like)
    nothing = torch.zeros_like(log_evidence)
    return Answer(
        draws=z.permute(2, 0, 1).to(target.like),
        log_weights=nothing.expand(num_draws, -1),
        log_evidence=log_evidence,
        error=nothing,
        c_elbo=log_evidence,
        c_elbo_error=nothing,
        ess=nothing + math.inf,
        pareto_k=nothing + math.nan,
        missed=nothing,
        weighed=nothing + num_draws,
        searched=True,
    )


def _solved(vae: VAE, mask: Tensor, values: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Draws (B, latent, S) from noise (latent, S), and log p(x), (B,), of some queries."""
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
    identity = torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device)
    root = torch.linalg.cholesky(identity + weight.mT @ weight)
    white = torch.linalg.solve_triangular(root, weight.mT @ gaps[..., None], upper=False)
    squares = gaps.square().sum(-1) - white[..., 0].square().sum(-1)
    half_log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_scale = torch.where(mask, scale.log() + 0.5 * math.log(2 * math.pi), 0.0).sum(-1)
    z = torch.linalg.solve_triangular(root.mT, white + eps, upper=True)
    return z, -0.5 * squares - half_log_det - log_scale


def _mask_of(target: VAETarget) -> Tensor:
    return target.evidence.mask.reshape(target.num_queries, -1)


def _linear_elements(vae: VAE, clock: Clock = UNLIMITED) -> _LinearElements | None:
    """The elements that are linear in z; None where there are none, or no time to tell.

    Told at the first call that has the time.
    """
    if "linear elements" not in vae.kept:
        try:
            vae.kept["linear elements"] = _found_linear_elements(vae, clock)
        except OutOfTime:
            return None
    return vae.kept["linear elements"]


@torch.no_grad()
def _found_linear_elements(vae: VAE, clock: Clock) -> _LinearElements | None:
    if 8 * vae.latent_dim * vae.data_size > _MOST_BYTES:
        return None
    stop = clock.within(_SHARE)
    like = torch.empty(0, dtype=vae.dtype, device=vae.device)
    probes = quasi_normal(
        _NUM_PROBES, vae.latent_dim, generator=Generator().manual_seed(0), like=like
    )
    # Few decoders have such elements, and a few points show most of those that have none. The
    # outputs of large decoders are so many that some agree by chance, but not over and over.
    found = torch.arange(vae.data_size, device=vae.device)
    for factor, pair in zip(_TIMES_AS_FAR, probes[1:].split(2), strict=False):
        first, second = (factor * pair).split(1)
        both = first + second
        together = torch.cat([both, first, second, -both, torch.zeros_like(first)])
        output = torch.cat(list(_decoded(vae, together, found, clock, stop)))
        total, one, other, mirrored, bias = output
        size = output.abs().sum(0)
        linear = _is_zero(total - one - other + bias, size, vae.dtype)
        linear &= _is_zero(total + mirrored - 2 * bias, size, vae.dtype)
        found = found[linear]
        if not len(found):
            return None
    (bias,) = torch.cat(list(_decoded(vae, torch.zeros_like(probes[:1]), found, clock, stop)))
    axes = torch.eye(vae.latent_dim, dtype=vae.dtype, device=vae.device)
    weight = (torch.cat(list(_decoded(vae, axes, found, clock, stop))) - bias).mT
    linear = torch.ones_like(bias, dtype=torch.bool)
    for factor in _TIMES_AS_FAR:
        far = factor * probes
        pieces = far.double().split(_rows_at_once(vae))
        for z, output in zip(pieces, _decoded(vae, far, found, clock, stop), strict=True):
            size = z.abs() @ weight.mT.abs() + bias.abs()
            linear &= _is_zero(output - z @ weight.mT - bias, size, vae.dtype).all(0)
    found, weight, bias = found[linear], weight[linear], bias[linear]
    if not len(found):
        return None
    every = weight.new_zeros(vae.data_size, vae.latent_dim).index_copy(0, found, weight)
    return _LinearElements(
        every,
        bias.new_zeros(vae.data_size).index_copy(0, found, bias),
        torch.zeros_like(every[:, 0], dtype=torch.bool).index_fill(0, found, True),
    )


def _rows_at_once(vae: VAE) -> int:
    """Points that are decoded at once."""
    return max(_CHUNK_BYTES // (8 * vae.row_values), 4)


def _decoded(
    vae: VAE, z: Tensor, elements: Tensor, clock: Clock, stop: Callable[[], bool]
) -> Iterator[Tensor]:
    """Pieces of some elements of what is decoded at z, (N, latent), in double.

    Raises:
        OutOfTime: There is no time for the next piece.
    """
    for piece in z.split(_rows_at_once(vae)):
        clock.beat()
        if stop():
            raise OutOfTime
        yield vae.decode_flat(piece)[:, elements].double()


def _is_zero(gap: Tensor, size: Tensor, dtype: torch.dtype) -> Tensor:
    """Where a gap is but for rounding, of sums of terms of some size; NaN is not."""
    return gap.abs() <= _ROUNDING * torch.finfo(dtype).eps * size
