"""Mixtures of diagonal Gaussians, among them the VampPrior.

Noise becomes z by the Rosenblatt map, one dimension after another: z_d is the Φ(ε_d) quantile of
its distribution given z_1 … z_{d−1}, which is again a mixture,

    F_d(z_d) = Σ_k w_k Φ((z_d − m_kd) / s_kd),   w_k ∝ π_k Π_{j<d} N(z_j; m_kj, s_kj²).

Source: Rosenblatt (1952), Remarks on a multivariate transformation; Tomczak & Welling (2018), VAE
with a VampPrior, eq. 9. Differs in: the pseudo-inputs are encoded once, as the VAE is trained.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from crosscoding.arrays import numbers_in
from crosscoding.covariates import Covariates
from crosscoding.priors.base import ContinuousPrior
from crosscoding.priors.networks import mean_and_scale
from crosscoding.priors.quantiles import Components, normal_score, quantile


class Mixture(ContinuousPrior):
    """Σ_k π_k N(m_k, diag s_k²).

    Args:
        weights: Shares π of the components, > 0, shape (K,); they are divided by their sum.
        means: m, shape (K, latent).
        scales: Standard deviations s, > 0, shape (K, latent), or what broadcasts to it.

    Raises:
        ValueError: The shapes do not fit, or a weight or scale is not positive and finite.

    Example:
        >>> two = Mixture(torch.ones(2), torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), torch.tensor(0.5))
        >>> two.from_noise(torch.zeros(1, 2)).shape
        torch.Size([1, 2])
    """

    may_be_steep = True  # between distant components

    def __init__(self, weights: Tensor, means: Tensor, scales: Tensor | float) -> None:
        weights, means = numbers_in(weights, "weights"), numbers_in(means, "means")
        if means.ndim != 2 or not means.is_floating_point():
            raise ValueError(
                "expected floating-point means of shape (K, latent), got "
                f"{tuple(means.shape)} of {means.dtype}"
            )
        super().__init__(means.shape[1])
        scales = torch.as_tensor(scales, dtype=means.dtype, device=means.device)
        try:
            scales = scales.expand(means.shape)
        except RuntimeError as error:
            raise ValueError(
                f"expected scales that broadcast to {tuple(means.shape)}, as means, got "
                f"{tuple(scales.shape)}"
            ) from error
        if weights.shape != means.shape[:1]:
            raise ValueError(
                f"expected {len(means)} weights, one for each component, got shape "
                f"{tuple(weights.shape)}"
            )
        for name, numbers in {"weights": weights, "scales": scales}.items():
            if not (numbers.isfinite() & (numbers > 0)).all():
                raise ValueError(f"expected finite {name} > 0, got {numbers.min().item():.4g}")
        if not means.isfinite().all():
            raise ValueError("expected finite means, got NaN or infinity")
        self._set(weights.detach().to(means).log().log_softmax(0), means, scales)

    @classmethod
    @torch.no_grad()
    def vamp(cls, pseudo_inputs: Tensor, encoder: nn.Module, weights: Tensor | None = None) -> Self:
        """The VampPrior, (1/K) Σ_k q(z|u_k), for an encoder and pseudo-inputs u_k.

        Args:
            pseudo_inputs: u, shape (K, *data).
            encoder: Module from u to mean and log-variance of q(z|u), side by side in one tensor,
                (K, 2 latent), or as a tuple of two, (K, latent). It is run once, in eval mode.
            weights: Shares of the components, > 0, shape (K,); None: all equal.
        Raises:
            ValueError: The encoder's output is something else.
        """
        was_training = encoder.training
        output = encoder.eval()(numbers_in(pseudo_inputs, "pseudo_inputs"))
        encoder.train(was_training)
        size = output.shape[-1] // 2 if isinstance(output, Tensor) else output[0].shape[-1]
        means, scales = mean_and_scale(output, size, "the encoder")
        return cls(means.new_ones(len(means)) if weights is None else weights, means, scales)

    def from_noise(self, noise: Tensor, given: Covariates = None) -> Tensor:
        return self._by_dimension(noise, lambda own, mixture: (x := quantile(own, mixture), x))

    def to_noise(self, z: Tensor, given: Covariates = None) -> Tensor:
        return self._by_dimension(z, lambda own, mixture: (normal_score(own, mixture), own))

    def log_prob(self, z: Tensor, given: Covariates = None) -> Tensor:
        gaps = (z.unsqueeze(-2) - self.means) / self.scales
        log_densities = -0.5 * (gaps.square() + math.log(2 * math.pi)) - self.scales.log()
        return (self.log_weights + log_densities.sum(-1)).logsumexp(-1)

    def precision(self, z: Tensor) -> Tensor:
        """About −∂² log p(z) / ∂z_d², in the shape of z.

        The components' precisions are averaged, weighted by their shares of the density at z.
        """
        gaps = (z.unsqueeze(-2) - self.means) / self.scales
        log_shares = self.log_weights - (0.5 * gaps.square() + self.scales.log()).sum(-1)
        return (log_shares.softmax(-1).unsqueeze(-1) * self.scales.pow(-2)).sum(-2)

    def settings(self) -> dict[str, Any]:
        return {"latent_dim": self.latent_dim, "components": len(self.log_weights)}

    @classmethod
    def empty(cls, settings: Mapping[str, Any], networks: Mapping[str, nn.Module]) -> Self:
        prior = cls.__new__(cls)
        ContinuousPrior.__init__(prior, settings["latent_dim"])
        with torch.device("meta"):
            weights = torch.empty(settings["components"])
            means = torch.empty(settings["components"], settings["latent_dim"])
        prior._set(weights, means, means)
        return prior

    def _by_dimension(
        self, points: Tensor, function: Callable[[Tensor, Components], tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Apply a function to each element in turn; it returns a value and that element of z."""
        flat = points.reshape(-1, self.latent_dim)
        log_weights, columns = self.log_weights.expand(len(flat), -1), []
        for own, mean, scale in zip(
            flat.unbind(-1), self.means.unbind(1), self.scales.unbind(1), strict=True
        ):
            mixture = Components(log_weights, mean, scale)
            column, z = function(own, mixture)
            log_weights = mixture.log_densities(z)
            log_weights = log_weights - log_weights.logsumexp(-1, keepdim=True)
            columns.append(column)
        return torch.stack(columns, -1).reshape(points.shape)

    def _set(self, log_weights: Tensor, means: Tensor, scales: Tensor) -> None:
        self.log_weights: Tensor
        self.means: Tensor
        self.scales: Tensor
        self.register_buffer("log_weights", log_weights)
        self.register_buffer("means", means.detach().clone())
        self.register_buffer("scales", scales.detach().clone())
