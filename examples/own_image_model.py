"""Fills in the missing half of a picture with your own convolutional VAE.

    python examples/own_image_model.py

So that it runs anywhere, the script trains its decoder on forty digits for a few seconds; load your
own weights instead. Writes own_image_model.png: evidence, completions, mean, truth.
"""

import torch
from PIL import Image
from torch import nn

import crosscoding as cc

LATENT_DIM = 4


class Decoder(nn.Module):
    """z (B, 4) to the logits of 28 x 28 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(LATENT_DIM, 32 * 7 * 7)
        self.upsample = nn.Sequential(
            nn.ReLU(),
            nn.ConvTranspose2d(32, 16, kernel_size=4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 1, kernel_size=4, stride=2, padding=1),
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.upsample(self.start(z).unflatten(1, (32, 7, 7))).squeeze(1)


def train(decoder: nn.Module, pictures: torch.Tensor, steps: int = 400) -> None:
    """Maximise the ELBO, only to have a model for this example; yours is already trained."""
    encoder = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 2 * LATENT_DIM)
    )
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-3)
    for _ in range(steps):
        mean, log_variance = encoder(pictures).chunk(2, dim=1)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
        mismatch = nn.functional.binary_cross_entropy_with_logits(
            decoder(z), pictures, reduction="sum"
        )
        optimizer.zero_grad()
        (mismatch + divergence).backward()
        optimizer.step()


def main() -> None:
    torch.manual_seed(0)
    pictures, _ = cc.zoo.digits()
    decoder = Decoder()
    train(decoder, pictures)

    vae = cc.VAE(decoder, latent_dim=LATENT_DIM, likelihood=cc.likelihoods.Bernoulli())
    print(vae.check(pictures))

    truth = pictures[[0, 12, 24, 36]]
    upper_half = cc.rectangle_mask(vae.data_shape, rows=(0, 13))
    posterior = cc.condition(vae, cc.Evidence(truth, upper_half), seed=0)
    for index, verdict in enumerate(posterior.verdicts):
        print(index, verdict.label, "; ".join(verdict.reasons))

    evidence = torch.where(upper_half, truth, 0.5)
    columns = [evidence, *posterior.predict(6), posterior.mean(), truth]
    sheet = torch.cat([torch.cat(list(column)) for column in columns], dim=1)
    Image.fromarray((sheet * 255).byte().numpy()).save("own_image_model.png")
    print("own_image_model.png: evidence, six completions, mean and truth; one picture per row")


if __name__ == "__main__":
    main()
