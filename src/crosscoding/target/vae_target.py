"""The target of a VAE with evidence: p(z, x) = p(z) p(x|z), x the observed elements.

If the prior is not N(0, I), methods work with the noise ε that it maps to z: p(ε) p(x|z(ε)), with
p(ε) = N(0, I). Only `latents` and `noise_and_ladj` convert to and from the model's own z.
"""

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from crosscoding.clock import Clock
from crosscoding.covariates import Covariates, mapped, number_of_rows, places_among
from crosscoding.crosscoders import Fitted
from crosscoding.errors import NonFiniteError
from crosscoding.evidence import Evidence
from crosscoding.isolation import isolated
from crosscoding.model.amortised_coverage import Vouched
from crosscoding.model.bank import MAX_POINTS, Bank, kept_outputs
from crosscoding.model.bound import bound, checked_rows, known, selected, try_rows
from crosscoding.model.coarse_decoder import coarse
from crosscoding.model.in_noise import in_noise
from crosscoding.model.matching import check_matches
from crosscoding.model.vae import VAE
from crosscoding.target.base import REACH, Target
from crosscoding.target.clamps import stuck
from crosscoding.target.fisher_curvature import (
    fisher_along,
    fisher_at,
    fisher_by_columns,
)
from crosscoding.target.folded_sums import FoldedSums
from crosscoding.target.observed_likelihood import Observed
from crosscoding.target.partial_evidence import PartialEvidence
from crosscoding.target.undefined_density import why_undefined

CHUNK_BYTES = 64 * 2**20
_JACOBIAN_BYTES = 32 * 2**20  # largest Jacobian at one z, in double
_EXPENSIVE = 1e7  # multiply-adds of a decode above which directional derivatives are differences


