"""A small table of every kind of column that ctgan and SDV know, and brute force on its models."""

import numpy as np
import pandas as pd
import torch
from problems import seeded
from torch import Tensor

import crosscoding as cc


def table(num: int = 600) -> pd.DataFrame:
    """Numbers of two clusters, whole numbers with many zeros, classes and booleans."""
    generator = np.random.default_rng(0)
    kind = generator.choice(["a", "b", "c"], num, p=[0.6, 0.37, 0.03])
    age = np.where(kind == "a", generator.normal(30, 4, num), generator.normal(60, 8, num))
    gain = np.where(generator.random(num) < 0.7, 0, generator.poisson(900, num))
    return pd.DataFrame(
        {
            "age": age.round(1),
            "kind": kind,
            "gain": gain,
            "member": generator.random(num) < np.where(kind == "b", 0.9, 0.2),
        }
    )


def log_prob_by_prior_draws(vae: cc.VAE, evidence: cc.Evidence, num: int = 40_000) -> Tensor:
    """log p(x) as the mean of p(x|z) over draws of z."""
    z = torch.randn(num, vae.latent_dim, generator=seeded(7), dtype=vae.dtype)
    terms = [
        vae.flat_likelihood.masked_log_prob(
            vae.decode_flat(part)[:, None], evidence.values, evidence.mask
        )
        for part in z.split(4000)
    ]
    return torch.cat(terms).logsumexp(0) - np.log(num)
