"""Priors p(z) of a VAE: what a decoder's latent variable is drawn from."""

from crosscoding.priors.base import Prior

__all__ = ["Prior"]
