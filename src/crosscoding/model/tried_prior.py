"""Priors: tried on a few draws before any answer rests on them."""

import torch
from torch import Tensor, nn

from crosscoding.covariates import Covariates
from crosscoding.errors import NonFiniteError
from crosscoding.model.plain_copy import tensors_of
from crosscoding.model.trial import Trial, check_derivatives, frozen_copy
from crosscoding.priors import Normal, Prior
from crosscoding.priors.normal import standard_log_prob
from crosscoding.random import generator_from, normal

NUM_PROBES = 5
_NUM_INVERTED = 64  # draws at which the map is inverted: a fault at 5 % passes in 4 % of cases
_FAR = 4  # points run beside the probes are so many times farther out, and all on one side
_MOST_DIM = 256  # latent dimensions, above which no Jacobian is computed
# Float32 rounding leaves 1e-5 of noise and of log p in flows of 20 layers; a wrong sign or a
# forgotten factor changes log p by tenths of nats at least.
_INVERSE, _NATS, _OF_LOG_PROB = 1e-2, 0.05, 1e-4


def tried_prior(
    prior: Prior | None, latent_dim: int, like: Tensor, given: Covariates = None
) -> Prior:
    """A frozen copy of a prior, after a trial; None makes it standard normal.

    Args:
        prior: The prior.
        latent_dim: Size of z that the decoder takes.
        like: An empty tensor of the decoder's dtype, on its device.
        given: Covariates of one query, if the decoder takes any.
    Raises:
        TypeError: prior is not a `Prior`.
        ValueError: It does not fit latent_dim or the decoder's dtype or device, is not one-to-one,
            contradicts its own density, or breaks a rule of `Trial`.
        NonFiniteError: A draw or its density is NaN or infinite.
    """
    if prior is None or (isinstance(prior, Normal) and prior.fits_any):
        return Normal(latent_dim)
    if not isinstance(prior, Prior):
        raise TypeError(
            "expected prior to be one of crosscoding.priors, such as Gaussian(mean, scale), got "
            f"{prior!r:.80}"
        )
    name = type(prior).__name__
    if prior.latent_dim != latent_dim:
        raise ValueError(
            f"expected a prior of {latent_dim} numbers, as latent_dim says, got {name} of "
            f"{prior.latent_dim}"
        )
    if prior.takes_given and given is None:
        raise ValueError(
            f"expected VAE(..., given=...) with examples of covariates, as the prior, {name}, "
            "depends on them"
        )
    copied = frozen_copy(prior, "prior")
    assert isinstance(copied, Prior)
    _check_tensors(copied, like)
    if copied.noise_dim is not None and not isinstance(copied, Normal):
        _try_map(copied, like, given)
    return copied


def prior_probes(
    prior: Prior, like: Tensor, num: int = NUM_PROBES, given: Covariates = None
) -> Tensor:
    """The draws from a prior that networks are tried on, (num, latent): always the same."""
    if prior.noise_dim is None:
        return prior.sample(num, generator=generator_from(0), like=like)
    return prior.from_noise(_noise(prior, like, num), given)


def far_probes(prior: Prior, like: Tensor, given: Covariates = None) -> Tensor:
    """Points unlike the probes, far out if z is continuous, (NUM_PROBES, latent)."""
    if prior.noise_dim is None:
        return prior.sample(NUM_PROBES, generator=generator_from(1), like=like)
    return prior.from_noise(_FAR * _noise(prior, like, NUM_PROBES).abs(), given)


def _noise(prior: Prior, like: Tensor, num: int) -> Tensor:
    assert prior.noise_dim is not None
    return normal((num, prior.noise_dim), generator=generator_from(0), like=like)


def _check_tensors(prior: Prior, like: Tensor) -> None:
    for tensor in tensors_of(prior):
        if tensor.is_floating_point() and (tensor.dtype, tensor.device) != (
            like.dtype,
            like.device,
        ):
            raise ValueError(
                f"expected a prior in the decoder's {like.dtype} on {like.device}, got "
                f"{tensor.dtype} on {tensor.device}; convert it with prior.to(...)"
            )


def _try_map(prior: Prior, like: Tensor, given: Covariates) -> None:
    noise, name = _noise(prior, like, NUM_PROBES), type(prior).__name__

    def run(network: nn.Module, rows: Tensor) -> Tensor:
        assert isinstance(network, Prior)
        return network.from_noise(rows, given)

    trial = Trial(
        prior,
        run,
        noise,
        _FAR * noise.abs(),
        "prior",
        "check its sizes and networks",
    )
    z = trial.output
    if z.shape != (NUM_PROBES, prior.latent_dim):
        raise ValueError(
            f"expected {name} to make z of shape {(NUM_PROBES, prior.latent_dim)} from noise of "
            f"shape {tuple(noise.shape)}, got {tuple(z.shape)}"
        )
    trial.check(like.dtype)
    if not z.isfinite().all():
        raise NonFiniteError(f"expected finite draws from the prior, {name}, got NaN or infinity")
    check_derivatives(lambda rows: prior.from_noise(rows, given), noise, "prior")
    _check_inverse(prior, _noise(prior, like, _NUM_INVERTED), given)
    if prior.latent_dim <= _MOST_DIM:
        _check_density(prior, noise[:2], given)


@torch.no_grad()
def _check_inverse(prior: Prior, noise: Tensor, given: Covariates) -> None:
    back = prior.to_noise(prior.from_noise(noise, given), given)
    gap = ((back - noise).abs() / (1 + noise.abs())).nan_to_num(nan=torch.inf).max().item()
    if not gap <= _INVERSE:
        raise ValueError(
            f"expected a one-to-one prior, got {type(prior).__name__}, whose inverse is off by "
            f"{gap:.2g} at a draw: to_noise(from_noise(noise)) must be the noise; is the map "
            "one-to-one, and can the prior's precision tell different z apart?"
        )


def _check_density(prior: Prior, noise: Tensor, given: Covariates) -> None:
    """Compare log_prob with log N(ε) − log |det dz/dε|, from the Jacobian at a few ε."""
    with torch.enable_grad():
        noise = noise.clone().requires_grad_()
        z = prior.from_noise(noise, given)
        slopes = [
            torch.autograd.grad(z[:, d].sum(), noise, retain_graph=True, allow_unused=True)[0]
            for d in range(z.shape[1])
        ]
    rows = [torch.zeros_like(noise) if slope is None else slope for slope in slopes]
    ladj = torch.linalg.slogdet(torch.stack(rows, 1).double()).logabsdet
    wanted = standard_log_prob(noise.detach().double()) - ladj
    found = prior.log_prob(z.detach(), given).detach().double()
    gap = (found - wanted).abs().nan_to_num(nan=torch.inf)
    allowed = _NATS + _OF_LOG_PROB * wanted.abs()
    if not (gap <= allowed).all():
        worst = int((gap - allowed).argmax())
        raise ValueError(
            f"expected log_prob of {type(prior).__name__} to be the density of from_noise, got "
            f"{found[worst]:.4g} nats where the change of variables gives {wanted[worst]:.4g}; "
            "its log determinant or its inverse is wrong, or a network sees what it must not"
        )
