"""A reference distribution that covers a bare density, to take the place of a prior.

The target is seen relative to a reference r: p(z) / r(z) takes the place of p(x|z), and r that of
the prior:

    r = 0.5 N(0, s² I) + 0.2 t₄(m, S) + 0.15 t₁(m, S) + 0.15 c(m, S),   s: the `prior_scale`

If there are several modes (`mode_search`), this makes up half of r, and a t₄ at each mode the rest.
If the search finds as many as it keeps, there may be far more, such as 2^D in a product of D
bimodal densities. Parts at some modes would only take draws from the others, so r then has none.

A VAE's p(z|x) lies within its prior. A bare density need not lie within N(0, s² I): it may be
wider, elsewhere, or have heavier tails. Then importance weights of draws from N(0, s² I) are
unbounded, and mass outside it is missed without notice. So m and S are first adapted to the density
in rounds of draws, and two parts have tails that hardly any density exceeds: the Cauchy
distribution t₁, and c, an independent Cauchy distribution in each element. Rounds of draws can lose
a mode for good, so climbs look for modes afterwards.

Source: Hesterberg (1995) for mixing a proposal with a defensive part; Cornuet et al. (2012) for the
weights over all rounds; Lange, Little & Taylor (1989) for the fit of m and S. Differs in: weights
that are too uneven to fit to are flattened, as in `adapted_mixture`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from crosscoding.clock import Clock, OutOfTime
from crosscoding.crosscoders.covariance_estimates import towards_diagonal, weighted_covariance
from crosscoding.crosscoders.heavy_tailed_mixture import EACH_CAUCHY, NORMAL, log_kernel, tailed
from crosscoding.crosscoders.precision_factors import covariance_root
from crosscoding.diagnostics import importance_ess
from crosscoding.methods.numerics.gauss_newton import MOST_DIM
from crosscoding.methods.numerics.mode_search import MOST_MODES, Peaks, search
from crosscoding.methods.numerics.resampling import enough_to_fit, flattened, next_temperature
from crosscoding.model.bank import MAX_POINTS
from crosscoding.random import normal, quasi_normal, spawn
from crosscoding.target.base import Target
from crosscoding.target.density import DensityTarget

# Degrees of freedom of the parts, and their shares: half for the narrow part, and enough for each
# heavier one to find mass in tails like its own. Weights are at most 1 / share times those of the
# part alone (Hesterberg 1995): 7 times for the rarest, and twice as much if modes have parts.
KINDS = (NORMAL, 4, 1, EACH_CAUCHY)
SHARES = (0.5, 0.2, 0.15, 0.15)
# On six densities of the tests, log p(x) is right to 0.02 nats, and to 0.06 with half or twice any
# of the next six.
_PEAK_KIND, _PEAKS_SHARE = 4, 0.5
_EVEN = 0.5  # part of the modes' share that is divided evenly; the rest is divided by mass
_NUM_STARTS = 200  # draws that climbs start from
_ROUNDS = 12  # most rounds of adapting
_STEPS = 20  # of the fit of m and S
_TIME_SHARE = 0.2  # share of the time left, for adapting and again for the search
_GAIN = 1.05  # factor in ESS, below which a round has not helped
# Draws of a round, at least and per dimension. On the six densities, half or double moves log p(x)
# by 0.06 or 0.02 nats, and another seed by 0.07; half takes 2.3 times the decodes, and double 2.1
# times.
_FEWEST_DRAWS, _DRAWS_PER_DIMENSION = 1000, 20
# Least standard deviation relative to the reference's reach, where draws coincide. Half or double
# of it changes nothing on the six densities.
_FLOOR = 1e-9


@dataclass(frozen=True, eq=False)
class Reference:
    """The reference r(z), the same for all queries, in double.

    Args:
        scale: s, the standard deviation of the normal part around 0.
        mean: m, shape (latent,).
        root: Cholesky factor of S, shape (latent, latent).
        peaks: Modes with parts of their own; None if there are fewer than two, or too many.
        unseen: Estimated share of the density in modes that were not found; NaN if there was no
            time to search.
    """

    scale: float
    mean: Tensor
    root: Tensor
    peaks: Peaks | None = None
    unseen: float = math.nan

    @property
    def kinds(self) -> tuple[int, ...]:
        """Kind of each part, as in `crosscoders.heavy_tailed_mixture`."""
        return KINDS if self.peaks is None else KINDS + (_PEAK_KIND,) * len(self.peaks.z)

    @property
    def log_shares(self) -> Tensor:
        """Logs of the shares of the parts, in double."""
        shares = torch.tensor(SHARES, dtype=torch.double, device=self.mean.device)
        if self.peaks is not None:
            masses = self.peaks.log_mass.softmax(0)
            own = (1 - _EVEN) * masses + _EVEN / len(masses)
            shares = torch.cat([(1 - _PEAKS_SHARE) * shares, _PEAKS_SHARE * own])
        return shares.log()

    @property
    def num_noise(self) -> int:
        """Normal numbers needed per draw: for ε, for its tails, and for the choice of a part."""
        return len(self.mean) + max(*KINDS, len(self.mean)) + 1

    @property
    def reach(self) -> float:
        """Largest root mean square distance from 0 along an axis, at least s."""
        squares = self.mean.square() + self.root.square().sum(-1)
        reach = max(self.scale, squares.amax().sqrt().item())
        return reach if self.peaks is None else max(reach, self.peaks.z.abs().amax().item())

    @property
    def parts(self) -> list[tuple[Tensor, Tensor]]:
        """Centre and root of each part."""
        own = self.mean, self.root
        first = torch.zeros_like(self.mean), self.scale * torch.eye(len(self.mean)).to(self.root)
        parts = [first, *[own] * (len(KINDS) - 1)]
        if self.peaks is not None:
            widest = torch.eye(len(self.mean)).to(self.root) / self.reach**2
            roots = covariance_root(self.peaks.precision + widest)
            parts += zip(self.peaks.z.to(self.mean), roots, strict=True)
        return parts

    def at(self, noise: Tensor) -> Tensor:
        """Draws (N, latent) from normal noise, (N, num_noise)."""
        dim = len(self.mean)
        eps, more, choice = noise.double().tensor_split([dim, self.num_noise - 1], -1)
        edges = torch.special.ndtri(self.log_shares.exp().cumsum(0)[:-1])
        part = (choice >= edges).sum(-1, keepdim=True)
        z = torch.zeros_like(eps)
        for index, (kind, (centre, root)) in enumerate(zip(self.kinds, self.parts, strict=True)):
            z = torch.where(part == index, centre + tailed(eps, more, kind) @ root.mT, z)
        return z

    def log_prob(self, z: Tensor) -> Tensor:
        """log r in nats, shape z.shape[:-1]."""
        log_probs = [
            log_kernel(_white(z, centre, root), kind) - root.diagonal().log().sum()
            for kind, (centre, root) in zip(self.kinds, self.parts, strict=True)
        ]
        return (torch.stack(log_probs, -1) + self.log_shares).logsumexp(-1).to(z)

    def squares(self, z: Tensor) -> Tensor:
        """(z − m)ᵀ S⁻¹ (z − m), shape z.shape[:-1]."""
        return _white(z, self.mean, self.root).square().sum(-1)

    @classmethod
    def of(cls, target: DensityTarget) -> "Reference":
        """The reference of a density, adapted at the first call and then kept by the density."""
        if "reference" in target.kept:
            return target.kept["reference"]
        reference, complete = cls._adapted(target)
        if complete:  # not cut short by a time limit, which other calls may not have
            reference, complete = reference._with_peaks(target)
        if complete:
            target.kept["reference"] = reference
            target.kept["undefined"] = bool(target.undefined.any())  # seen while adapting it
        return reference

    def _with_peaks(self, target: DensityTarget) -> tuple["Reference", bool]:
        """This reference with the modes that a search finds, and whether there was time for it."""
        for_starts, for_search = spawn(Generator().manual_seed(1), 2)
        clock = target.clock
        left = _TIME_SHARE * clock.left if clock.is_limited else None
        seen = Covered(target, self, 0).timed(Clock(left, clock.beat))
        try:
            starts = seen.draw_prior(_NUM_STARTS, generator=for_starts)
            peaks = search(seen, starts, generator=for_search)
        except OutOfTime:
            return self, False
        several = 1 < len(peaks.z) < MOST_MODES
        return replace(self, peaks=peaks if several else None, unseen=peaks.unseen), True

    @classmethod
    def _adapted(cls, target: DensityTarget) -> tuple["Reference", bool]:
        """The reference, and whether there was time to adapt it."""
        dim = target.latent_dim
        like = target.like.double()
        identity = torch.eye(dim, dtype=like.dtype, device=like.device)
        references = [cls(target.prior_scale, like.new_zeros(dim), target.prior_scale * identity)]
        generator = Generator().manual_seed(0)
        num = max(_FEWEST_DRAWS, _DRAWS_PER_DIMENSION * dim)
        draws: list[Tensor] = []
        log_joints: list[Tensor] = []
        best, tick = 0.0, _ticking(target.clock.within(_TIME_SHARE))
        for _ in range(_ROUNDS):
            now = references[-1]
            try:
                draws.append(now._draws(num, generator, target.clock, tick))
                log_joints.append(target.log_joint(draws[-1].to(target.like)).double())
            except OutOfTime:
                return references[-1], False
            own = importance_ess(log_joints[-1] - now.log_prob(draws[-1])).nan_to_num(0.0).item()
            if own < _GAIN * best and len(draws) > 2:
                break
            best = max(own, best)
            pool = torch.cat(draws)
            log_mixture = torch.stack([one.log_prob(pool) for one in references]).logsumexp(0)
            log_weights = (torch.cat(log_joints) - log_mixture)[:, None]
            cold = torch.zeros_like(log_weights[0])
            flatness = next_temperature(log_weights, cold, enough_to_fit(dim, len(pool)))
            weights = flattened(log_weights, flatness)[:, 0].softmax(0)
            try:
                references.append(cls(target.prior_scale, *_fitted(pool, weights, now, tick)))
            except OutOfTime:
                return references[-1], False
        return references[-1], True

    def _draws(
        self, num: int, generator: Generator, clock: Clock, tick: Callable[[], None]
    ) -> Tensor:
        """Quasi-random draws, (num, latent), made piece by piece."""
        state, pieces = generator.get_state(), []
        for some in clock.slices(num, num, "reference"):
            tick()
            generator.set_state(state)
            noise = quasi_normal(
                min(some.stop, num) - some.start,
                self.num_noise,
                generator=generator,
                like=self.root,
                start=some.start,
            )
            pieces.append(self.at(noise))
        return torch.cat(pieces)


def _ticking(stop: Callable[[], bool]) -> Callable[[], None]:
    """A function to call before each step, which raises `OutOfTime` once `stop` returns True."""

    def tick() -> None:
        if stop():
            raise OutOfTime

    return tick


def _white(z: Tensor, centre: Tensor, root: Tensor) -> Tensor:
    """L⁻¹ (z − m) for z (*sample, latent), in double."""
    centred = (z.double() - centre).reshape(-1, len(centre))
    return torch.linalg.solve_triangular(root, centred.mT, upper=False).mT.reshape(z.shape)


def _fitted(
    z: Tensor, weights: Tensor, start: Reference, tick: Callable[[], None]
) -> tuple[Tensor, Tensor]:
    """m and the root of S of the t₄ distribution with the highest likelihood on weighted draws.

    Outliers as frequent as those of a Cauchy distribution do not widen it. z has shape (N, latent);
    `tick` is called before every step.
    """
    tick()
    dim, df = z.shape[-1], KINDS[1]
    count = 1 / weights.square().sum()
    intensity = (dim + 1) / (count + dim + 1)
    mean = _weighted_medians(z, weights)
    spread = _weighted_medians((z - mean).abs(), weights) / 0.6745
    root = torch.diag_embed(spread.clamp_min(_FLOOR * start.reach))
    for _ in range(_STEPS):
        tick()
        squares = Reference(start.scale, mean, root).squares(z)
        own = weights * (df + dim) / (df + squares)
        mean = (own @ z) / own.sum()
        scatter = weighted_covariance((z - mean)[None], own[None])[0]
        diagonal = scatter.diagonal().clamp_min((_FLOOR * start.reach) ** 2)
        standard = scatter / (diagonal.sqrt() * diagonal.sqrt()[:, None])
        root = torch.linalg.cholesky(towards_diagonal(standard, intensity))
        root = diagonal.sqrt()[:, None] * root
    return mean, root


def _weighted_medians(z: Tensor, weights: Tensor) -> Tensor:
    """The weighted median of each column of z (N, latent)."""
    values, order = z.sort(dim=0)
    cumulative = weights[order].cumsum(0)
    return values.gather(0, (cumulative < 0.5 * cumulative[-1:]).sum(0, keepdim=True))[0]


class Covered(Target):
    """A flat density with its reference as prior, and draws of the reference as bank."""

    def __init__(self, target: DensityTarget, reference: Reference, seed: int) -> None:
        self.target, self.reference, self._seed = target, reference, seed
        self.latent_dim, self.batch_shape = target.latent_dim, target.batch_shape
        self.like, self.index = target.like, target.index
        self.prior_scale = reference.reach
        self.clock, self.bank_points = target.clock, target.bank_points

    def log_prior(self, z: Tensor) -> Tensor:
        return self.reference.log_prob(z)

    def draw_prior(self, num: int, *, generator: Generator) -> Tensor:
        noise = normal((num, self.reference.num_noise), generator=generator, like=self.like)
        return self.reference.at(noise).to(self.like)

    def log_joint(self, z: Tensor, *, checked: bool = True) -> Tensor:
        return self.target.log_joint(z, checked=checked)

    def log_likelihood(self, z: Tensor, *, checked: bool = True) -> Tensor:
        return self.log_joint(z, checked=checked) - self.log_prior(z)

    def pairwise_log_likelihood(self, z: Tensor) -> Tensor:
        log_likelihood = self.log_likelihood(z.unflatten(0, (-1, *[1] * len(self.batch_shape))))
        return log_likelihood.expand(len(z), *self.batch_shape)

    def log_likelihood_of_bank(self) -> tuple[Tensor, Tensor]:
        generator = Generator().manual_seed(self._seed)  # a new bank for each answer; none is kept
        num_noise = self.reference.num_noise
        num = min(MAX_POINTS, self.bank_points)
        noise = quasi_normal(num, num_noise, generator=generator, like=self.like.double())
        points = self.reference.at(noise).to(self.like)
        log_likelihood = self.target.in_time(
            lambda target, z: Covered(target, self.reference, 0).pairwise_log_likelihood(z), points
        )
        return points[: len(log_likelihood)], log_likelihood

    def log_likelihood_at(self, z: Tensor, query: Tensor) -> Tensor:
        return self.log_likelihood(z)

    def curvature(self, z: Tensor) -> Tensor:
        return self.target.curvature(z)

    def curvature_along(self, z: Tensor, directions: Tensor) -> Tensor:
        return self.target.curvature_along(z, directions)

    def flatten(self) -> "Covered":
        return self

    def timed(self, clock: Clock, bank_points: int = MAX_POINTS) -> "Covered":
        inner = self.target.timed(clock, bank_points)
        assert isinstance(inner, DensityTarget)
        return Covered(inner, self.reference, self._seed)

    def select(self, index: Tensor) -> "Covered":
        return Covered(self.target.select(index), self.reference, self._seed)

    @property
    def operations(self) -> float:
        return self.target.operations


def covered(target: Target, generator: Generator) -> Target:
    """A bare density relative to its covering reference; any other target unchanged.

    Args:
        target: A flat target.
        generator: Its seed determines the draws of the reference that serve as a bank.
    """
    if not isinstance(target, DensityTarget) or target.latent_dim > MOST_DIM:
        return target
    return Covered(target, Reference.of(target), generator.initial_seed())
