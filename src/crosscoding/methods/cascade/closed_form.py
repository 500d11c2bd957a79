"""p(z|x) in closed form, where observed elements are linear in z with Gaussian noise.

    x = W z + b + σ ε:   p(z|x) = N(P⁻¹ h, P⁻¹),   P = I + Wᵀ M W,   h = Wᵀ M (x − b)
    log p(x) = −½ [(x − b)ᵀ M (x − b) − hᵀ P⁻¹ h + log |P| + Σ log 2πσ²],   M = diag 1 / σ²

Linear elements are recognised by decoding some points; the decoder's code is not inspected.

Source: Bishop (2006), section 2.3.3. Differs in: nothing.
"""

import math
import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from crosscoding.clock import UNLIMITED
from crosscoding.likelihoods import Gaussian, Likelihood, Mixed
from crosscoding.model.bank import MAX_POINTS
from crosscoding.model.vae import VAE
from crosscoding.random import normal, quasi_normal
from crosscoding.result.findings import Findings
from crosscoding.result.trace import Stage
from crosscoding.target.base import Target
from crosscoding.target.known_sums import KnownSums
from crosscoding.target.partial_evidence import PartialEvidence
from crosscoding.target.vae_target import VAETarget

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
# Models with more latent dimensions, entries of W, or multiply-adds per decode are left to the
# cascade: looking for linear elements would likely take longer than it saves.
_MOST_DIM, _MOST_NUMBERS, _MOST_OPERATIONS = 512, 2**22, 1e7
_NUM_PROBES, _TIMES_AS_FAR = 64, (1.0, 10.0, 100.0)  # points to test for curvature, and how far out
_AT_ONCE = 1024  # points decoded at once
_FOR_PROBES = 1e9  # multiply-adds for more of the nearest points, up to as many as the bank has
# Times eps: rounding allowed, relative to the largest terms in a decoder's sums. With half of it, 3
# of 1,024 linear elements of a 512-d decoder in float32 are not recognised; with double, 2 of 16
# that a sine of 3e-6 bends are taken for linear.
_ROUNDING = 64
# Of σ, by which an element may be off; the effect on log p(x) is smaller. Halving or doubling it or
# _NUM_PROBES recognises the same elements: all linear ones, and none that a sine of 3e-6 to 0.01
# bends, or that has a kink at 1 to 100 standard deviations.
_OF_SCALE = 1e-3
_CHUNK_BYTES = 64 * 2**20  # of memory for queries answered at once
_SHARE_FOR_LOOKING, _SHARE_OF_TIME = 0.5, 0.6  # of the time left: for looking, and for answering
# Multiply-adds of large matrix products on one core of 2020, within a factor of a few.
_OPERATIONS_A_SECOND = 1e10
_ALMOST_NO_TIME = 0.01  # seconds, less than any other answer takes
_NUM_TIMED = 16  # queries on which answering is timed
NUM_DECODED = 4  # draws of each answer
_BYTES_A_DECODE = 8 * 8 * NUM_DECODED  # per element: some copies in double


