"""Finds out by simulation which of two methods can be trusted on a kind of query.

    python examples/calibration.py

The model has a symmetry: the observed elements do not tell z from −z, so p(z|x) has two modes. A
fitted Gaussian covers one of them; `Auto` finds both. `cc.calibrate` shows this without knowing the
answer. Writes calibration.png: ranks, coverage and bounds on log p(x) of the Gaussian's answers.
"""

import matplotlib

matplotlib.use("Agg")
import torch
from torch import Tensor, nn

import crosscoding as cc


class Squares(nn.Module):
    """z (B, 2) to the means of six elements: three even in z, which are observed, and three odd."""

    def forward(self, z: Tensor) -> Tensor:
        first, second = z.unbind(-1)
        even = torch.stack([first**2, second**2, first * second], -1)
        return torch.cat([even, z, z.sum(-1, keepdim=True)], -1)


def main() -> None:
    vae = cc.VAE(Squares(), latent_dim=2, likelihood=cc.likelihoods.Gaussian(0.3))
    seen = torch.arange(6) < 3
    for method in (cc.methods.Auto(), cc.methods.Variational(cc.crosscoders.Gaussian())):
        report = cc.calibrate(vae, seen, method, num=200, seed=0)
        print(report.summary(), "\n")
    report.plot().savefig("calibration.png", dpi=110)


if __name__ == "__main__":
    main()
