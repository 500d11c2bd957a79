"""Importance sampling in rounds, each from a proposal fitted to particles and to all earlier draws.

The first components are fitted to the scores of particles (`score_matching`), or come from an
amortised cross-coder, and others lie at the modes that climbs find. Each further round adds
components fitted to the draws by their weights, and one where p(z|x) exceeds the proposals most.
All draws count (`proposal_pool`).
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders import Fitted, Gaussian, Mixture
from crosscoding.crosscoders.gaussian_parts import gaussian_parts
from crosscoding.crosscoders.precision_factors import covariance_root
from crosscoding.diagnostics import (
    importance_ess,
    log_mean_exp,
    mean_error,
    pareto_k_limit,
    pareto_smooth,
)
from crosscoding.methods.cascade.bank_points import BestOfBank
from crosscoding.methods.cascade.modes_found import ModesFound
from crosscoding.methods.importance import weighted_findings
from crosscoding.methods.numerics.adapted_mixture import fit_to_weighted, flat_enough
from crosscoding.methods.numerics.components import Components
from crosscoding.methods.numerics.gauss_newton import positive
from crosscoding.methods.numerics.gradients import Points
from crosscoding.methods.numerics.proposal_pool import (
    ProposalPool,
    in_halves,
    merged,
    prior_share,
    swapped,
)
from crosscoding.methods.numerics.resampling import taken
from crosscoding.methods.numerics.score_matching import match_score
from crosscoding.result.findings import Findings
from crosscoding.result.verdict import MISSED
from crosscoding.target.base import Target

# Halving or doubling _TELLING, _EVEN, _JUST_BEYOND or _BEYOND changes next to nothing on mnist-20d;
# ENOUGH, _WORTH or _MOST_MODES, log p(x) by at most 0.09 nats, about as much as another seed, and
# decodes by up to 40 %; _WIDENING, decodes by 70 %.
_LEAST_LOG = -70.0  # log of the least share
# Factor of the standard deviations of a fit to scores: it fits the bulk, not the tails. Decision
# 0009 has the ESS with 1.118, which is 1.25 on variances; on mnist-20d, that takes 21 % more
# decodes than 1.16, as does 1.25, and 1.0 takes 24 % more.
_WIDENING = 1.16
# Clusters of particles, for which components are fitted: with 1, decodes on mnist-20d are 19 %
# more, with 4 they are 11 % more.
_NUM_CLUSTERS = 2
ENOUGH = 640.0  # ESS: a little above what the verdict trusts
# Least ESS times ESS per draw to stop at: where few draws have weight, the ESS may be large only by
# chance. Of 88 trusted answers on three products of blocks, 5 were off by more than 0.1 nats
# without this limit, and 2 with it (0009); on mnist-20d it takes 4 % more decodes.
_WORTH = 100.0
# Share of a round's draws for modes that climbs have just found: with a quarter or all of them, log
# p(x) moves by at most 0.06 nats on mnist-20d, and all cost 15 % more decodes.
_TO_MODES = 0.5
_MOST_MODES = 8  # most modes that get a component
_TELLING = 100  # least number of the bank's points to relate a count to
_EVEN = 0.4  # ESS per draw above which few climbs suffice
# Nats above the largest weight: a region of 5 % of p(z|x) with such weights gets 7 of 1,000 draws.
_JUST_BEYOND = 0.3
_BEYOND = 1.0  # nats above the largest weight, beyond which a point lies outside the proposals


@dataclass(frozen=True, eq=False)
class Drawing:
    """Queries, and the draws for them so far.

    Args:
        rows: Their indices among all queries.
        bank: The best points of the bank.
        particles: Particles from p(z|x), with gradients.
        lacking: Share of p(z|x) that the particles lack, shape (B,); NaN where that is unknown.
        pool: Components and draws so far; columns are the two halves.
        shares: Shares of the components in the next proposal, shape (2B, K).
        num_first: Number of components before the first draw.
        num_clusters: How many of these, the last ones, are parts of p(z|x) that get fits of their
            own.
        enough: Effective draws to stop at.
        modes: The modes that climbs found; None: nothing has climbed yet.
        is_vouched: Whether simulated twins vouch for the first components; `lacking` is then what
            they say, and there are no particles.
    """

    rows: Tensor
    bank: BestOfBank
    particles: Points
    lacking: Tensor
    pool: ProposalPool
    shares: Tensor
    num_first: int
    num_clusters: int
    enough: float = ENOUGH
    modes: ModesFound | None = None
    is_vouched: bool = False

    @classmethod
    def of(
        cls,
        target: Target,
        rows: Tensor,
        bank: BestOfBank,
        particles: Points,
        lacking: Tensor,
        enough: float,
    ) -> "Drawing":
        """Before the first round; both halves have components fitted to the particles."""
        z, gradient, like = particles.z, particles.gradient, target.like
        even, heavy = torch.zeros_like(z[..., 0]), not target.ends_with_prior
        one, clusters = (
            _parts_of(fit_to_weighted(family, z, even, target, Generator().manual_seed(0)), z)
            for family in (Gaussian(), Mixture(_NUM_CLUSTERS))
        )
        fits = [_matched(*one, z, gradient), one[:2], _matched(*clusters, z, gradient)]
        mean, root = (torch.cat(part, 1) for part in zip(*fits, strict=True))
        components = Components.of(mean.repeat(2, 1, 1), root.repeat(2, 1, 1, 1), like, heavy=heavy)
        shares = like.new_tensor([1.0, 1.0, *[1 / _NUM_CLUSTERS] * _NUM_CLUSTERS])
        shares = (shares / shares.sum()).expand(2 * len(rows), -1)
        pool = ProposalPool.of(target, components)
        first, clusters = components.num, _NUM_CLUSTERS
        return cls(rows, bank, particles, lacking, pool, shares, first, clusters, enough)

    @classmethod
    def of_proposal(
        cls, target: Target, rows: Tensor, bank: BestOfBank, proposal: Fitted, enough: float
    ) -> "Drawing":
        """Before the first round, from a Gaussian or mixture; there are no particles."""
        log_shares, mean, root = gaussian_parts(proposal)
        components = Components.of(mean.repeat(2, 1, 1), root.repeat(2, 1, 1, 1), target.like)
        shares = log_shares.exp().to(target.like).repeat(2, 1)
        none = target.like.new_zeros(0, len(rows))
        points = none[..., None].expand(0, len(rows), target.latent_dim)
        particles, lacking = Points(points, none, points), torch.zeros_like(shares[: len(rows), 0])
        pool, num = ProposalPool.of(target, components), components.num
        clusters = num if num > 1 else 0
        return cls(rows, bank, particles, lacking, pool, shares, num, clusters, enough)

    def select(self, index: Tensor) -> "Drawing":
        """Some of the queries."""
        return replace(
            self,
            rows=self.rows[index],
            bank=self.bank.select(index),
            particles=self.particles.select(index),
            lacking=self.lacking[index],
            pool=self.pool.select(index),
            shares=self.shares[in_halves(index, len(self.rows))],
            modes=None if self.modes is None else self.modes.select(index),
        )

    def with_modes(self, found: ModesFound) -> "Drawing":
        """With a component at each of the heaviest modes that climbs found."""
        target, num = self.pool.target, _MOST_MODES
        mean = found.heaviest.z[:num].transpose(0, 1).double()
        root = covariance_root(found.heaviest.precision[:num].transpose(0, 1))
        mean, root = mean.repeat(2, 1, 1), root.repeat(2, 1, 1, 1)
        new = Components.of(mean, root, target.like, heavy=not target.ends_with_prior)
        return replace(self, pool=self.pool.grown(new), modes=found)

    def drawn(self, num: int, *, generator: Generator) -> "Drawing":
        """After another `num` draws in both halves together."""
        pool = self.pool.drawn(num // 2, self.shares, generator=generator)
        return replace(self, pool=pool)

    def refitted(self) -> "Drawing":
        """With the next proposal, which for each half is fitted to the draws of the other."""
        pool, target = self.pool, self.pool.target
        exchange = swapped(len(self.rows), self.rows)
        both = target.select(torch.arange(len(self.rows), device=self.rows.device).repeat(2))
        log_weights = pool.log_weights
        target.clock.tick()
        last = 1 + self.num_first  # after the prior
        clusters = pool.log_kernels[:, last - self.num_clusters : last]
        clusters = clusters.log_softmax(1).clamp_min(_LEAST_LOG)
        fits = []
        for share in (None, *clusters.unbind(1)):
            own = log_weights if share is None else log_weights + share.mT
            flat = flat_enough(pool.z, own, both)
            fitted = fit_to_weighted(Gaussian(), pool.z, flat, both, Generator())
            fits.append(_parts_of(fitted, pool.z)[:2])
        fits.append(self._at_worst(log_weights))
        mean, root = (torch.cat(part, 1)[exchange] for part in zip(*fits, strict=True))
        new = Components.of(mean, root, target.like, heavy=not target.ends_with_prior)
        target.clock.tick()
        grown = pool.grown(new)
        flat = flat_enough(pool.z, log_weights, both)
        shares = grown.fitted_shares(pool.z[:, exchange], flat[:, exchange])
        return replace(self, pool=grown, shares=self._towards_modes(shares))

    def _towards_modes(self, shares: Tensor) -> Tensor:
        """Shares, some of which go to the modes if nothing was drawn from components there yet.

        Laplace's approximation divides that part. Fits to earlier draws may leave out a mode, as
        these may be nowhere near it.
        """
        if self.modes is None:
            return shares
        laplace = self.modes.log_weights[:_MOST_MODES].mT.clamp_min(_LEAST_LOG).softmax(-1)
        at_modes = slice(self.num_first, self.num_first + laplace.shape[1])
        if (self.pool.expected[:, 1:][:, at_modes] > 0).any():
            return shares
        shares = (1 - _TO_MODES) * shares
        shares[:, at_modes] += _TO_MODES * laplace.repeat(2, 1).to(shares)
        return shares

    def _at_worst(self, log_weights: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and root of a Gaussian where p(z|x) exceeds the proposals most, with its curvature.

        Source: Raftery & Bao (2010), incremental mixture importance sampling. Differs in: the
        covariance is that of Laplace's approximation, and points need not be draws.
        """
        pool, target = self.pool, self.pool.target
        elsewhere = self._elsewhere()
        z = torch.cat([pool.z, *[torch.cat([z, z], 1) for z, _ in elsewhere]])
        worst = torch.cat([log_weights, *[w for _, w in elsewhere]]).argmax(0)
        there = taken(z, worst[None])[0]
        curvature = target.curvature(there.unflatten(0, (2, -1))).flatten(0, 1)
        precision = positive(curvature, target.prior_scale)
        return there[:, None].double(), covariance_root(precision)[:, None]

    def _elsewhere(self) -> list[tuple[Tensor, Tensor]]:
        """Points other than draws, (N, B, latent), and log w there in both halves, (N, 2B).

        They are the bank's best, the particles and, if any are known, the modes.
        """
        at_bank = self.bank.log_likelihood + self.pool.target.log_prior(self.bank.z)
        points = [(self.bank.z, at_bank), (self.particles.z, self.particles.log_density)]
        if self.modes is not None:
            points.append((self.modes.z, self.modes.log_joint))
        return [
            (z, self.pool.log_weights_at(torch.cat([z, z], 1), torch.cat([log_joint] * 2, 1)))
            for z, log_joint in points
        ]

    @property
    def ess(self) -> Tensor:
        """Effective draws so far, (B,)."""
        return importance_ess(merged(self.pool.log_weights))

    @property
    def is_done(self) -> Tensor:
        """Whether the draws are worth enough and nothing lies outside of them, boolean (B,)."""
        log_weights = merged(self.pool.log_weights)
        ess = importance_ess(log_weights)
        if not self.is_searched:
            return torch.zeros_like(ess, dtype=torch.bool)
        done = ess >= self.enough
        done = done & (ess * ess / self.pool.num >= _WORTH * self.enough / ENOUGH)
        if done.any():
            some = done.nonzero()[:, 0]
            pareto_k = pareto_smooth(log_weights[:, some])[1]
            good = ~(pareto_k > pareto_k_limit(self.pool.num))
            done[some] = good & (self.select(some).outside <= MISSED)
        return done

    def findings(self) -> Findings:
        """The answers from all draws."""
        pool = self.pool
        offer = weighted_findings(merged(pool.z), merged(pool.log_weights), None)
        bound, error = self._bound()
        outside = self.outside
        # What is known to be lacking counts, even if there may be more.
        missed = torch.where(outside > MISSED, outside, outside + self.lacking)
        return replace(offer, c_elbo=bound, c_elbo_error=error, missed=missed)

    def _bound(self) -> tuple[Tensor, Tensor]:
        """C-ELBO of the first half's last mixture of components, and its standard error, (B,).

        It is E[r (log w − log r)] over draws of all proposals, with r = q / q̄.
        """
        pool, num = self.pool, len(self.rows)
        drawn = 1 + self.shares.shape[1]  # later components have no draws yet
        kernels = pool.log_kernels[:num, 1:drawn] + self.shares[:num, :, None].log()
        log_weights = pool.log_weights[:, :num]
        log_ratio = kernels.logsumexp(1).mT - pool.log_joint[:, :num] + log_weights
        terms = log_ratio.exp() * (log_weights - log_ratio)
        return terms.mean(0), mean_error(terms)

    @property
    def _limit(self) -> Tensor:
        """log p(z, x) / q̄(z) above which a point lies outside of the proposals, (B,)."""
        return merged(self.pool.log_weights).amax(0) + _BEYOND

    @property
    def num_telling(self) -> Tensor:
        """How many kept points of the bank the prior's share of draws does not cover, (B,)."""
        alone = self.bank.log_likelihood - math.log(prior_share(self.pool.target))
        return (alone > self._limit).sum(0)

    @property
    def is_plain(self) -> Tensor:
        """Whether few climbs suffice as a search for modes, boolean (B,).

        They do if the draws have even weights, and no point of the bank has a larger weight.
        """
        log_weights = merged(self.pool.log_weights)
        even = importance_ess(log_weights) > _EVEN * self.pool.num
        _, at_bank = self._elsewhere()[0]
        limit = log_weights.amax(0).repeat(2) + _JUST_BEYOND
        return even & ~(at_bank > limit).any(0).unflatten(0, (2, -1)).any(0)

    @property
    def is_searched(self) -> bool:
        """Whether climbs have looked for modes; `outside` counts what they found."""
        return self.modes is not None

    @property
    def outside(self) -> Tensor:
        """Share of p(z|x) outside the proposals, as far as is known, (B,).

        The bank, the particles and the modes may show it, each by itself. A count of one particle
        may be luck, so one is added wherever any is found.
        """
        limit = self._limit.repeat(2)
        halves = (2, len(self.rows))
        bank, particles, *modes = (
            (w > limit).unflatten(1, halves).all(1) for _, w in self._elsewhere()
        )
        in_bank = self.bank.log_likelihood - self.bank.log_size
        in_bank = in_bank - log_mean_exp(merged(self.pool.log_weights))[0]
        weighed = torch.where(bank, in_bank, -math.inf).logsumexp(0).exp()
        counted = bank.sum(0) / self.num_telling.clamp_min(_TELLING)
        count = particles.to(weighed).sum(0)
        share = torch.maximum(weighed, counted) + (count + (count > 0)) / max(len(particles), 1)
        if self.modes is None:
            return share
        of_modes = torch.where(modes[0], self.modes.all_log_weights, -math.inf).logsumexp(0).exp()
        return torch.maximum(share, torch.maximum(of_modes, self.modes.overlooked).to(share))