@dataclass(frozen=True, eq=False)
class _LinearElements:
    """The elements of a datum that equal W z + b, in double.

    Args:
        weight: W, shape (E, latent); 0 for elements that are not linear.
        bias: b, shape (E,).
        scale: σ, shape (E,).
        found: Which elements are linear, shape (E,).
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    found: Tensor


def has_closed_form(target: Target) -> Tensor:
    """Which queries of a flat target have a closed form, boolean (B,)."""
    none = torch.zeros(target.num_queries, dtype=torch.bool, device=target.like.device)
    if not isinstance(target, VAETarget) or not len(none) or not target.decodes_alike:
        return none
    if not _is_affordable(target):
        return none
    linear, partial = _linear_elements(target.vae), target.partial
    if linear is None or (partial is not None and not partial.is_normal):
        return none
    return (linear.found | ~_used_by(target)).all(-1)


def closed_form(
    target: Target, num_draws: int, generator: Generator, most_decodes: int
) -> tuple[Findings, Tensor]:
    """The exact answers to the queries of a flat target, all of which should have a closed form.

    Up to `most_decodes` draws of each answer are decoded, to see whether the observed elements are
    linear there too. If time is too short for `num_draws` draws, there are fewer, and their number
    is the ESS.

    Returns:
        The answers, and which of them the decoder confirms, boolean, (B,).
    """
    start = time.perf_counter()
    assert isinstance(target, VAETarget)
    linear = _linear_elements(target.vae)
    assert linear is not None
    num_decoded = min(NUM_DECODED, most_decodes, num_draws)
    wanted_draws, num_draws = num_draws, _affordable_draws(target, num_draws, most_decodes)
    mask, values = _mask_of(target), target.evidence.values.reshape(target.num_queries, -1)
    used = _used_by(target)
    eps = normal((target.latent_dim, num_draws), generator=generator, like=linear.bias)
    draws = target.like.new_zeros(num_draws, target.num_queries, target.latent_dim)
    log_evidence = target.like.new_zeros(target.num_queries)
    error = torch.zeros_like(log_evidence)
    confirmed = torch.ones_like(log_evidence, dtype=torch.bool)
    counts = mask.sum(1)
    for count in counts.unique().tolist():  # sums have one length, so that rounding does not
        rows = (counts == count).nonzero()[:, 0]  # depend on the other queries
        numbers = max(target.latent_dim * max(count, target.latent_dim, num_draws), 1)
        chunk = target.clock.piece_bytes(_CHUNK_BYTES)
        for some in rows.split(max(chunk // (8 * numbers), 1)):
            elements = mask[some].nonzero()[:, 1].reshape(len(some), count)
            more = ()
            if target.partial is not None:
                more = (_partial_rows(linear, target.partial.select(some)),)
            own = values[some].gather(1, elements)
            z, *found = _solved(linear, elements, own, eps, *more)
            draws[:, some] = z.permute(2, 0, 1).to(draws)
            log_evidence[some], error[some] = (part.to(draws) for part in found)
    at_once = target.clock.piece_bytes(_CHUNK_BYTES) // (_BYTES_A_DECODE * target.vae.data_size)
    for some in torch.arange(len(mask), device=mask.device).split(max(at_once, 1)):
        confirmed[some] = _is_linear_at(target.vae, linear, draws[:num_decoded, some], used[some])
    error = error + torch.finfo(error.dtype).eps * log_evidence.abs()
    nothing = torch.zeros_like(log_evidence)
    seconds = (time.perf_counter() - start) / len(counts)
    findings = Findings(
        draws=draws,
        log_evidence=log_evidence,
        log_evidence_error=error,
        c_elbo=log_evidence,
        c_elbo_error=error,
        ess=nothing + (math.inf if num_draws == wanted_draws else num_draws),
        pareto_k=nothing + math.nan,
        exact_density=True,
        missed=nothing,
        num_weighed=nothing + num_draws,
        finished=torch.ones_like(confirmed),
        collapsed=torch.zeros_like(nothing, dtype=torch.bool),
        trace=(Stage("closed form", nothing + num_decoded, nothing + seconds),),
    )
    return findings, confirmed


def _affordable_draws(target: VAETarget, num_draws: int, most_decodes: int) -> int:
    """How many draws there is time for, at least 2, measured on a few queries."""
    if not target.clock.is_limited or target.num_queries <= _NUM_TIMED:
        return num_draws
    start = time.perf_counter()
    few = target.select(torch.arange(_NUM_TIMED, device=target.like.device)).timed(UNLIMITED)
    closed_form(few, num_draws, Generator(), most_decodes)
    wanted = (time.perf_counter() - start) / _NUM_TIMED * target.num_queries
    share = _SHARE_OF_TIME * target.clock.left / max(wanted, 1e-9)
    return min(num_draws, max(int(share * num_draws), 2))


def _is_linear_at(vae: VAE, linear: _LinearElements, z: Tensor, mask: Tensor) -> Tensor:
    """Whether all observed elements, mask (B, E), are W z + b at z (S, B, latent), (B,)."""
    flat = z.flatten(0, 1)
    gap = (_means(vae, flat) - flat.double() @ linear.weight.mT - linear.bias).abs()
    size = flat.double().abs() @ linear.weight.mT.abs() + linear.bias.abs()
    allowed = (_ROUNDING * torch.finfo(vae.dtype).eps * size).maximum(_OF_SCALE * linear.scale)
    return ((gap <= allowed).unflatten(0, z.shape[:2]) | ~mask).all(-1).all(0)


class _Rows(NamedTuple):
    """Observed numbers as rows of x − b = W z + ε with standard normal ε, in double.

    Attributes:
        weight: W, shape (B, n, latent).
        gaps: x − b, shape (B, n).
        log_scale: Sum of the logs of what the rows were divided by, plus ½ log 2π each, shape (B,).
    """

    weight: Tensor
    gaps: Tensor
    log_scale: Tensor


def _exact_rows(linear: _LinearElements, elements: Tensor, values: Tensor) -> _Rows:
    """Rows of exact values (B, n) of elements (B, n)."""
    scale = linear.scale[elements]
    gaps = (values.double() - linear.bias[elements]) / scale
    log_scale = (scale.log() + _HALF_LOG_2PI).sum(-1)
    return _Rows(linear.weight[elements] / scale[..., None], gaps, log_scale)


def _partial_rows(linear: _LinearElements, partial: PartialEvidence) -> _Rows:
    """Rows of noisy values and of known sums, whose noise includes that of the likelihood."""
    num, dim = len(partial.used), linear.weight.shape[1]
    rows = _Rows(*(linear.weight.new_zeros(num, *shape) for shape in ((0, dim), (0,), ())))
    for part in partial.elements:
        elements, known = part.elements[..., 0], part.known
        scale = torch.where(part.valid, torch.hypot(linear.scale[elements], known.noise), 1.0)
        weight, gaps = linear.weight[elements], known.value - linear.bias[elements]
        own = _Rows(
            torch.where(part.valid[..., None], weight / scale[..., None], 0.0),
            torch.where(part.valid, gaps / scale, 0.0),
            torch.where(part.valid, scale.log() + _HALF_LOG_2PI, 0.0).sum(-1),
        )
        rows = _joined(rows, own)
    return rows if partial.sums is None else _joined(rows, _sum_rows(linear, partial.sums))


def _sum_rows(linear: _LinearElements, known: KnownSums) -> _Rows:
    """Rows of known sums, divided by the root L of their covariance."""
    sums, root = known.sums, known.root
    assert root is not None
    weight, bias = linear.weight[sums.elements], linear.bias[sums.elements]
    gaps = sums.values - sums.operator @ bias
    both = torch.cat([(sums.operator @ weight).expand(len(gaps), -1, -1), gaps[..., None]], -1)
    white = torch.linalg.solve_triangular(root, both, upper=False)
    log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_scale = (log_det + sums.num_rows.double() * _HALF_LOG_2PI).expand(len(gaps))
    return _Rows(white[..., :-1], white[..., -1], log_scale)


def _joined(one: _Rows, other: _Rows) -> _Rows:
    weight = torch.cat([one.weight, other.weight], 1)
    return _Rows(weight, torch.cat([one.gaps, other.gaps], 1), one.log_scale + other.log_scale)


def _solved(
    linear: _LinearElements,
    elements: Tensor,
    values: Tensor,
    eps: Tensor,
    more: _Rows | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws (B, latent, S), log p(x) and its rounding error, (B,), with n exact values each.

    P = Rᵀ R by QR of W / σ stacked on I, as squaring W would cost half of the digits.

    Args:
        linear: The linear elements of a datum.
        elements: Indices of the elements with exact values, shape (B, n).
        values: Their values, shape (B, n).
        eps: Standard normal noise, shape (latent, S).
        more: Rows of partial evidence.
    """
    rows = _exact_rows(linear, elements, values)
    weight, gaps, log_scale = rows if more is None else _joined(rows, more)
    dim = weight.shape[-1]
    identity = torch.eye(dim, dtype=weight.dtype, device=weight.device)
    stacked = torch.cat([weight, identity.expand(len(weight), -1, -1)], 1)
    gaps = nn.functional.pad(gaps, (0, dim))
    ortho, root = torch.linalg.qr(stacked)
    white = ortho.mT @ gaps[..., None]
    rest = gaps - (ortho @ white)[..., 0]
    half_log_det = root.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
    z = torch.linalg.solve_triangular(root, white + eps, upper=True)
    size = weight.square().sum((1, 2)).sqrt() + gaps.norm(dim=-1) * (1 + rest.norm(dim=-1))
    rounding = torch.finfo(gaps.dtype).eps * dim * size
    return z, -0.5 * rest.square().sum(-1) - half_log_det - log_scale, rounding


