"""Fills the gaps of a table of numbers, counts and classes with your own VAE.

    python examples/own_table_model.py

So that it runs anywhere, the script trains a VAE for a few seconds on invented houses: area, price,
rooms, and whether there is a garden. Load your own model instead.
"""

import torch
from torch import nn

import crosscoding as cc

COLUMNS = ("area", "price", "rooms", "garden")
LATENT_DIM = 2
# The decoder outputs two means, a log rate and a logit.
LIKELIHOOD = cc.likelihoods.Mixed(
    [(cc.likelihoods.Gaussian(0.3), 2), cc.likelihoods.Poisson(), cc.likelihoods.Bernoulli()]
)


def houses(num: int) -> torch.Tensor:
    """A table (num, 4); area and price are standardised, as is usual for training."""
    size, place = torch.randn(2, num)
    area = size + 0.2 * torch.randn(num)
    price = 0.8 * size + 0.5 * place + 0.2 * torch.randn(num)
    rooms = torch.poisson((1.2 + 0.4 * size).exp())
    garden = (torch.rand(num) < torch.sigmoid(2 * size - 3 * place)).float()
    return torch.stack([area, price, rooms, garden], dim=1)


def train(decoder: nn.Module, table: torch.Tensor, steps: int = 1500) -> None:
    """Maximise the ELBO, only to have a model for this example; yours is already trained."""
    encoder = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 2 * LATENT_DIM))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-3)
    for _ in range(steps):
        rows = table[torch.randint(len(table), (256,))]
        mean, log_variance = encoder(rows).chunk(2, dim=1)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        output = decoder(z)
        mismatch = (
            (output[:, :2] - rows[:, :2]).square().sum(1) / (2 * 0.3**2)
            + nn.functional.poisson_nll_loss(output[:, 2], rows[:, 2], reduction="none")
            + nn.functional.binary_cross_entropy_with_logits(
                output[:, 3], rows[:, 3], reduction="none"
            )
        )
        optimizer.zero_grad()
        (mismatch + divergence).mean().backward()
        optimizer.step()


def main() -> None:
    torch.manual_seed(0)
    table = houses(2000)
    decoder = nn.Sequential(nn.Linear(LATENT_DIM, 64), nn.Tanh(), nn.Linear(64, 4))
    train(decoder, table)

    vae = cc.VAE(decoder, latent_dim=LATENT_DIM, likelihood=LIKELIHOOD)
    print(vae.check(table))

    gap = float("nan")
    rows = torch.tensor([[1.5, gap, gap, gap], [gap, 1.5, 2.0, gap], [gap, gap, gap, 1.0]])
    posterior = cc.condition(vae, cc.Evidence.from_nan(rows), seed=0)
    draws = posterior.predict(2000)
    low, high = draws.quantile(torch.tensor([0.05, 0.95]), dim=0)
    mean = posterior.mean()
    for index, verdict in enumerate(posterior.verdicts):
        print(f"row {index}: {verdict.label}")
        for column, name in enumerate(COLUMNS):
            known = not rows[index, column].isnan()
            spread = f"90 % between {low[index, column]:.2f} and {high[index, column]:.2f}"
            print(f"  {name:7}{mean[index, column]:6.2f}  {'as given' if known else spread}")


if __name__ == "__main__":
    main()