def _parts_of(fitted: Fitted, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means and roots of a Gaussian's or mixture's components, and log p(component | z), in double.

    Shapes (B, K, latent), (B, K, latent, latent) and (S, B, K).
    """
    _, mean, root = gaussian_parts(fitted)
    if isinstance(fitted.crosscoder, Mixture):
        joint = fitted.crosscoder.joint_log_prob(fitted.params, z).double()
    else:
        joint = torch.zeros_like(z[..., :1], dtype=torch.double)
    return mean, root, joint.log_softmax(-1)


def _matched(
    mean: Tensor, root: Tensor, belongs: Tensor, z: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Components fitted to the scores of points, where there are enough near each.

    `belongs`, (S, B, K), are the logs of the probabilities that points belong to a component.
    """
    means, roots = [], []
    for k, own in enumerate(belongs.unbind(-1)):
        count = torch.minimum(importance_ess(own), own.exp().sum(0))
        enough = (count > z.shape[-1] + 1)[:, None]
        new_mean, new_root = match_score(z, gradient, own, mean[:, k], root[:, k])
        means.append(torch.where(enough, new_mean, mean[:, k]))
        roots.append(torch.where(enough[..., None], _WIDENING * new_root, root[:, k]))
    return torch.stack(means, 1), torch.stack(roots, 1)