class VAETarget(Target):
    """p(z) p(x|z) of a VAE and the observed elements x.

    The z of all its methods is the noise that the model's prior maps to its latent variable; the
    two are the same if the prior is N(0, I).

    Args:
        vae: The trained model.
        evidence: Values of shape (*batch, *data), in the model's dtype and on its device, with
            covariates if the decoder takes any.

    Attributes:
        model: The trained model, as it was passed.
        vae: The same in noise coordinates, for the covariates of these queries.
        evidence: As it was passed.

    Raises:
        TypeError: vae or evidence has the wrong type.
        ValueError: The evidence does not fit the model, an observed value is outside the
            likelihood's support, or covariates are missing or superfluous.
    """

    ends_with_prior = True
    _is_known = False  # whether all queries share the covariates of one of the model's examples

    @isolated
    def __init__(self, vae: VAE, evidence: Evidence) -> None:
        if not isinstance(vae, VAE):
            advice = "; a target is answered by infer(target)" if isinstance(vae, Target) else ""
            raise TypeError(f"expected a crosscoding.VAE, got {type(vae).__name__}{advice}")
        if not isinstance(evidence, Evidence):
            raise TypeError(
                f"expected crosscoding.Evidence, got {type(evidence).__name__}; "
                "build it with Evidence(values, mask) or Evidence.from_nan(values)"
            )
        if (vae.prior.noise_dim is None) != self.is_discrete:
            wanted, got = ("discrete", "continuous")[:: 1 if self.is_discrete else -1]
            raise ValueError(
                f"expected a model with {wanted} latents, got one with {got} ones; "
                "crosscoding.condition takes both"
            )
        evidence = evidence.in_dtype(vae.dtype)
        check_matches(vae, evidence.values, "evidence", None)
        vae.likelihood.check_values(evidence.values, evidence.exact)
        self.model, self.evidence, self.may_be_steep = vae, evidence, vae.prior.may_be_steep
        self.batch_shape = evidence.values.shape[: evidence.values.ndim - len(vae.data_shape)]
        self._given = checked_rows(vae, evidence.given, self.batch_shape)
        vae = in_noise(vae)
        if self._given is not None:
            self.kinds = places_among(self._given, vae.examples)
            if len(self.kinds):
                vae = bound(vae, self._given)
                try_rows(vae, self.kinds)
            else:
                vae = known(vae, 0)
        self.vae, self.latent_dim = vae, vae.latent_dim
        self.like = torch.empty(0, dtype=vae.dtype, device=vae.device)
        self.has_cheap_curvature = vae.likelihood.has_cheap_fisher
        self.undefined = torch.zeros(self.num_queries, dtype=torch.bool, device=vae.device)
        flat_shape = (*self.batch_shape, vae.data_size)
        self._values = evidence.values.reshape(flat_shape)
        self._mask = evidence.exact.reshape(flat_shape)
        partial = PartialEvidence.of(vae, evidence.flatten(len(vae.data_shape)))
        self._partial = partial
        values, mask = (part.reshape(-1, vae.data_size) for part in (self._values, self._mask))
        decoded = self._decoded
        self._observer: Callable[[], Observed] = cache(
            lambda: Observed(decoded, values, mask, partial)
        )

    @property
    def partial(self) -> PartialEvidence | None:
        """What is known besides exact values, for the flattened batch; None if nothing is."""
        return self._partial

    @property
    def _decoded(self) -> VAE:
        """The model as a function of the points that are decoded."""
        return self.vae

    @property
    def _observed(self) -> Observed:
        """The likelihood, made on first use, as queries that the bank settles never need it."""
        return self._observer()

    @property
    def decodes_alike(self) -> bool:
        """Whether a z decodes to the same for all queries."""
        return self.vae.given is None or number_of_rows(self.vae.given) == 1

    @torch.no_grad()
    def latents(self, z: Tensor) -> Tensor:
        if not z.numel():
            return z.new_zeros(*z.shape[:-1], self.model.latent_dim)
        flat = z.reshape(-1, self.num_queries, z.shape[-1])
        latents = self.model.prior.from_noise(flat, self._given_to_prior)
        return latents.reshape(*z.shape[:-1], -1)

    @torch.no_grad()
    def noise_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        flat, prior = z.reshape(-1, self.num_queries, z.shape[-1]), self.model.prior
        noise = prior.to_noise(flat, self._given_to_prior)
        ladj = prior.log_prob(flat, self._given_to_prior) - self.log_prior(noise)
        return noise.reshape(*z.shape[:-1], -1), ladj.reshape(z.shape[:-1])

    @property
    def is_amortised(self) -> Tensor:
        """As in `Target`: queries with exact values only, if the model has an amortised network.

        A network trained by `amortise` is asked only where its twins vouch for it.
        """
        made, nothing = self.model.amortised, super().is_amortised
        if made is None:
            return nothing
        asked = ~nothing
        if self._partial is not None:
            asked = asked & ~self._partial.used.any(-1).reshape(self.batch_shape)
        if made.record is not None:
            asked = asked & ~self.vouched().lacking.isnan().reshape(self.batch_shape)
        return asked

    def propose(self) -> Fitted:
        if self.model.amortised is None:
            return super().propose()
        return self.model.amortised.propose(self.evidence.values, self.evidence.exact)

    def vouched(self) -> Vouched:
        if self.model.amortised is None:
            return super().vouched()
        said = self.model.amortised.vouched(self._mask.reshape(-1, *self.vae.data_shape))
        return Vouched(*[part.to(self.like) for part in said])

    @property
    def _given_to_prior(self) -> Covariates:
        return self._given if self.model.prior.takes_given else None

    @isolated
    def log_likelihood(self, z: Tensor, *, checked: bool = True) -> Tensor:
        sample = z.shape[: z.ndim - 1 - len(self.batch_shape)]
        points = z.reshape(*sample, self.num_queries, self.latent_dim)
        result = self._observed.log_likelihood(points).reshape(z.shape[:-1])
        return self._checked(result, z) if checked else result

    @property
    def operations(self) -> float:
        return self.vae.operations

    @isolated
    def pairwise_log_likelihood(self, z: Tensor) -> Tensor:
        if not self.decodes_alike:
            return self._log_likelihood_of_each(z)
        values = self._values.reshape(-1, self.vae.data_size)
        mask = self._mask.reshape(-1, self.vae.data_size)
        used = mask if self._partial is None else mask | self._partial.used
        of_any = Observed.of(self._decoded, values[:1], used.any(0, keepdim=True), self.clock)
        elements = of_any.elements[0]
        likelihood = self.vae.flat_likelihood.of_elements(elements)
        values, mask = values[:, elements], mask[:, elements]
        partial = self._partial and self._partial.within(of_any.outputs, self.vae.params_size)

        def evaluate(points: Tensor) -> Tensor:
            params = of_any.params(points[:, None])
            kept = likelihood.to_keep(params[:, 0])
            result = likelihood.pairwise_log_prob(kept, values, mask)
            if partial is not None:
                result = result + partial.log_prob(params.flatten(2))
            return self._checked(result, points).reshape(len(points), *self.batch_shape)

        num_rows = 1 if partial is None else 1 + partial.numbers * self.num_queries
        slices = self.clock.slices(len(z), self._chunk_size(num_rows, z), "points for all")
        return torch.cat([evaluate(z[some]) for some in slices])

    @isolated
    def log_likelihood_of_bank(self) -> tuple[Tensor, Tensor]:
        is_kept = self.vae.given is None or (self._is_known and Bank.is_worth_keeping(self.vae))
        if not is_kept:
            points = Bank.few_points(self.vae, self.bank_points)
            return points, self._log_likelihood_of_each(points)
        bank = Bank.start_of(self.vae, self.bank_points, self.clock)
        values = self._values.reshape(-1, self.vae.data_size)
        mask = self._mask.reshape(-1, self.vae.data_size)
        result = bank.log_likelihood(values, mask, self.clock)
        if self._partial is not None:
            result = result + self._partial_at(bank.points)
        result = self._checked(result, bank.points)
        return bank.points, result.reshape(len(bank.points), *self.batch_shape)

    def _partial_at(self, points: Tensor) -> Tensor:
        """What partial evidence adds to log p(x|z) at a bank's points: (N, latent) -> (N, B)."""
        partial, kept = self._partial, kept_outputs(self.vae, points, self.clock)
        assert partial is not None
        size = self._chunk_size(1 + partial.numbers * self.num_queries, points)

        def at(some: slice) -> Tensor:
            output = self.vae.decode_flat(points[some]) if kept is None else kept[some]
            return partial.log_prob(output[:, None].flatten(2))

        slices = self.clock.slices(len(points), size, "points for partial evidence")
        return torch.cat([at(some) for some in slices])

    def _log_likelihood_of_each(self, points: Tensor) -> Tensor:
        """log p(x|z) at shared points (N, latent), decoded separately for each query, (N, *batch).

        The output for a point differs between queries with different covariates.
        """
        shared = points[:, None].expand(-1, self.num_queries, -1)
        result = self._observed.timed(self.clock).log_likelihood(shared)
        return self._checked(result, points).reshape(len(points), *self.batch_shape)

    @isolated
    def log_likelihood_at(self, z: Tensor, query: Tensor) -> Tensor:
        return self._checked(self._observed.log_likelihood_at(z, query), z, query)

    def may_be_lost(self) -> Tensor:
        return (self.vae.flat_likelihood.may_be_lost(self._values) & self._mask).any(-1)

    @isolated
    @torch.no_grad()
    def lost(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._observed.lost(z)

    @isolated
    @torch.no_grad()
    def stuck(self, z: Tensor) -> Tensor:
        return stuck(self._observed, z)

    @isolated
    def curvature(self, z: Tensor) -> Tensor:
        most = self.clock.piece_bytes(_JACOBIAN_BYTES)
        if self.latent_dim * self._observed.params_size * torch.double.itemsize > most:
            bend = self._observed.in_pieces(z, fisher_by_columns, decodes_of_one=2)
        else:
            bend = self._observed.in_pieces(z, fisher_at, decodes_of_one=self.latent_dim)
        return bend + torch.eye(self.latent_dim, dtype=bend.dtype, device=bend.device)

    @isolated
    def curvature_along(self, z: Tensor, directions: Tensor) -> Tensor:
        exact = self.vae.operations < _EXPENSIVE
        both = torch.cat([z, directions], -1)
        bend = self._observed.in_pieces(
            both, lambda part, some: fisher_along(part, some, exact), decodes_of_one=2
        )
        return bend.double() + directions

    def flatten(self) -> "VAETarget":
        flat = object.__new__(type(self))  # its evidence was checked already
        vars(flat).update(vars(self))
        flat.evidence = self.evidence.flatten(len(self.vae.data_shape))
        flat.batch_shape = torch.Size((self.num_queries,))
        flat._values = self._values.reshape(self.num_queries, self.vae.data_size)
        flat._mask = self._mask.reshape(flat._values.shape)
        flat.undefined = torch.zeros_like(flat._mask[:, 0])
        return flat

    def prepare(self) -> "VAETarget":
        """The same flat target; it decodes only observed elements where that is faster."""
        prepared = self.select(torch.arange(self.num_queries, device=self.like.device))
        kinds = [] if self.kinds is None else self.kinds.unique().tolist()
        if len(kinds) == 1 and kinds[0] >= 0:
            prepared.vae, prepared._is_known = known(in_noise(self.model), kinds[0]), True
        vae, clock = prepared._decoded, self.clock
        parts = vae, self._values, self._mask

        def observer() -> Observed:
            folded = FoldedSums.where_possible(*parts, self._partial)
            return (folded or Observed.of(*parts, clock, self._partial)).timed(clock)

        prepared._observer = cache(observer)
        return prepared

    def coarse(self) -> "VAETarget":
        if (in_half := coarse(self.vae)) is self.vae:
            return self
        chosen = self.select(torch.arange(self.num_queries, device=self.like.device))
        chosen.vae, clock = in_half, self.clock
        chosen._observer = cache(
            lambda: Observed(in_half, self._values, self._mask, self._partial).timed(clock)
        )
        return chosen

    def timed(self, clock: Clock, bank_points: int = MAX_POINTS) -> "VAETarget":
        chosen = super().timed(clock, bank_points)
        assert isinstance(chosen, VAETarget)
        observer = self._observer
        chosen._observer = cache(lambda: observer().timed(clock))
        return chosen

    @property
    def query_bytes(self) -> int:
        head = self.vae.head
        width = 0 if head is None else head.weight.shape[1]
        return self.vae.params_size * (width // 2 + 8) * self.like.element_size()

    @property
    def sizes(self) -> Tensor:
        partial = self._partial
        used = self._mask if partial is None else self._mask | partial.used.view_as(self._mask)
        return used.sum(-1)

    def select(self, index: Tensor) -> "VAETarget":
        chosen = object.__new__(type(self))  # its evidence was checked already
        vars(chosen).update(vars(self))
        chosen.evidence = self.evidence[index]
        chosen._values, chosen._mask = self._values[index], self._mask[index]
        chosen._partial = self._partial and self._partial.select(index)
        if self.kinds is not None:
            chosen._given = mapped(lambda tensor: tensor[index], self._given)
            chosen.kinds, chosen.vae = self.kinds[index], selected(self.vae, index)
        chosen.batch_shape = chosen._values.shape[:-1]
        chosen.index = index if self.index is None else self.index[index]
        observer = self._observer
        chosen._observer = cache(lambda: observer().select(index))
        return chosen

    def _checked(self, result: Tensor, z: Tensor, query: Tensor | None = None) -> Tensor:
        """The log-likelihoods without NaN: (*sample, *batch), or one for each `query`, (N,).

        Farther out than prior draws, a decoder may overflow: NaN becomes −inf there, and
        `undefined` records it. Anywhere else NaN raises NonFiniteError.
        """
        wrong = result.isnan()
        if not wrong.any():
            return result
        far = (z.detach().abs() > REACH * self.prior_scale).any(-1)
        far = far.reshape(*far.shape, *[1] * (result.ndim - far.ndim))
        result, gone, wrong = torch.where(wrong & far, -math.inf, result), wrong & far, wrong & ~far
        if wrong.any():
            raise NonFiniteError(self._what_is_wrong(wrong, z.detach(), query))
        if query is None:  # counted in the order of the batch
            gone = gone.reshape(-1, max(self.num_queries, 1)).any(0)
            query = torch.arange(len(gone), device=gone.device)
        assert self.undefined is not None
        self.undefined[query[gone] if self.index is None else self.index[query[gone]]] = True
        return result

    @torch.no_grad()
    def _what_is_wrong(self, wrong: Tensor, z: Tensor, query: Tensor | None) -> str:
        """A message: which query has NaN, at which z, and what the decoder outputs there."""
        places, z = wrong.flatten().nonzero()[:, 0], z.reshape(-1, self.latent_dim)
        owners = places % self.num_queries if query is None else query[places]
        first = owners.argmin()
        shared = len(z) < wrong.numel()  # all queries share the points
        point = z[places[first] // self.num_queries if shared else places[first]]
        name, where = self.name(owners[first]), self.explain(owners[first], point)
        return f"expected a finite log-likelihood, got NaN for query {name}: {where}"

    @torch.no_grad()
    def explain(self, query: int | Tensor, z: Tensor) -> str:
        size, partial, uncertain = self.vae.data_size, self._partial, self.evidence.uncertain
        values, mask = (part.reshape(-1, size)[query] for part in (self._values, self._mask))
        if partial is not None:
            partial = partial.select(torch.as_tensor(query).reshape(1))
        if uncertain is not None:
            uncertain = uncertain.reshape(torch.Size((-1, size)))[int(query)]
        return why_undefined(self.vae, z, values, mask, uncertain, partial)

    def _chunk_size(self, num_rows: int, like: Tensor) -> int:
        row_bytes = max(self.vae.row_values * like.element_size() * num_rows, 1)
        return max(self.clock.piece_bytes(CHUNK_BYTES) // row_bytes, 1)
