"""VAEs of pythae: which likelihood their loss implies, and which of them have the prior N(0, I).

pythae 0.1.2 trains with one of two reconstruction losses, summed over the elements:

    mse   ½ (t − μ)²           a Gaussian of scale 1 (up to 0.1.1 without the ½: of scale √½)
    bce   cross-entropy        a Bernoulli of probabilities

Training and pythae's `get_nll` assume a scale of 1. Pictures between 0 and 1 have less noise;
`calibrate_scale` finds their scale.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from crosscoding.adapters.libraries import library
from crosscoding.isolation import isolated
from crosscoding.likelihoods import Bernoulli, Gaussian, Likelihood
from crosscoding.model.vae import VAE

_LOSSES = {"mse": Gaussian(scale=1.0), "bce": Bernoulli(logits=False)}
_STANDARD = (
    "BetaTCVAE",
    "BetaVAE",
    "CIWAE",
    "DisentangledBetaVAE",
    "FactorVAE",
    "HVAE",
    "INFOVAE_MMD",
    "IWAE",
    "MIWAE",
    "PIWAE",
    "RHVAE",
    "VAE",
    "VAE_IAF",
    "VAE_LinNF",
)
_WITHOUT_LIKELIHOOD = {
    "Adversarial_AE": "a discriminator of z in place of the KL divergence",
    "MSSSIM_VAE": "the structural similarity of pictures",
    "VAEGAN": "distances in the layers of a discriminator",
    "WAE_MMD": "a distance between q(z) and p(z) in place of the KL divergence",
}
_OTHER_POSTERIORS = ("HVAE", "RHVAE", "VAE_IAF", "VAE_LinNF", "WAE_MMD")
"""Models whose z is not a draw from the Gaussian that the encoder outputs."""
_OTHER_PRIORS = {
    "AE": "no prior",
    "PoincareVAE": "a normal prior in hyperbolic space",
    "RAE_GP": "no prior",
    "RAE_L2": "no prior",
    "SVAE": "a uniform prior on a sphere",
    "VAMP": "a mixture of encoded inputs as prior",
    "VQVAE": "latents from a code book",
}


@isolated
def from_pythae(
    model: nn.Module, *, likelihood: Likelihood | None = None, with_encoder: bool = True
) -> VAE:
    """The `VAE` of a pythae model with prior N(0, I).

    Args:
        model: A model of `pythae.models`, with a decoder of pythae or your own. A subclass of your
            own counts as the class that it derives from.
        likelihood: By default the one that the model's reconstruction loss implies: `Gaussian(1.0)`
            for "mse", `Bernoulli(logits=False)` for "bce". A β-VAE weights the KL divergence by
            β; with "mse", its loss has the same minimum as the negative ELBO with a scale of √β.
        with_encoder: Whether to keep the model's encoder, for `VAE.encode`. It is left out if it
            does not output the mean and deviation of q(z|t): if flows or Hamiltonian steps follow
            it, or if it outputs a point.

    Raises:
        ImportError: pythae is not installed.
        TypeError: model is not a pythae model.
        ValueError: Its prior is not N(0, I), or its loss is not a likelihood and none is given; or
            `VAE` refuses the decoder or the encoder.
    """
    if isinstance(model, (str, Path)):
        raise TypeError(
            f"expected a pythae model, got the path {str(model)!r}: pythae saves pickles, which "
            "run whatever code they name when they are loaded; if you trust it, load it with "
            "pythae.models.AutoModel.load_from_folder and pass the model"
        )
    given: Any = model
    if not isinstance(model, library("pythae.models", "pythae").BaseAE):
        raise TypeError(f"expected a model of pythae.models, got {type(model).__name__}")
    kind = next(c.__name__ for c in type(model).__mro__ if c.__module__.startswith("pythae."))
    if kind not in (*_STANDARD, *_WITHOUT_LIKELIHOOD):
        prior = _OTHER_PRIORS.get(kind, "an unknown prior")
        raise ValueError(f"expected a model with prior N(0, I), got {kind}, which has {prior}")
    if likelihood is None:
        likelihood = _likelihood_of(kind, given)
    other = kind in _OTHER_POSTERIORS or getattr(given, "deterministic_posterior", False)
    encoder = _Encoder(given.encoder) if with_encoder and not other else None
    return VAE(_Reconstruction(given.decoder), given.latent_dim, likelihood, encoder)


def _likelihood_of(kind: str, model: Any) -> Likelihood:
    if kind in _WITHOUT_LIKELIHOOD:
        raise ValueError(
            f"expected a likelihood for {kind}, which is trained with {_WITHOUT_LIKELIHOOD[kind]}; "
            "pass one, such as likelihood=Gaussian(0.1), and calibrate it"
        )
    return _LOSSES[model.model_config.reconstruction_loss]


class _Reconstruction(nn.Module):
    """From z to the reconstruction among a pythae decoder's outputs."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(z)["reconstruction"]


class _Encoder(nn.Module):
    """From a datum to the mean and log variance among a pythae encoder's outputs."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, data: Tensor) -> tuple[Tensor, Tensor]:
        output = self.encoder(data)
        return output["embedding"], output["log_covariance"]