def _mask_of(target: VAETarget) -> Tensor:
    return target.evidence.exact.reshape(target.num_queries, -1)


def _used_by(target: VAETarget) -> Tensor:
    """Which elements log p(x|z) depends on, (B, E)."""
    mask, partial = _mask_of(target), target.partial
    return mask if partial is None else mask | partial.used


def _is_affordable(target: VAETarget) -> bool:
    """Whether there is time to look for linear elements, by the counted cost of decoding."""
    vae, clock = target.vae, target.clock
    if "linear elements" in vae.kept or not clock.is_limited:
        return True
    decodes = vae.latent_dim + len(_TIMES_AS_FAR) * _NUM_PROBES + _num_near(vae)
    seconds = decodes * vae.operations / _OPERATIONS_A_SECOND
    return seconds <= max(_SHARE_FOR_LOOKING * clock.left, _ALMOST_NO_TIME)


def _linear_elements(vae: VAE) -> _LinearElements | None:
    """The elements that are linear in z, or None; the model keeps the result."""
    scale = _scale_of(vae)
    if scale.isnan().all():
        return None
    small = vae.latent_dim <= _MOST_DIM and vae.data_size * vae.latent_dim <= _MOST_NUMBERS
    if not small or vae.operations > _MOST_OPERATIONS:
        return None
    if "linear elements" not in vae.kept:
        vae.kept["linear elements"] = _found_linear_elements(vae, scale)
    return vae.kept["linear elements"]


