"""The fingerprint of a model: its likelihood, and its outputs at a few points."""

from dataclasses import dataclass

import torch
from torch import Tensor

from crosscoding.likelihoods import Likelihood
from crosscoding.model.generative import Generative
from crosscoding.model.recognition import same_output
from crosscoding.model.tried_prior import prior_probes

_NUM_POINTS = 4  # latent points at which models are compared


@dataclass(frozen=True, eq=False)
class ModelPrint:
    """The fingerprint of a model: its likelihood, and its outputs at a few points."""

    outputs: Tensor
    likelihood: Likelihood

    @classmethod
    @torch.no_grad()
    def of(cls, vae: Generative) -> "ModelPrint":
        """The fingerprint of a model, always from the same points: 0 and some along (1, −1, 1, …).

        If z is discrete, the points are draws of the prior.
        """
        if vae.prior.noise_dim is None:
            like = torch.empty(0, dtype=vae.dtype, device=vae.device)
            return cls(vae.decode_flat(prior_probes(vae.prior, like, _NUM_POINTS)), vae.likelihood)
        steps = torch.linspace(0, 1, _NUM_POINTS, dtype=vae.dtype, device=vae.device)
        signs = 1 - 2 * (torch.arange(vae.latent_dim, device=vae.device) % 2)
        return cls(vae.decode_flat(steps[:, None] * signs), vae.likelihood)

    def same_as(self, other: "ModelPrint") -> bool:
        """Whether both are fingerprints of the same model."""
        return self.same_likelihood_as(other) and same_output(self.outputs, other.outputs)

    def same_likelihood_as(self, other: "ModelPrint") -> bool:
        """Whether both have the same likelihood, settings included."""
        (here, named), (there, also) = self.likelihood.to_parts(), other.likelihood.to_parts()
        same = named == also and here.keys() == there.keys()
        return same and all(torch.equal(here[name].cpu(), there[name].cpu()) for name in here)
