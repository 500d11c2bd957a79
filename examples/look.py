"""Draws the pictures of docs/look.md: answers as pictures, lines, columns of a table, and p(z|x).

    python examples/look.py

Writes look_*.png, and look_notebook.html, as a notebook shows a posterior. It needs the extras
`tables` and `arviz`: pip install 'crosscoding[tables,arviz]'.
"""

import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib.figure import Figure
from table import houses
from torch import Tensor, nn

import crosscoding as cc

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    import arviz


class Waves(nn.Module):
    """z (B, 3) -> two waves of 100 points: phase, frequency and height."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("time", torch.linspace(0, 6, 100))
        self.height = nn.Parameter(torch.tensor(0.3))

    def forward(self, z: Tensor) -> Tensor:
        phase, frequency, height = z[:, :1], 1 + 0.15 * z[:, 1:2], 1 + self.height * z[:, 2:]
        angle = frequency * self.time + phase
        return torch.stack([height * angle.sin(), height * angle.cos()], 1)


def pictures() -> None:
    vae, (digits, _) = cc.zoo.load("mnist-20d"), cc.zoo.digits()
    seen = cc.rectangle_mask(vae.data_shape, rows=(0, 13))
    posterior = cc.condition(vae, cc.Evidence(digits[[12, 21, 35]], seen), seed=0)
    save(posterior.plot().figure, "pictures")
    print(posterior)
    print(posterior.trace)
    print(posterior.summary().round(2).to_string())
    html = posterior._repr_html_()
    Path("look_notebook.html").write_text(f"<meta charset='utf-8'>{html}", encoding="utf-8")


def lines() -> None:
    vae = cc.VAE(Waves(), latent_dim=3, likelihood=cc.likelihoods.Gaussian(0.1))
    truth = vae.sample_prior(1, seed=4)[0]
    seen = torch.zeros(2, 100, dtype=torch.bool)
    seen[0, [3, 12, 15, 29]] = True
    low = torch.full((2, 100), -torch.inf)
    low[1, 70:74] = 0.8
    evidence = cc.Evidence(truth, seen) & cc.Evidence.interval(low=low)
    save(cc.condition(vae, evidence, seed=0).plot(num=8).figure, "lines")


def columns() -> None:
    import numpy as np

    df = houses(500, np.random.default_rng(0))
    imputer = cc.tables.VAEImputer(random_state=0, max_seconds=10).fit(df)
    asked = imputer.table_.query(area=80, price=(250_000, 400_000), district={"centre", "ring"})
    save(cc.condition(imputer.model_, asked, seed=0).plot().figure, "columns")


def latent() -> None:
    vae, (digits, _) = cc.zoo.load("mnist-2d"), cc.zoo.digits()
    evidence = cc.Evidence(digits[[29, 0, 21]], cc.random_mask((28, 28), 0.05, seed=2))
    posterior = cc.condition(vae, evidence, seed=0)
    save(posterior.plot("latent", queries=[0, 1, 2]).figure, "latent")


def chains() -> None:
    vae, (digits, _) = cc.zoo.load("mnist-2d"), cc.zoo.digits()
    evidence = cc.Evidence(digits[29], cc.random_mask((28, 28), 0.05, seed=2))
    method = cc.methods.HMC(num_chains=4, num_warmup=200, num_draws=250)
    posterior = cc.condition(vae, evidence, method, seed=0)
    data = posterior.to_arviz()
    print(arviz.summary(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure = arviz.plot_trace(data, compact=False, figsize=(9, 4)).ravel()[0].figure
    figure.tight_layout()
    save(figure, "arviz")


def save(figure: Figure, name: str) -> None:
    figure.savefig(f"look_{name}.png", dpi=90, bbox_inches="tight")


def main() -> None:
    for draw in (pictures, lines, columns, latent, chains):
        draw()


if __name__ == "__main__":
    main()
