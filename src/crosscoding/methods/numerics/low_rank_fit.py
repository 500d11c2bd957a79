"""Laplace's approximation with low rank, where D × D matrices are too large or too expensive.

    p(z|x) ≈ N(z*, P⁻¹),   P = c (I − W Wᵀ) + W Λ Wᵀ

Evidence narrows p(z|x) in some directions W, (D, r), and leaves it about as wide as the prior in
the others. Climbs by gradients lead to z*. W and Λ are the leading eigenvectors and eigenvalues of
the curvature H = I + Jᵀ F J there, found with r products. c is the mean of the other eigenvalues,
which a few probes estimate; no other c has a better C-ELBO. Adam then moves the mean and the
diagonal by the C-ELBO. If decodes are cheap there is a second round, which uses the mean of H over
draws of the first. The best of these fits, judged by fresh draws, is kept.

Source: MacKay (2003), chapter 27, for the approximation; Kucukelbir et al. (2017) for Adam on the
C-ELBO. Differs in: the curvature has low rank, and Adam does not move its directions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from crosscoding.clock import Clock
from crosscoding.crosscoders import Fitted
from crosscoding.crosscoders.base import Params
from crosscoding.crosscoders.narrowed_gaussian import Narrowed
from crosscoding.errors import counted
from crosscoding.methods.numerics.gradients import evaluated
from crosscoding.methods.numerics.lanczos import NUM_PROBES, lanczos, mean_of_rest
from crosscoding.methods.numerics.lbfgs import ascend
from crosscoding.progress import Report
from crosscoding.random import normal, spawn
from crosscoding.target.base import Target

_OF_GRADIENT, _OF_PRODUCT = 3, 4  # decodes that each costs, roughly
# Steps. On two decoders of 600 dimensions, half of `_MOST_ADAM` costs 0.4 to 15 nats of C-ELBO, and
# half of `_NUM_DRAWS` 0.7 to 10; halving or doubling the other two changes nothing.
_MOST_CLIMB, _MOST_ADAM, _FEWEST_ADAM = 400, 200, 10
_MOST_NUMBERS = 2**22  # entries of W, per query: 16 MiB in float32
_NUM_DRAWS, _NUM_CHOICE = 4, 32  # draws per step of Adam, and for choosing a fit
_ENOUGH = 240  # decodes, as in `budget`, below which there are fewer probes and draws for choosing
FEWEST_DECODES = 20  # below which no draws are left to weight after the climb
_EXACT = 0.1  # standard deviation of log-weights in nats: ESS / N is then about e^(−0.01), 99 %
# Of Adam: higher ones overshoot where p(z|x) is narrow, lower ones need more steps. On `large` in
# benchmarks/sensitivity.py, half of it gains 0.5 nats of C-ELBO, or 1.3 if there is one round, and
# double costs 0.8, or nothing.
_RATE = 0.03
_FLAT = 1e-3  # least curvature, relative to the prior's; as in `gauss_newton.positive`


@dataclass(frozen=True)
class _Round:
    """One round: the points that the curvature is averaged over, and shares of all decodes."""

    num_points: int
    for_curvature: float
    for_adam: float


# From which on there is a second round. On `large`, with 4,900 decodes, one round has a C-ELBO of
# 0.9 nats more than two; with 20,000 they are the same to 0.1 nats.
_MANY_DECODES = 8000
# Half or double of the shares for climbs and curvature changes nothing there, as few directions are
# narrow. Half of those for Adam costs 1.2 nats of two rounds; double gains 1.8 nats of one round,
# for 30 % more decodes, and 0.04 nats of two.
_FEW = 0.4, (_Round(1, 0.4, 0.2),)  # the climb's share of all decodes, and the rounds
_MANY = 0.1, (_Round(1, 0.22, 0.12), _Round(4, 0.44, 0.12))


@torch.no_grad()
def fit_low_rank(
    target: Target,
    decodes: int,
    *,
    generator: Generator,
    report: Report,
    clock: Clock,
    affordable: int = _ENOUGH,
) -> tuple[Fitted, Tensor]:
    """A Gaussian for each query of a flat target, and the decodes it took, (B,).

    Args:
        target: The target to fit to.
        decodes: Approximate number of decodes per query.
        generator: For probes and draws.
        report: Receives progress.
        clock: Says when to stop; the best fit so far is then returned.
        affordable: Approximate number of decodes that the time left allows, ≥ `FEWEST_DECODES`; if
            it is small, there are fewer probes, and fewer draws for choosing.
    """
    share, rounds = _MANY if decodes >= _MANY_DECODES else _FEW
    for_choice, *streams = spawn(generator, 1 + len(rounds))
    report(0.0, "climb")
    steps = min(int(share * decodes / _OF_GRADIENT), _MOST_CLIMB)
    z, taken = ascend(target, _start(target), steps, stop=clock.within(0.5))
    num_choice, num_probes = (
        max(min(num, num * affordable // _ENOUGH), 1) for num in (_NUM_CHOICE, NUM_PROBES)
    )
    best = _Best(target, for_choice.initial_seed(), max(num_choice, 2))
    run = _Run(target, best, decodes, num_choice, num_probes, clock)
    spent = _OF_GRADIENT * taken
    for part, stream in zip(rounds, streams, strict=True):
        rows = best.open
        if not len(rows) or (best.params and clock.is_late()):
            break
        report(share, counted(len(rows), "fit"))
        share += part.for_curvature + part.for_adam
        spent[rows] += run.round(part, rows, z, generator=stream)
    return best.fitted, spent


@dataclass(frozen=True, eq=False)
class _Run:
    """What all rounds share.

    Args:
        target: The target to fit to.
        best: Takes the fits.
        decodes: Approximate number of decodes per query, for everything.
        num_choice: Draws by which fits are compared.
        num_probes: Probes of the curvature in the other directions.
        clock: Says when to stop.
    """

    target: Target
    best: "_Best"
    decodes: int
    num_choice: int
    num_probes: int
    clock: Clock

    def round(self, part: _Round, rows: Tensor, z: Tensor, *, generator: Generator) -> Tensor:
        """A fit for some queries, then moved by Adam; the decodes it took, of shape `rows`.

        The curvature is taken at z (B, latent), or at draws of the best fits so far.
        """
        for_points, for_curvature, for_adam = spawn(generator, 3)
        several = part.num_points > 1
        points = self.best.draws(rows, part.num_points, for_points) if several else z[None]
        some, nums = self.target.select(rows), (self._rank(part, len(points)), self.num_probes)
        stop = self.clock.within(0.5)
        fitted, ranks = _narrowed(some, points, nums, generator=for_curvature, stop=stop)
        left = self.best.offer(rows, fitted)
        spent = _OF_PRODUCT * len(points) * (ranks + self.num_probes + 1)
        steps = int(part.for_adam * self.decodes - 2 * self.num_choice)
        steps = min(steps // (_OF_GRADIENT * _NUM_DRAWS), _MOST_ADAM)
        if steps < _FEWEST_ADAM or not len(left) or self.clock.is_late():
            return spent
        some, fitted, stop = some.select(left), fitted.select(left), self.clock.within()
        moved, steps = _adam(some, fitted, steps, generator=for_adam, stop=stop)
        self.best.offer(rows[left], moved)
        spent[left] += _OF_GRADIENT * _NUM_DRAWS * steps + 2 * self.num_choice
        return spent

    def _rank(self, part: _Round, num_points: int) -> int:
        """The number of directions that a round can afford."""
        products = int(part.for_curvature * self.decodes / (_OF_PRODUCT * num_points))
        dim = self.target.latent_dim
        return max(min(products - self.num_probes - 1, dim, _MOST_NUMBERS // dim), 1)


class _Best:
    """The best fit of each query so far, judged with the same noise for all fits."""

    def __init__(self, target: Target, seed: int, num_draws: int) -> None:
        self.params: Params = {}
        self._target, self._seed, self._num_draws = target, seed, num_draws
        self._bound = target.like.new_full((target.num_queries,), math.nan)
        self._spread = torch.full_like(self._bound, math.inf)

    @property
    def fitted(self) -> Fitted:
        dim, rank = self.params["directions"].shape[1:]
        return Fitted(Narrowed(rank), self.params, dim)

    @property
    def open(self) -> Tensor:
        """Indices of the queries whose fit is not exact."""
        return (self._spread > _EXACT).nonzero()[:, 0]

    def draws(self, rows: Tensor, num: int, generator: Generator) -> Tensor:
        """Draws for some queries, in mirrored pairs, (num, rows, latent)."""
        params = self.fitted.select(rows).params
        noise = _mirrored(num, params["shift"], generator)
        return Narrowed(params["log_widths"].shape[-1]).forward_and_ladj(params, noise)[0]

    def offer(self, rows: Tensor, fitted: Fitted) -> Tensor:
        """Keep the fits of some queries if better; returns which of `rows` are not exact yet."""
        same = Generator().manual_seed(self._seed)
        z, log_q = fitted.rsample_and_log_prob(self._num_draws, generator=same)
        log_weights = self._target.select(rows).log_joint(z, checked=False) - log_q
        bound = log_weights.mean(0).nan_to_num(nan=-math.inf)
        better = ~(bound <= self._bound[rows])
        chosen = rows[better]
        spread = log_weights.std(0).nan_to_num(nan=math.inf)
        self._bound[chosen], self._spread[chosen] = bound[better], spread[better]
        if not self.params:
            self.params = {name: tensor.clone() for name, tensor in fitted.params.items()}
        rank = max(params["log_widths"].shape[-1] for params in (self.params, fitted.params))
        for name, tensor in fitted.params.items():
            own, new = self.params[name], tensor[better]
            if name in ("directions", "log_widths"):  # padded with 0 to one rank
                own, new = (pad(part, (0, rank - part.shape[-1])) for part in (own, new))
            own[chosen] = new
            self.params[name] = own
        return (self._spread[rows] > _EXACT).nonzero()[:, 0]


def _mirrored(num: int, like: Tensor, generator: Generator) -> Tensor:
    """Noise and its mirror image, (num, B, latent), for like (B, latent)."""
    noise = normal((num // 2, 1, like.shape[-1]), generator=generator, like=like)
    return torch.cat([noise, -noise]).expand(-1, len(like), -1)


def _start(target: Target) -> Tensor:
    """The prior mean, or the bank's best point if p(z, x) is higher there, (B, latent)."""
    points, log_likelihood = target.log_likelihood_of_bank()
    log_joint, best = (log_likelihood + target.log_prior(points)[:, None]).max(0)
    mean = target.like.new_zeros(target.num_queries, target.latent_dim)
    at_mean = target.log_joint(mean)
    return torch.where((log_joint > at_mean)[:, None], points[best], mean)


