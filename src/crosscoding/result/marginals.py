"""The distribution of each element given x: quantiles, probabilities of classes, likeliest values.

p(t_e|x) = E[p(t_e|z, what is known of t_e)], averaged over the draws of z. Probabilities and
densities are such averages; quantiles are those of draws of t_e itself.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from crosscoding.likelihoods import Bernoulli, Categorical, Likelihood, Ordinal
from crosscoding.likelihoods.laws import Known, log_normal
from crosscoding.likelihoods.layout import ElementGroup
from crosscoding.result.predictions import Predictions

# The likeliest value is the one of largest average density among `_CANDIDATES` quantiles of draws,
# 0.02 standard deviations apart. Quantiles and averages are taken over `_FOR_MODE` draws of z.
_CANDIDATES = 128
_FOR_MODE = 1024


def checked_levels(q: float | Sequence[float] | Tensor) -> Tensor:
    """Quantile levels as a tensor in double, shape () or (Q,).

    Raises:
        ValueError: One is not between 0 and 1, or they are neither a number nor a vector.
    """
    levels = torch.as_tensor(q, dtype=torch.double, device="cpu")
    if levels.ndim > 1 or not ((levels >= 0) & (levels <= 1)).all():
        raise ValueError(f"expected quantile levels from 0 to 1, a number or a vector, got {q}")
    return levels


def _in_order(draws: Tensor) -> Tensor:
    """Draws in ascending order along their first dimension.

    On CPUs NumPy sorts them, as its sort of contiguous floats is vectorised: for 3,000 columns of
    1,000 draws it took 14 ms, including the transposition, and torch's took 168 ms.
    """
    if draws.device.type != "cpu" or draws.dtype not in (torch.float32, torch.float64):
        return draws.sort(0).values
    columns = draws.movedim(0, -1).clone(memory_format=torch.contiguous_format)
    columns.numpy().sort(axis=-1)
    return columns.movedim(-1, 0)


class Marginals(Predictions):
    """Predictions of single elements; arguments as for `Predictions`."""

    def independent(self, num: int, generator: Generator) -> Tensor:
        """Draws (num, *batch, *data) with the evidence, independent from query to query.

        Queries share the noise of their z, so each query takes different ones of the draws of z.
        They are independent if num times the number of queries is at most that of stored draws.
        """
        num_queries = len(self._findings.ess)
        most = max(min(num * num_queries, len(self._findings.draws)), num, 1)
        z = self._findings.sample(most, generator=generator)
        order = torch.randperm(most, generator=generator, device=generator.device).to(z.device)
        places = torch.arange(num * num_queries, device=z.device).reshape(-1, max(num, 1)).mT
        index = order[places % most][..., None].expand(-1, -1, z.shape[-1])
        return self.draws(z.gather(0, index), generator, independent=True)

    def quantile(self, z: Tensor, levels: Tensor, generator: Generator) -> Tensor:
        """The smallest drawn values with at least a share `levels` of the draws at or below them.

        NaN for unobserved unordered classes, which have no quantiles.

        Args:
            z: Draws, (S, B, latent).
            levels: Shape () or (Q,).
            generator: For the draws of t given z.
        Returns:
            Shape (*levels, *batch, *data).
        """
        draws = _in_order(self.draws(z, generator))
        num = len(draws)
        # 0.95 · 1000 need not be a whole number in binary: subtract more than the rounding error
        places = (levels * num - 1e-9 * num).ceil().long().clamp(1, max(num, 1)) - 1
        found = draws[places.to(draws.device)]
        flat = found.reshape(*levels.shape, -1, self._vae.data_size)
        unknown = ~self._evidence.exact.reshape(flat.shape[-2:])
        for group in self._groups():
            if isinstance(group.likelihood, Categorical) and group.elements.shape[1] == 1:
                own = torch.zeros_like(unknown)
                own[:, group.elements[:, 0]] = True
                flat = torch.where(own & unknown, math.nan, flat)
        return flat.reshape(found.shape)

    def probabilities(self) -> Tensor:
        """p(t_e = k|x) of elements that are classes or 0 and 1, (*batch, *data, K).

        K is the largest number of classes; NaN for other elements, 0 beyond an element's classes.
        """
        flat = self._class_probabilities()
        return flat.reshape(*self._batch_shape, *self._vae.data_shape, flat.shape[-1])

    def mode(self, z: Tensor, generator: Generator) -> Tensor:
        """The likeliest value of each element by itself, (*batch, *data).

        Args:
            z: Draws, (S, B, latent).
            generator: For the draws of t given z, among which the values are sought.
        """
        flat = self._densest(z, generator)
        probabilities = self._class_probabilities()
        listed = ~probabilities[..., 0].isnan()
        flat = torch.where(listed, probabilities.nan_to_num(0.0).argmax(-1).to(flat.dtype), flat)
        for group in self._groups():
            if group.elements.shape[1] > 1:  # one-hot: 1 for the likeliest class
                ones = probabilities[:, group.elements, 1]
                hot = torch.nn.functional.one_hot(ones.argmax(-1), ones.shape[-1])
                flat[:, group.elements] = hot.to(flat.dtype)
        return self._with_evidence(flat)

    # ---- classes ---------------------------------------------------------------------------------

    def _groups(self) -> list[ElementGroup]:
        return self._vae.flat_likelihood.groups(self._vae.data_size, self._vae.device)

    def _class_probabilities(self) -> Tensor:
        """(B, E, K), as `probabilities`."""
        found: list[tuple[Tensor, Tensor]] = []
        for group in self._groups():
            if group.elements.shape[1] > 1:
                elements = group.elements.flatten()
                ones = self.mean().reshape(-1, self._vae.data_size)[:, elements]
                found.append((elements, torch.stack([1 - ones, ones], -1)))
            elif isinstance(group.likelihood, (Bernoulli, Categorical, Ordinal)):
                found.append((group.elements[:, 0], self._of_group(group)))
        most = max((own.shape[-1] for _, own in found), default=1)
        shape = (len(self._findings.ess), self._vae.data_size, most)
        result = self._findings.draws.new_full(shape, math.nan)
        for elements, own in found:
            result[:, elements] = torch.nn.functional.pad(own, (0, most - own.shape[-1]))
        return self._given_classes(result)

    def _given_classes(self, probabilities: Tensor) -> Tensor:
        """The probabilities with those of observed elements replaced: 1 for the observed class."""
        exact = self._evidence.exact.reshape(probabilities.shape[:2])
        values = self._evidence.values.reshape(probabilities.shape[:2])
        listed = exact & ~probabilities[..., 0].isnan()
        numbers = torch.arange(probabilities.shape[-1], device=values.device)
        whole = listed & (values == values.floor())  # a Bernoulli's value may lie between 0 and 1
        given = (numbers == values[..., None]).to(probabilities)
        between = torch.nn.functional.pad(
            torch.stack([1 - values, values], -1), (0, max(probabilities.shape[-1] - 2, 0))
        )[..., : probabilities.shape[-1]]
        probabilities = torch.where(listed[..., None], between.to(probabilities), probabilities)
        return torch.where(whole[..., None], given, probabilities)

    def _of_group(self, group: ElementGroup) -> Tensor:
        """Mean over draws of p(t = k|z, known) of the variables of a group, (B, n, K)."""
        likelihood, elements = group.likelihood, group.elements[:, 0]
        assert isinstance(likelihood, (Bernoulli, Categorical, Ordinal))
        outputs, weight = group.outputs.flatten(), self._log_weight(elements, likelihood)

        def of_draws(params: Tensor) -> Tensor:
            own = params.flatten(2)[..., outputs].double()
            own = own.unflatten(-1, (len(elements), *likelihood.param_shape))
            values = likelihood.all_values(own)
            terms = likelihood.log_probs_at(own, values) + weight
            return terms.softmax(-1).to(params.dtype)

        return self._mean_of(of_draws)

    def _log_weight(self, elements: Tensor, likelihood: Likelihood) -> Tensor:
        """log p(what is known|t = k) of some elements, which may be noise, bounds or sets."""
        like = self._findings.draws.new_zeros((), dtype=torch.double)
        uncertain = self._evidence.uncertain
        if uncertain is None:
            return like
        assert isinstance(likelihood, (Bernoulli, Categorical, Ordinal))
        flat = uncertain.reshape(torch.Size((len(self._findings.ess), self._vae.data_size)))
        values = self._evidence.values.reshape(flat.noise.shape)
        allowed = None if flat.allowed is None else flat.allowed[:, elements]
        numbers = (values, flat.noise, flat.low, flat.high)
        known = Known(*(part[:, elements].double() for part in numbers), allowed=allowed)
        return known.log_weight(likelihood.all_values(like))

    def _mean_of(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Weighted mean over the stored draws of numbers (S, B, …) made of the decoder's output."""
        log_weights, total = self._findings.normalised_log_weights(), None
        for rows, params in self._decoded(self._findings.draws, log_weights):
            values, own = function(params), log_weights[rows].exp()
            own = own.reshape(*own.shape, *[1] * (values.ndim - 2))
            piece = torch.where(own > 0, own * values, 0.0).sum(0)
            total = piece if total is None else total.add_(piece)
        assert total is not None  # there is at least one draw
        return total

    # ---- numbers ---------------------------------------------------------------------------------

    def _densest(self, z: Tensor, generator: Generator) -> Tensor:
        """The candidates of largest p(t_e|x), (B, E)."""
        size = self._vae.data_size
        draws = self.draws(z[:_FOR_MODE], generator)
        draws = draws.reshape(len(draws), z.shape[1], size)
        levels = torch.linspace(0, 1, _CANDIDATES + 2, dtype=torch.double)[1:-1]
        places = (levels * (len(draws) - 1)).round().long().to(draws.device)
        candidates = _in_order(draws)[places]
        found = self._log_average(z[:_FOR_MODE], candidates)
        best = found.nan_to_num(nan=-math.inf, neginf=-math.inf) + self._log_noise(candidates)
        return candidates.gather(0, best.argmax(0, keepdim=True))[0]

    def density(self, z: Tensor, values: Tensor) -> Tensor:
        """p(t_e|x) at values of each element by itself, 0 where what is known excludes them.

        An average over draws of z, in double precision, per unit of the data; for counts and
        classes, it is the probability. For elements known exactly it has no meaning.

        Args:
            z: Draws, (S, B, latent).
            values: Shape (P, B, E).
        Returns:
            Shape (P, B, E).
        """
        log_density = self._log_average(z, values) - math.log(len(z))
        uncertain = self._evidence.uncertain
        if uncertain is not None:
            flat = uncertain.reshape(self._flat_shape)
            log_density = log_density + self._log_noise(values)
            outside = torch.stack([flat.excludes(own) for own in values])
            log_density = log_density.masked_fill(outside, -math.inf)
        return log_density.exp()

    def _log_average(self, z: Tensor, values: Tensor) -> Tensor:
        """log of the sum over draws z of p(t_e|z) / p(known of t_e|z) at values, (P, B, E)."""
        found = torch.full_like(values, -math.inf, dtype=torch.double)
        for _, params in self._decoded(z):
            log_mass = self._log_masses(params)
            for place, own in enumerate(values):
                terms = self._log_prob_at(params, own) - log_mass
                found[place] = torch.logaddexp(found[place], terms.logsumexp(0))
        return found

    def _log_prob_at(self, params: Tensor, values: Tensor) -> Tensor:
        """log p(t|z) of each element, (S, B, E); in a known sum, the normal with its moments."""
        found = self._vae.flat_likelihood.log_prob(params, values).double()
        partial = self._partial
        if partial is None or partial.sums is None:
            return found
        mean, variance = self._mean_given(params).double(), self._variance_given(params).double()
        sums = partial.sums.sums
        summed = torch.zeros_like(found[0], dtype=torch.bool)
        summed[:, sums.elements] = sums.summed
        scale = torch.where(summed & (variance > 0), variance, 1.0).sqrt()
        return torch.where(summed, log_normal(values - mean, scale), found)

    def _log_masses(self, params: Tensor) -> Tensor:
        """log p(known|z) of each element that is known in part, 0 of all others, (S, B, E)."""
        found = params.new_zeros(*params.shape[:1], *self._flat_shape, dtype=torch.double)
        for part in () if self._partial is None else self._partial.elements:
            if part.elements.shape[-1] == 1:
                log_mass = part.law(params.flatten(2)).log_mass
                own = torch.where(part.valid, log_mass, 0.0)
                places = part.elements[..., 0].expand_as(own)
                found = found.scatter_add(-1, places, own)
        return found

    def _log_noise(self, values: Tensor) -> Tensor:
        """log-densities of noisy values at t, (C, B, E); 0 where there is no noise."""
        uncertain = self._evidence.uncertain
        if uncertain is None:
            return values.new_zeros((), dtype=torch.double)
        noise = uncertain.noise.reshape(self._flat_shape).double()
        seen = self._evidence.values.reshape(self._flat_shape).double()
        found = log_normal(seen - values.double(), torch.where(noise > 0, noise, 1.0))
        return torch.where(noise > 0, found, 0.0)

    @property
    def _flat_shape(self) -> torch.Size:
        return torch.Size((len(self._findings.ess), self._vae.data_size))
