"""A hierarchy of latent variables, as in ladder and other deep VAEs.

    p(z) = N(z_L; 0, I) p(z_{L−1} | z_L) ⋯ p(z_1 | z_2, …, z_L),   each p a diagonal Gaussian

z is all levels side by side, the top level z_L first, and so is the noise:
z_l = μ_l + σ_l ε_l with μ_l and σ_l functions of the levels above.

Source: Sønderby et al. (2016), eq. 2–4. Differs in: a level may depend on all levels above it, not
only on the next one.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from crosscoding.covariates import Covariates, tiled
from crosscoding.priors.base import ContinuousPrior
from crosscoding.priors.networks import mean_and_scale, stacked
from crosscoding.priors.normal import standard_log_prob

_OPTIONS = ("next_only", "last_only", "takes_given")


class Hierarchical(ContinuousPrior):
    """z = (z_L, …, z_1), each level a diagonal Gaussian given the levels above it.

    The decoder gets all of z, (N, latent), the top level first, or only z_1.

    Args:
        sizes: Size of each level, the top level z_L first; at least two.
        networks: For each level but the top, in the same order, a module that maps the levels above
            it, side by side and top first, to mean and log-variance: in one tensor, (N, 2 size), or
            as a tuple of two, (N, size).
        next_only: Whether a network takes only the next level above it, as in a ladder VAE.
        last_only: Whether the decoder takes only the last level, z_1.
        takes_given: Whether networks also take the query's covariates: `network(above, given)`.

    Raises:
        TypeError: A network is not a module.
        ValueError: A size is not an int ≥ 1, or there are not as many networks as levels below the
            top.

    Example:
        >>> ladder = Hierarchical((2, 8), [nn.Linear(2, 16)])
        >>> ladder.latent_dim
        10
        >>> [level.shape[-1] for level in ladder.levels(torch.zeros(5, 10))]
        [2, 8]
    """

    def __init__(
        self,
        sizes: Sequence[int],
        networks: Sequence[nn.Module],
        *,
        next_only: bool = False,
        last_only: bool = False,
        takes_given: bool = False,
    ) -> None:
        sizes = tuple(sizes)
        if wrong := [s for s in sizes if isinstance(s, bool) or not isinstance(s, int) or s < 1]:
            raise ValueError(f"expected the size of each level, an int >= 1, got {wrong[0]!r}")
        if len(sizes) < 2 or len(networks) != len(sizes) - 1:
            raise ValueError(
                "expected at least two levels and a network for each but the top one, got "
                f"{len(sizes)} sizes and {len(networks)} networks"
            )
        super().__init__(sum(sizes))
        self.sizes, self.next_only, self.last_only = sizes, next_only, last_only
        self.takes_given = takes_given
        self.conditionals = nn.ModuleList(
            stacked(network, f"network {i}") for i, network in enumerate(networks)
        )

    def levels(self, z: Tensor) -> tuple[Tensor, ...]:
        """The levels of z (*sample, latent), the top one first, each (*sample, size)."""
        return z.split(self.sizes, -1)

    def from_noise(self, noise: Tensor, given: Covariates = None) -> Tensor:
        first, *rest = self.levels(noise)
        above = [first]
        for index, own in enumerate(rest):
            mean, scale = self._moments(index, above, given)
            above.append(mean + scale * own)
        return torch.cat(above, -1)

    def to_noise(self, z: Tensor, given: Covariates = None) -> Tensor:
        return self._noise_and_ladj(z, given)[0]

    def log_prob(self, z: Tensor, given: Covariates = None) -> Tensor:
        noise, ladj = self._noise_and_ladj(z, given)
        return standard_log_prob(noise) - ladj

    def decoder_input(self, z: Tensor) -> Tensor:
        return z[..., -self.sizes[-1] :] if self.last_only else z

    def networks(self) -> Mapping[str, nn.Module]:
        return {f"conditionals.{i}": own for i, own in enumerate(self.conditionals)}

    def settings(self) -> dict[str, Any]:
        return {
            "sizes": list(self.sizes),
            "next_only": self.next_only,
            "last_only": self.last_only,
            "takes_given": self.takes_given,
        }

    @classmethod
    def empty(cls, settings: Mapping[str, Any], networks: Mapping[str, nn.Module]) -> Self:
        own = [networks[f"conditionals.{i}"] for i in range(len(networks))]
        options = {name: bool(settings[name]) for name in _OPTIONS}
        return cls(settings["sizes"], own, **options)

    def _noise_and_ladj(self, z: Tensor, given: Covariates) -> tuple[Tensor, Tensor]:
        """ε, and log |det dz/dε| there."""
        levels = self.levels(z)
        noise, ladj = [levels[0]], z.new_zeros(z.shape[:-1])
        for index, own in enumerate(levels[1:]):
            mean, scale = self._moments(index, levels[: index + 1], given)
            noise.append((own - mean) / scale)
            ladj = ladj + scale.log().sum(-1)
        return torch.cat(noise, -1), ladj

    def _moments(
        self, index: int, above: Sequence[Tensor], given: Covariates
    ) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of a level, from the levels above it."""
        seen = above[-1] if self.next_only else torch.cat(list(above), -1)
        size, flat = self.sizes[index + 1], seen.reshape(-1, seen.shape[-1])
        name = f"network {index}, of the level of size {size}"
        own = (tiled(given, len(flat)),) if self.takes_given else ()
        try:
            output = self.conditionals[index](flat, *own)
        except RuntimeError as error:
            raise ValueError(
                f"expected {name} to take the {flat.shape[-1]} numbers above it: {error}; are "
                "sizes and networks in order, the top level first?"
            ) from error
        mean, scale = mean_and_scale(output, size, name)
        shape = (*seen.shape[:-1], size)
        return mean.reshape(shape), scale.reshape(shape)