def _narrowed(
    target: Target,
    points: Tensor,
    nums: tuple[int, int],
    *,
    generator: Generator,
    stop: Callable[[], bool],
) -> tuple[Fitted, Tensor]:
    """A Gaussian at the mean of points (S, B, latent), with their mean curvature; its ranks, (B,).

    A Newton step moves the mean if log p(z, x) gains. `nums` has the rank and the number of probes.
    """
    rank, num_probes = nums
    for_start, for_probes = spawn(generator, 2)
    mean = points.mean(0)

    def product(directions: Tensor) -> Tensor:
        each = directions.to(points).expand_as(points)
        return target.curvature_along(points, each).mean(0)

    basis, bend = lanczos(product, mean, rank, generator=for_start, stop=stop)
    values, rotation = torch.linalg.eigh(bend)
    flat = _FLAT / target.prior_scale**2
    values, directions = values.abs().clamp_min(flat), basis @ rotation
    there = directions.square().sum(1) > 0.5
    beside = mean_of_rest(product, directions, num_probes, for_probes).clamp_min(flat)
    widths = 0.5 * (beside.log()[:, None] - values.log())
    gradient = evaluated(target, target.log_joint, points).gradient.mean(0).double()
    along = (directions.mT @ gradient[..., None])[..., 0]
    inside = torch.where(there, 1 / values - 1 / beside[:, None], 0.0) * along
    step = (gradient / beside[:, None] + (directions @ inside[..., None])[..., 0]).to(mean)
    there_then = target.log_joint(points + step, checked=False).mean(0)
    gains = there_then > target.log_joint(points).mean(0)
    params = {
        "shift": torch.where(gains[:, None], mean + step, mean),
        "log_diagonal": (-0.5 * beside.log()).to(mean)[:, None].expand_as(mean),
        "directions": torch.where(there[:, None], directions, 0.0).to(mean),
        "log_widths": torch.where(there, widths, 0.0).to(mean),
    }
    return Fitted(Narrowed(directions.shape[-1]), params, mean.shape[-1]), there.sum(-1)


