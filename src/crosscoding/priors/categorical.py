"""Codes: D places with one of K codes each, as in a VQ-VAE.

    p(z) = Π_i p(z_i | z_1, …, z_{i−1})

with independent places, or a network that gives the logits of each place from the codes before it.

Source: van den Oord, Vinyals & Kavukcuoglu (2017), section 3.3. Differs in: nothing.
"""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from crosscoding.covariates import Covariates
from crosscoding.errors import first_line
from crosscoding.priors.discrete import DiscretePrior, checked_logits
from crosscoding.priors.networks import stacked
from crosscoding.random import uniform

_NUM_TRIED = 8  # draws on which a network is tried
_ROUNDING = 1e-3  # share of the largest logit by which rounding may change a logit


class Categorical(DiscretePrior):
    """Codes from 0 to K − 1 in D places, which the decoder takes as one-hot rows, (N, D, K).

    z holds the codes as floating-point numbers, shape (*sample, D). In a decoder, a codebook is a
    product: `one_hot @ codebook` gives the vectors of the codes, (N, D, size).

    Args:
        num_codes: K, ≥ 2.
        num_places: D, ≥ 1.
        logits: For independent places: finite, shape (D, K), or (K,) for all places.
        network: Instead of logits: a module that maps one-hot codes, (N, D, K), to the logits of
            each place given the codes before it, (N, D, K). The logits of a place may not depend
            on its own or later codes, which a trial checks. With neither, all codes are equally
            likely.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: logits do not fit or are not finite; or the network's output does not fit, is
            not finite, or depends on a place's own or later codes.

    Example:
        >>> prior = Categorical(3, 2, logits=torch.zeros(3))
        >>> prior.log_prob(torch.tensor([[0.0, 2.0]])).exp()
        tensor([0.1111])
    """

    logits: Tensor | None

    def __init__(
        self,
        num_codes: int,
        num_places: int,
        logits: Tensor | None = None,
        network: nn.Module | None = None,
    ) -> None:
        super().__init__(num_places, num_codes)
        self.input_shape = torch.Size([num_places, num_codes])
        if logits is not None and network is not None:
            raise ValueError("expected either logits or network, got both")
        self.network = None if network is None else stacked(network, "network")
        if logits is not None and checked_logits(logits).shape not in (
            (num_codes,),
            (num_places, num_codes),
        ):
            raise ValueError(
                f"expected logits of shape ({num_places}, {num_codes}) or ({num_codes},), got "
                f"{tuple(logits.shape)}"
            )
        if isinstance(logits, nn.Parameter):
            self.logits = logits
        else:
            full = None if logits is None else logits.detach().expand(self.input_shape).clone()
            self.register_buffer("logits", full)
        if self.network is not None:
            self._try(self.network)

    def log_density(self, inputs: Tensor) -> Tensor:
        return (self._log_probs(inputs) * inputs).sum((-1, -2))

    @torch.no_grad()
    def sample(
        self, num: int, *, generator: Generator, like: Tensor, given: Covariates = None
    ) -> Tensor:
        own = self._own(like)
        chance = uniform((num, self.latent_dim), generator=generator, like=own)
        z = own.new_zeros(num, self.latent_dim)
        if not num:
            return z.to(like)
        log_probs = None if self.network is not None else self._log_probs(self.inputs_of(z))
        for place in range(self.latent_dim):
            table = self._log_probs(self.inputs_of(z)) if log_probs is None else log_probs
            cumulative = table[..., place, :].double().exp().cumsum(-1)
            point = chance[:, place, None].double() * cumulative[..., -1:]
            passed = (cumulative.expand(num, -1) <= point).sum(-1)
            z[:, place] = passed.clamp_max(self.num_values - 1).to(z)
        return z.to(like)

    def inputs_of(self, z: Tensor) -> Tensor:
        return F.one_hot(z.long(), self.num_values).to(z)

    def changes(self, z: Tensor, slope: Tensor) -> Tensor:
        return slope - slope.gather(-1, z.long().unsqueeze(-1))

    def networks(self) -> Mapping[str, nn.Module]:
        return {} if self.network is None else {"network": self.network}

    def settings(self) -> dict[str, Any]:
        sizes = {"num_codes": self.num_values, "num_places": self.latent_dim}
        return sizes | {"has_logits": self.logits is not None}

    @classmethod
    def empty(cls, settings: Mapping[str, Any], networks: Mapping[str, nn.Module]) -> Self:
        prior = cls.__new__(cls)
        places, codes = settings["num_places"], settings["num_codes"]
        DiscretePrior.__init__(prior, places, codes)
        prior.input_shape, prior.network = torch.Size([places, codes]), networks.get("network")
        logits = torch.empty(places, codes, device="meta") if settings["has_logits"] else None
        prior.register_buffer("logits", logits)
        return prior

    def extra_repr(self) -> str:
        return f"num_codes={self.num_values}, num_places={self.latent_dim}"

    def _log_probs(self, inputs: Tensor) -> Tensor:
        """log p(z_i = k | codes before i), (*sample, D, K), or (D, K) for independent places."""
        if self.network is None:
            uniform_logits = inputs.new_zeros(self.input_shape)
            logits = uniform_logits if self.logits is None else self.logits
            return logits.log_softmax(-1).expand(self.input_shape)
        flat = inputs.reshape(-1, *self.input_shape)
        return self.network(flat).log_softmax(-1).reshape(inputs.shape)

    def _own(self, like: Tensor) -> Tensor:
        """An empty tensor of the prior's own dtype and device, or `like` if it has no tensors."""
        own = [*self.parameters(), *self.buffers()]
        return own[0].new_empty(0) if own else like

    @torch.no_grad()
    def _try(self, network: nn.Module) -> None:
        """Raise ValueError unless a place's logits depend only on the codes before it."""
        like, shape = self._own(torch.empty(0)), self.input_shape
        generator = Generator().manual_seed(0)
        sizes = (_NUM_TRIED, self.latent_dim)
        codes = torch.randint(self.num_values, sizes, generator=generator).to(like)
        training = network.training
        network.eval()
        try:
            output = network(self.inputs_of(codes))
        except Exception as error:  # a user's module may raise anything
            raise ValueError(
                f"expected a network that takes one-hot codes of shape (N, {shape[0]}, "
                f"{shape[1]}), but it failed on them: {first_line(error)}"
            ) from error
        if not isinstance(output, Tensor) or output.shape != (_NUM_TRIED, *shape):
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"expected a network with output (N, {shape[0]}, {shape[1]}): logits of every code "
                f"in every place, got {got} for N = {_NUM_TRIED}"
            )
        if not output.isfinite().all():
            raise ValueError("expected finite logits from the network, got NaN or infinity")
        others = (codes + 1) % self.num_values
        places = torch.arange(self.latent_dim, device=codes.device)
        for place in range(self.latent_dim):
            changed = torch.where(places >= place, others, codes)
            moved = network(self.inputs_of(changed))[:, : place + 1] - output[:, : place + 1]
            if moved.abs().max() > _ROUNDING * output.abs().max().clamp_min(1e-30):
                raise ValueError(
                    f"expected logits of place {place} that depend only on the codes before it, "
                    "got a network that also looks at its own or later codes; shift its input by "
                    "one place, or mask it"
                )
        network.train(training)
