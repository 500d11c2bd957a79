"""Checks of the latent space: which dimensions the decoder uses, and where data lie."""

import torch
from torch import Tensor

from crosscoding.checks.subject import Subject
from crosscoding.errors import counted
from crosscoding.model.check_report import CheckResult
from crosscoding.target.jacobian import with_jacobian

_OPERATIONS = 2e10  # multiply-adds for Jacobians: about a second
_MOST_JACOBIANS = 32
# Fisher information, or variance of q's means, below which a dimension is ignored: a datum narrows
# it by less than 0.5 %. The zoo has no such dimension.
_ACTIVE = 0.01
_APART = 0.25  # nats of KL[moments of q(z) ‖ N(0, I)] per dimension: 0.05 in the zoo, faults 1.7
_FARTHEST = 4.0  # mean square of a coordinate of z: 1.0 to 1.9 in the zoo, 6.0 or more with faults
_FEWEST_PAIRS = 16  # data: with fewer, a good encoder may do no better than chance
_FEWEST = 100  # data, whose noise adds about 1 / N nats per dimension to the KL of their moments


@torch.no_grad()
def use(subject: Subject) -> CheckResult:
    """How many latent dimensions move the datum by more than its noise.

    Measured by the Fisher information about each, diag E[Jᵀ F J]: a complete datum reduces the
    standard deviation to about 1 / √(1 + information) of the prior's.
    """
    vae = subject.vae
    dim = vae.latent_dim
    num = int(max(min(_OPERATIONS / (vae.operations * dim), _MOST_JACOBIANS), 2))
    everything = torch.ones(1, vae.data_size, dtype=torch.bool, device=vae.device)
    information = torch.zeros(dim, dtype=torch.double, device=vae.device)
    for index, z in enumerate(subject.probes[:num]):
        decode = subject.of_probe(torch.tensor([index], device=z.device)).decode_flat
        params, jacobian = with_jacobian(decode, z[None, None])
        product = vae.flat_likelihood.fisher_product(params, jacobian, everything)
        information += (jacobian.double() * product).flatten(1).sum(1) / num
    ignored = (~(information > _ACTIVE)).nonzero()[:, 0].tolist()
    left = 1 / (1 + information).sqrt()
    figures = {"active": float(dim - len(ignored)), "ignored": float(len(ignored))}
    if len(ignored) == dim:
        return CheckResult(
            "latent",
            "error",
            f"none of {counted(dim, 'dimension')} moves the datum by more than its noise: the "
            "decoder is untrained or dead, or the likelihood's scale is far too large",
            figures,
        )
    if ignored:
        named = ", ".join(map(str, ignored[:8])) + (", …" if len(ignored) > 8 else "")
        return CheckResult(
            "latent",
            "note",
            f"{dim - len(ignored)} of {dim} dimensions are active; the decoder ignores {named}, "
            "which keep their prior and only cost time",
            figures,
        )
    return CheckResult(
        "latent",
        "ok",
        f"{_all_active(dim)}; a complete datum reduces standard deviations to {left.min():.2g} to "
        f"{left.max():.2g} of the prior's",
        figures,
    )


def _all_active(dim: int) -> str:
    return "the dimension is active" if dim == 1 else f"all {dim} dimensions are active"


def prior(subject: Subject) -> CheckResult:
    """Whether data lie where the prior does: the aggregated posterior q(z) against N(0, I)."""
    if subject.encoded is None:
        return _prior_by_fits(subject)
    means, variances = subject.encoded
    num, dim = means.shape
    mean = means.double().mean(0)
    variance = variances.double().mean(0) + means.double().var(0, correction=0)
    divergence = 0.5 * (mean.square() + variance - 1 - variance.log())
    active = (means.double().var(0, correction=0) > _ACTIVE).double().mean().item()
    total, worst = divergence.sum().item(), int(divergence.argmax())
    figures = {"kl": total, "active_share": active, "count": float(num)}
    words = (
        f"q(z) of {counted(num, 'datum', 'data')}: means {_span(mean)}, standard deviations "
        f"{_span(variance.sqrt())}, KL of its moments to the prior {total:.2g} nats, "
        f"{active:.0%} of dimensions active"
    )
    if num < _FEWEST:
        return CheckResult("prior", "note", f"{words}; too few to judge by", figures)
    if total > _APART * dim or divergence[worst] > 4 * _APART:
        return CheckResult(
            "prior",
            "warning",
            f"{words}; worst in dimension {worst}, with mean {mean[worst]:.2g} and deviation "
            f"{variance[worst].sqrt():.2g}: data lie where the prior has little mass, so "
            "completions from little evidence will not look like them",
            figures,
        )
    return CheckResult("prior", "ok", words, figures)


def _prior_by_fits(subject: Subject) -> CheckResult:
    """The same check from the mean square of z over fits to a few data, 1 under the prior."""
    fits = subject.fits
    spread = torch.linalg.eigvalsh(fits.precision).reciprocal()
    square = (fits.mean.double().square() + spread).mean().item()
    figures = {"mean_square": square, "count": float(len(fits.data))}
    num = counted(len(fits.data), "datum", "data")
    words = f"z of {num} has a mean square of {square:.2g}, 1 under the prior"
    noise = (2 / fits.mean.numel()) ** 0.5
    if square > _FARTHEST + 4 * noise:
        return CheckResult(
            "prior",
            "warning",
            f"{words}: data lie farther out than the prior, so completions from little evidence "
            "will not look like them",
            figures,
        )
    return CheckResult("prior", "ok", f"{words}; pass an encoder for a finer check", figures)


@torch.no_grad()
def encoder(subject: Subject) -> CheckResult | None:
    """Whether the encoder belongs to the decoder: does its z for a datum decode to that datum?"""
    if subject.encoded is None or subject.data is None:
        return None
    means, _ = subject.encoded
    num = min(len(means), len(subject.probes))
    if num < _FEWEST_PAIRS:
        return None
    params = subject.flat(subject.decoded(means[:num]))
    data = subject.data[:num].flatten(1)
    everything = torch.ones_like(data, dtype=torch.bool)
    likelihood = subject.vae.flat_likelihood
    own = likelihood.masked_log_prob(params, data, everything)
    other = likelihood.masked_log_prob(params, data.roll(1, 0), everything)
    better = (own > other).double().mean().item()
    figures = {"own_is_likelier": better}
    words = f"{better:.0%} of {num} data are more likely at their own z than at another datum's"
    if better < 0.5 + 1 / num**0.5:  # chance and two standard errors
        return CheckResult(
            "encoder",
            "warning",
            f"{words}, no better than chance: does the encoder belong to this decoder, and are the "
            "data scaled for both?",
            figures,
        )
    return CheckResult("encoder", "ok", words, figures)


def _span(values: Tensor) -> str:
    return f"{values.min():.2g} to {values.max():.2g}"
