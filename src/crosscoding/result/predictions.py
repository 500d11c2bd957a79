"""What latent draws predict of a datum t = (x, y): draws of y, moments, and log p(y|x).

Draws are decoded piece by piece, since the decoder's output for all of them may not fit in memory.
Observed elements are exactly as given. An unobserved one must have a prediction at every draw that
has weight; otherwise a `NonFiniteError` names it.
"""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Generator, Tensor

from crosscoding.arrays import as_tensor
from crosscoding.diagnostics import importance_ess, pareto_k_limit, pareto_smooth
from crosscoding.errors import NonFiniteError
from crosscoding.model.matching import check_complete, check_matches
from crosscoding.model.tabular import truth_of_frame
from crosscoding.model.undefined_elements import nothing_to_predict
from crosscoding.result.findings import Findings
from crosscoding.target.partial_evidence import log_agreement
from crosscoding.target.vae_target import CHUNK_BYTES, VAETarget

if TYPE_CHECKING:
    import pandas as pd

_CACHE_BYTES = 4 * 2**20  # of decoder output: pieces that stay in cache take half the time
_FEW_COUNT = 50.0  # effective draws below which the error of an average means little


class Predictions:
    """Predictions for the queries of a target, from the latent draws that were found for them.

    Args:
        target: The model with its evidence, of any batch shape.
        findings: The draws and their weights, for the flattened batch of B queries.
        first: The number of the first query in messages.
    """

    def __init__(self, target: VAETarget, findings: Findings, first: int = 0) -> None:
        self._target = target
        self._vae, self._evidence, self._partial = target.vae, target.evidence, target.partial
        self._batch_shape = target.batch_shape
        self._findings = findings
        self._first = first

    def draws(self, z: Tensor, generator: Generator, *, independent: bool = False) -> Tensor:
        """One draw of p(t|z) at each z (S, B, latent), with the evidence, (S, *batch, *data).

        Args:
            z: Draws of z.
            generator: Generator of the noise.
            independent: Whether each query has noise of its own; by default they share it.
        """
        likelihood, size = self._vae.flat_likelihood, self._vae.data_size
        rows = z.shape[1] if independent else 1
        noise = likelihood.noise((len(z), rows, size), generator=generator, like=z)
        partial, more = self._partial, None
        if partial is not None:
            more = partial.noise(len(z), rows, generator=generator, like=z)
        data = z.new_empty(len(z), z.shape[1], size)
        for rows, params in self._decoded(z):
            data[rows] = likelihood.draw(params, noise[rows])
            if partial is not None and more is not None:
                own = more[0][rows], more[1][rows]
                data[rows] = partial.put_draws(data[rows], params.flatten(2), own)
            if not data[rows].sum().isfinite():  # cheaper than checking each of them
                self._check(data[rows].isfinite(), z[rows], params)
        return self._with_evidence(data)

    def means_at(self, z: Tensor) -> Tensor:
        """E[t|z] at each z (S, B, latent), with the evidence, (S, *batch, *data)."""
        data = z.new_empty(len(z), z.shape[1], self._vae.data_size)
        for rows, params in self._decoded(z):
            data[rows] = self._mean_given(params)
        return self._with_evidence(data)

    def mean(self) -> Tensor:
        """E[t|x] over the stored draws, with the evidence, (*batch, *data)."""
        return self._with_evidence(self._by_block(lambda own: own._moment(own._mean_given)))

    def _mean_given(self, params: Tensor) -> Tensor:
        """E[t|z, known] of all elements: (S, B, E, *param_shape) -> (S, B, E)."""
        means = self._vae.flat_likelihood.mean(params)
        partial = self._partial
        return means if partial is None else partial.put_means(means, params.flatten(2))

    def _variance_given(self, params: Tensor) -> Tensor:
        """Var[t|z, known] of all elements, as `_mean_given`."""
        variances = self._vae.flat_likelihood.variance(params)
        partial = self._partial
        return variances if partial is None else partial.put_variances(variances, params.flatten(2))

    def std(self) -> Tensor:
        """Standard deviation of each element given x, 0 where observed, (*batch, *data).

        Computed in double precision, as a variance may overflow where its root does not.
        """
        spread = self._by_block(Predictions._variance).sqrt().to(self._findings.draws.dtype)
        spread = spread.reshape(*self._batch_shape, *self._vae.data_shape)
        return torch.where(self._evidence.exact, 0.0, spread)

    def _variance(self) -> Tensor:
        """Var[t|x] over the stored draws, (B, E), in double precision."""
        mean = self._moment(lambda params: self._mean_given(params.double()))

        def squared_gap(params: Tensor) -> Tensor:
            params = params.double()
            return self._variance_given(params) + (self._mean_given(params) - mean).square()

        return self._moment(squared_gap)

    def variances(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Var(E[t|z]) and E[Var(t|z)] over draws z (S, B, latent), both (B, E), in double."""
        means, within = [], z.new_zeros((), dtype=torch.double)
        for _, params in self._decoded(z):
            params = params.double()
            means.append(self._mean_given(params))
            within = within + self._variance_given(params).sum(0)
        return torch.cat(means).var(0), within / len(z)

    def log_prob(self, truth: "Tensor | np.ndarray | pd.DataFrame") -> Tensor:
        """log p(y|x) as an average over the stored draws, 0 where all is observed, (*batch,)."""
        log_prob = self._log_terms(truth).logsumexp(0).reshape(self._batch_shape)
        everything = self._evidence.exact.flatten(len(self._batch_shape)).all(-1)
        return log_prob.masked_fill(everything, 0.0)

    def log_prob_and_error(
        self, truth: "Tensor | np.ndarray | pd.DataFrame"
    ) -> tuple[Tensor, Tensor]:
        """The average of `log_prob` and its standard error in nats, both (*batch,).

        The error is infinite where too few draws contribute for it to mean anything.
        """
        terms, log_weights = self._log_terms(truth), self._findings.normalised_log_weights()
        log_prob = terms.logsumexp(0)
        apart = (terms - log_prob).double().exp() - log_weights.double().exp()
        correlated = (len(terms) / self._findings.ess.double()).clamp_min(1.0)  # for chains
        if self._findings.log_weights is not None:
            correlated = torch.ones_like(correlated)
        error = (apart.square().sum(0) * correlated).sqrt()
        few = importance_ess(terms) < _FEW_COUNT
        heavy = pareto_smooth(terms)[1] > pareto_k_limit(max(len(terms), 2))
        error = torch.where(few | heavy, math.inf, error).to(log_prob)
        return log_prob.reshape(self._batch_shape), error.reshape(self._batch_shape)

    def ess(self, truth: "Tensor | np.ndarray | pd.DataFrame") -> Tensor:
        """Effective number of draws in `log_prob`, (*batch,)."""
        return importance_ess(self._log_terms(truth)).reshape(self._batch_shape)

    def _log_terms(self, truth: "Tensor | np.ndarray | pd.DataFrame") -> Tensor:
        """Logs of the terms that sum to p(y|x), one for each stored draw, (S, B)."""
        vae, query = self._vae, ~self._evidence.exact
        truth = as_tensor(truth_of_frame(vae, truth), "truth")
        check_matches(vae, truth, "truth", self._batch_shape)
        check_complete(vae, truth, query, self._first)
        vae.likelihood.check_values(truth, query, "elements of truth")
        num_queries = len(self._findings.ess)
        values = torch.where(query, truth, 0.0).reshape(num_queries, vae.data_size)
        mask = query.reshape(num_queries, vae.data_size)
        log_weights, likelihood = self._findings.normalised_log_weights(), vae.flat_likelihood
        pieces = []
        for _, params in self._decoded(self._findings.draws, log_weights):
            piece = likelihood.masked_log_prob(likelihood.only(params, mask), values, mask)
            if self._partial is not None:
                piece = piece - self._partial.log_prob(params.flatten(2))
            pieces.append(piece)
        terms = torch.cat(pieces) + log_weights
        if self._partial is not None:
            flat = self._evidence.flatten(len(vae.data_shape))
            complete = torch.where(query, truth, self._evidence.values)
            terms = terms + log_agreement(flat, complete.reshape(flat.values.shape)).to(terms)
        return torch.where(log_weights > -math.inf, terms, -math.inf)

    def _by_block(self, work: Callable[["Predictions"], Tensor]) -> Tensor:
        """What `work` returns, called for blocks of queries whose decoded draw fits in cache."""
        num, size = len(self._findings.ess), max(self._piece_bytes // self._row_bytes, 1)
        if num <= size:
            return work(self)
        flat, parts = self._target.flatten(), []
        for rows in torch.arange(num, device=self._findings.ess.device).split(size):
            first = self._first + int(rows[0])
            own = Predictions(flat.select(rows), self._findings.select(rows), first)
            parts.append(work(own))
        return torch.cat(parts)

    def _moment(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Weighted mean over the stored draws of a function of the decoder's output, (B, E)."""
        nothing = torch.zeros_like(self._evidence.exact).reshape(-1, self._vae.data_size)
        log_weights, total = self._findings.normalised_log_weights(), None
        weights = log_weights.exp().unsqueeze(-1)
        for rows, params in self._decoded(self._findings.draws, log_weights):
            own, values = weights[rows], function(params)
            piece = (own * values).sum(0)
            if not piece.isfinite().all():
                # NaN where the distribution has no such moment
                usual = function(self._vae.flat_likelihood.only(params[:1], nothing))
                exists = values.isfinite() | ~usual.isfinite() | (own == 0)
                self._check(exists, self._findings.draws[rows], params)
                piece = torch.where(own > 0, own * values, 0.0).sum(0)
            total = piece if total is None else total.add_(piece)
        assert total is not None  # there is at least one draw
        return total

    @property
    def _row_bytes(self) -> int:
        """Bytes that decoding one draw of one query takes."""
        return max(self._vae.row_values * self._findings.draws.element_size(), 1)

    @property
    def _piece_bytes(self) -> int:
        """Bytes that a piece of draws may take while it is decoded.

        Each piece reads all of the decoder's weights, so it should be no smaller than they are.
        """
        weight_bytes = sum(parameter.nbytes for parameter in self._vae.decoder.parameters())
        return min(max(_CACHE_BYTES, weight_bytes), CHUNK_BYTES)

    def _decoded(
        self, z: Tensor, log_weights: Tensor | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """The decoder's output at z, (S, B, latent), piece by piece: (rows of S, parameters).

        Args:
            z: Draws.
            log_weights: Their log-weights, (S, B); draws of weight 0 may decode to anything.
        Raises:
            NonFiniteError: For an unobserved element, p(t|z) does not exist.
        """
        vae = self._vae
        size = max(self._piece_bytes // max(self._row_bytes * z.shape[1], 1), 1)
        for start in range(0, len(z), size):
            rows = slice(start, start + size)
            params = vae.decode_flat(z[rows])
            valid = vae.flat_likelihood.valid(params)
            if log_weights is not None:
                valid = valid | (log_weights[rows] == -math.inf).unsqueeze(-1)
            self._check(valid, z[rows], params)
            yield rows, params

    def _check(self, exists: Tensor, z: Tensor, params: Tensor) -> None:
        """Raise NonFiniteError unless a prediction exists for every unobserved element.

        Args:
            exists: Whether each element has a prediction, (S, B, E).
            z: Draws, (S, B, latent).
            params: The decoder's output for them.
        """
        vae = self._vae
        wrong = ~exists & ~self._evidence.exact.reshape(z.shape[1], vae.data_size)
        if wrong.any():
            query = int(wrong.flatten(2).any(-1).any(0).nonzero()[0, 0])
            of_query = z[:, query], params[:, query], wrong[:, query]
            naming = vae.flat_likelihood, vae.element_name
            raise NonFiniteError(nothing_to_predict(*naming, *of_query, self._first + query))

    def _with_evidence(self, flat: Tensor) -> Tensor:
        """Data of shape (*sample, B, E) as (*sample, *batch, *data), observed elements as given."""
        mask, values = self._evidence.exact, self._evidence.values
        data = flat.reshape(*flat.shape[:-2], *self._batch_shape, *self._vae.data_shape)
        for datum in data if flat.ndim == 3 else [data]:  # in place: a copy may be large
            torch.where(mask, values, datum, out=datum)
        return data