def _scale_of(vae: VAE) -> Tensor:
    """σ of each element with fixed Gaussian noise, NaN for others, in double, (E,)."""
    like = torch.empty(0, dtype=vae.dtype, device=vae.device)
    likelihood = vae.flat_likelihood
    if not isinstance(likelihood, Mixed):
        return _scales(likelihood, vae.data_size, like).double()
    return likelihood.joined([_scales(part, num, like) for part, num in likelihood.pairs]).double()


def _scales(likelihood: Likelihood, num: int, like: Tensor) -> Tensor:
    if not isinstance(likelihood, Gaussian) or likelihood.scale is None:
        return like.new_full((num,), math.nan)
    return torch.as_tensor(likelihood.scale, dtype=like.dtype, device=like.device).expand(num)


@torch.no_grad()
def _found_linear_elements(vae: VAE, scale: Tensor) -> _LinearElements | None:
    like = torch.empty(0, dtype=vae.dtype, device=vae.device)
    probes = quasi_normal(
        _NUM_PROBES, vae.latent_dim, generator=Generator().manual_seed(0), like=like
    )
    # Few decoders have linear elements, and three points suffice to rule out most of the others.
    first, second = probes[1:2], probes[2:3]
    together = torch.cat([first + second, first, second, torch.zeros_like(first)])
    total, one, other, bias = _means(vae, together)
    rounding = _ROUNDING * torch.finfo(vae.dtype).eps
    size = one.abs() + other.abs() + total.abs() + bias.abs()
    allowed = (rounding * size).minimum(_OF_SCALE * scale)
    found = (total - one - other + bias).abs() <= allowed  # False for NaN
    if not found.any():
        return None
    axes = torch.eye(vae.latent_dim, dtype=vae.dtype, device=vae.device)
    weight = torch.where(found[:, None], (_means(vae, axes) - bias).mT, 0.0)
    near = quasi_normal(
        _num_near(vae), vae.latent_dim, generator=Generator().manual_seed(0), like=like
    )
    for factor in sorted(_TIMES_AS_FAR, reverse=True):  # few points far away rule out most
        for points in (near if factor == 1 else factor * probes).split(_AT_ONCE):
            some = found.nonzero()[:, 0]
            if not len(some):
                return None
            there, size = points.double() @ weight[some].mT, bias[some].abs()
            allowed = rounding * (points.double().abs() @ weight[some].mT.abs() + size)
            if factor == 1:
                allowed = allowed.minimum(_OF_SCALE * scale[some])
            gap = _means(vae, points)[:, some] - there - bias[some]
            found[some] = (gap.abs() <= allowed).all(0)
    weight, bias = torch.where(found[:, None], weight, 0.0), torch.where(found, bias, 0.0)
    return _LinearElements(weight, bias, scale, found) if found.any() else None


def _num_near(vae: VAE) -> int:
    """How many prior draws must be linear: as many as the bank has, if that is cheap."""
    return int(min(max(_FOR_PROBES / vae.operations, _NUM_PROBES), MAX_POINTS))


def _means(vae: VAE, z: Tensor) -> Tensor:
    """The mean of each element at z (N, latent), in double, (N, E)."""
    return vae.flat_likelihood.mean(vae.decode_flat(z)).double()
