"""Ranks of exact draws among the draws of answers, and tests of their uniformity.

If an answer's draws come from p(z|x), the rank of the z that x was simulated from is uniform among
them, and so is that of any function of z and x. Ties are broken at random, so ranks of classes and
counts are uniform too.

The queries of one call share their noise, so the ranks of N twins are ranks among one set of n
draws: a mean over twins has variance 1/N + 1/n times that of one rank. All tests allow for that.

Source: Talts et al. (2018), Validating Bayesian inference algorithms with simulation-based
calibration; Neyman (1937), Smooth test for goodness of fit; Säilynoja, Bürkner and Vehtari (2022),
Graphical test for discrete uniformity. Differs in: the test is Neyman's, of location, width,
skewness and tails, with the variance above; bands are calibrated by simulation.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

LEVELS = (0.5, 0.8, 0.9)
FEWEST = 20  # with fewer ranks, the distribution of the test is too far from χ²
_NUM_SIMULATED = 2000  # for bands, whose level is then accurate to half a percent
_NUM_PLACES = 100  # points at which ECDFs are compared


@dataclass(frozen=True, eq=False)
class Ranks:
    """Ranks of several quantities for N twins, scaled to between 0 and 1.

    Args:
        names: Names of the Q quantities.
        values: Shape (Q, N); NaN where a twin does not have the quantity.
        is_element: Which quantities are missing elements of the datum, shape (Q,).
        num_draws: n, the effective number of draws that each twin is ranked among, (N,).
    """

    names: tuple[str, ...]
    values: Tensor
    is_element: Tensor
    num_draws: Tensor

    def select(self, twins: Tensor) -> "Ranks":
        """The ranks of the twins that a boolean (N,) selects."""
        num_draws = self.num_draws[twins]
        return Ranks(self.names, self.values[:, twins], self.is_element, num_draws)

    def p_values(self) -> dict[str, float]:
        """The p-value of each quantity by name, not corrected for multiple testing."""
        rows = {name: self.of(name) for name in self.names}
        return {
            name: smooth_test(own, self.noise) for name, own in rows.items() if len(own) >= FEWEST
        }

    def of(self, name: str) -> Tensor:
        """The ranks of one quantity, for the twins that have it."""
        row = self.values[self.names.index(name)]
        return row[~row.isnan()]

    def p_value(self) -> float:
        """The smallest p-value times the number of p-values, at most 1; NaN if there are none."""
        tested = self.p_values().values()
        return min(1.0, len(tested) * min(tested)) if tested else math.nan

    def coverage(self, level: float) -> tuple[float, float]:
        """How often central intervals of missing elements contain the truth, and a standard error.

        The error is that of an average over twins, as the elements of one twin are not independent,
        and at least the binomial error.
        """
        own = self.values[self.is_element]
        known = ~own.isnan()
        num = known.sum(0)
        if not num.any():
            return math.nan, math.nan
        covered = ((own - 0.5).abs() <= 0.5 * level) & known
        shares = covered.sum(0)[num > 0] / num[num > 0]
        binomial = level * (1 - level)
        error = shares.var().item() / len(shares) if len(shares) > 1 else math.inf
        error = max(error, binomial / int(num.sum())) + binomial * self.noise
        return shares.mean().item(), math.sqrt(error)

    @property
    def noise(self) -> float:
        """1/n of a typical twin: the variance that twins share, relative to that of one rank."""
        return 1 / self.num_draws.median().item() if len(self.num_draws) else 0.0


def randomised_ranks(truth: Tensor, draws: Tensor, *, generator: Generator) -> Tensor:
    """Ranks of truth (N, Q) among draws (S, N, Q), between 0 and 1, ties broken at random."""
    below, equal = (draws < truth).sum(0), (draws == truth).sum(0)
    random = torch.rand(truth.shape, generator=generator, dtype=torch.double).to(truth.device)
    return (below + random * (equal + 1)) / (len(draws) + 1)


def smooth_test(ranks: Tensor, noise: float) -> float:
    """p-value of uniformity against changes of location, width, skewness and tails.

    Σ_k (mean of φ_k)² / (1/N + noise) is χ² with 4 degrees of freedom, φ_k being the first four
    Legendre polynomials, orthonormal on (0, 1). For few ranks, small p-values are too small: values
    below 0.001 have probability 0.0023 for N = 20, 0.0013 for N = 100 and 0.0011 for N = 200.

    Args:
        ranks: Between 0 and 1, shape (N,).
        noise: Additional variance of a mean over ranks, relative to the variance of one rank.
    """
    x = 2 * ranks.double() - 1
    polynomials = (
        math.sqrt(3) * x,
        math.sqrt(5) * (3 * x**2 - 1) / 2,
        math.sqrt(7) * (5 * x**3 - 3 * x) / 2,
        3 * (35 * x**4 - 30 * x**2 + 3) / 8,
    )
    total = sum(polynomial.mean().item() ** 2 for polynomial in polynomials)
    half = 0.5 * total / (1 / len(x) + noise)
    return math.exp(-half) * (1 + half)


def ecdf_difference(ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Points u between 0 and 1, and by how much the share of ranks (N,) below each exceeds u."""
    places = torch.linspace(0, 1, _NUM_PLACES + 1, dtype=torch.double)[1:-1]
    below = torch.searchsorted(ranks.double().sort().values, places, right=True)
    return places, below / len(ranks) - places


def band(num: int, noise: float, level: float = 0.95) -> Tensor:
    """Half the width, at each point, of a band that contains a whole curve of `ecdf_difference`.

    Args:
        num, noise: Number of ranks, and the noise of `smooth_test`.
        level: Probability that the curve of a calibrated method lies in the band.
    """
    generator = Generator().manual_seed(0)
    uniforms = torch.rand(_NUM_SIMULATED, num, generator=generator, dtype=torch.double)
    places = torch.linspace(0, 1, _NUM_PLACES + 1, dtype=torch.double)[1:-1]
    sorted_ranks = uniforms.sort(-1).values
    below = torch.searchsorted(sorted_ranks, places.expand(_NUM_SIMULATED, -1).contiguous())
    width = (places * (1 - places)).sqrt()
    most = ((below / num - places).abs() / width).amax(-1).quantile(level)
    return most * width * math.sqrt(1 + num * noise)