@torch.enable_grad()
def _adam(
    target: Target,
    fitted: Fitted,
    steps: int,
    *,
    generator: Generator,
    stop: Callable[[], bool],
) -> tuple[Fitted, int]:
    """Move the mean, in units of the fit's widths, and the diagonal by gradients of the C-ELBO."""
    params, family = fitted.params, Narrowed(fitted.params["log_widths"].shape[-1])
    offset = torch.zeros_like(params["shift"]).requires_grad_()
    log_factor = torch.zeros_like(offset).requires_grad_()

    def moved() -> Params:
        shift = family.forward_and_ladj(params, offset[None])[0][0]
        return params | {"shift": shift, "log_diagonal": params["log_diagonal"] + log_factor}

    optimizer = torch.optim.Adam([offset, log_factor], lr=_RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for step in range(steps):
        if stop():
            steps = step
            break
        noise = _mirrored(_NUM_DRAWS, offset, generator)
        z, ladj = family.forward_and_ladj(moved(), noise)
        optimizer.zero_grad(set_to_none=True)
        (-(target.log_joint(z) + ladj).mean(0).sum()).backward()
        optimizer.step()
        schedule.step()
    params = {name: tensor.detach() for name, tensor in moved().items()}
    return Fitted(family, params, fitted.dim), steps
