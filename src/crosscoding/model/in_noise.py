"""A VAE in noise coordinates: z = T(ε) with ε ~ N(0, I), for the prior's map T.

p(t|z = T(ε)) is the same model with another latent variable, whose prior is standard normal. All
methods work there: a prior is whitened by its own map, and no method needs to know the prior. A
decode costs one more run of T.
"""

from dataclasses import replace

from torch import Tensor, nn

from crosscoding.covariates import Covariates
from crosscoding.model.vae import VAE
from crosscoding.priors import Normal, Prior


class FromNoise(nn.Module):
    """A decoder of noise: the prior's map, then the decoder."""

    def __init__(self, prior: Prior, decoder: nn.Module) -> None:
        super().__init__()
        self.prior, self.decoder = prior, decoder

    def forward(self, noise: Tensor, *given: Covariates) -> object:
        """The decoder's output at z = T(noise), with covariates if it takes any."""
        z = self.prior.from_noise(noise, *given)
        return self.decoder(self.prior.decoder_input(z), *given)


def check_continuous(vae: VAE, who: str) -> None:
    """Raise ValueError if a model has discrete latents, which `who` does not take."""
    if vae.prior.noise_dim is None:
        raise ValueError(
            f"expected a model with continuous latents, got discrete ones, which {who} does not "
            "take; crosscoding.condition and crosscoding.calibrate do"
        )


def in_noise(vae: VAE) -> VAE:
    """The same model with ε as its latent variable; itself if that is N(0, I), or discrete."""
    if isinstance(vae.prior, Normal) or vae.prior.noise_dim is None:
        return vae
    if "in noise" not in vae.kept:
        chosen = object.__new__(VAE)
        vars(chosen).update(vars(vae))
        chosen.decoder = FromNoise(vae.prior, vae.decoder).eval()
        if vae.head is not None:
            chosen.head = replace(vae.head, trunk=FromNoise(vae.prior, vae.head.trunk).eval())
        assert vae.prior.noise_dim is not None
        chosen.latent_dim = vae.prior.noise_dim
        chosen.prior, chosen.encoder, chosen.kept = Normal(chosen.latent_dim), None, {}
        vae.kept["in noise"] = chosen
    return vae.kept["in noise"]
