"""Completes a digit whose label is given, and says which labels the observed pixels leave open.

    python examples/labelled_digit.py
    python examples/labelled_digit.py --train FOLDER    (a minute; FOLDER holds mnist.npz)

The decoder is called as decoder(z, label), as in a conditional VAE, and its label is a one-hot row.
Evidence is a label and any pixels. p(label | x) follows from log p(x | label), with one query per
label.
Writes labelled_digit.png: what is observed, and completions for each label.
"""

import math
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import crosscoding as cc

WEIGHTS = Path(__file__).with_suffix(".safetensors")
LATENT, HIDDEN, LABELS = 8, 160, 10
NUM_COMPLETIONS = 3


class Decoder(nn.Module):
    """z (B, latent) and one-hot labels (B, 10) -> logits (B, 28, 28)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(LATENT + LABELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 784)
        )

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        return self.layers(torch.cat([z, label], -1)).unflatten(-1, (28, 28))


def main() -> None:
    if sys.argv[1:2] == ["--train"]:
        save_file(train(Path(sys.argv[2])).half().state_dict(), WEIGHTS)
    decoder = Decoder()
    decoder.load_state_dict(load_file(WEIGHTS))
    every_label = torch.eye(LABELS)
    vae = cc.VAE(decoder, LATENT, cc.likelihoods.Bernoulli(), given=every_label)

    digits, labels = cc.zoo.digits()
    digit, truth = digits[29], int(labels[29])
    seen = cc.random_mask(vae.data_shape, 0.05, seed=2)
    values = digit.expand(LABELS, 28, 28)  # the same pixels with each label
    posterior = cc.condition(vae, cc.Evidence(values, seen, given=every_label), seed=0)

    label_prob = posterior.log_evidence.softmax(0)  # all labels are equally likely a priori
    for label, verdict in enumerate(posterior.verdicts):
        log_prob = posterior.log_evidence[label]
        print(
            f"a {label}: p(label | x) = {label_prob[label]:.3f}, log p(x | label) = "
            f"{log_prob:.2f} nats, {verdict.label}"
        )
    log_query = posterior.query_log_prob(values)
    print(f"it is a {truth}: log p(y | x, label) = {log_query[truth]:.1f} nats")
    print(f"without the label, log p(y | x) = {(log_query + label_prob.log()).logsumexp(0):.1f}")
    draw(digit, seen, posterior.predict_mean(NUM_COMPLETIONS, seed=0), label_prob)


def draw(digit: Tensor, seen: Tensor, completions: Tensor, label_prob: Tensor) -> None:
    """A column for what is observed, and one for each label."""
    figure, axes = plt.subplots(NUM_COMPLETIONS, LABELS + 1, figsize=(9, 2.75))
    colours = plt.get_cmap("gray").with_extremes(bad="tab:blue")
    for axis in axes.flat:
        axis.axis("off")
    observed = torch.where(seen, digit, torch.nan)
    axes[0, 0].imshow(observed, cmap=colours, vmin=0, vmax=1)
    axes[0, 0].set_title("observed", fontsize=9)
    for label, share in enumerate(label_prob.tolist()):
        axes[0, label + 1].set_title(f"a {label}: {share:.0%}", fontsize=9)
        for row in range(NUM_COMPLETIONS):
            axes[row, label + 1].imshow(completions[row, label], cmap="gray", vmin=0, vmax=1)
    figure.tight_layout(pad=0.3)
    figure.savefig("labelled_digit.png", dpi=110)


def train(folder: Path, epochs: int = 15) -> Decoder:
    """A conditional VAE with a Gaussian encoder, trained by its ELBO."""
    with np.load(folder / "mnist.npz") as stored:
        digits = torch.from_numpy(stored["train_images"] > 127).float().flatten(1)
        labels = F.one_hot(torch.from_numpy(stored["train_labels"]).long(), LABELS).float()
    torch.manual_seed(0)
    decoder = Decoder()
    encoder = nn.Sequential(
        nn.Linear(784 + LABELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT)
    )
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=2e-3)
    num_steps = epochs * math.ceil(len(digits) / 128)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(digits)).split(128):
            mean, log_variance = encoder(torch.cat([digits[rows], labels[rows]], -1)).chunk(2, -1)
            z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
            logits = decoder(z, labels[rows]).flatten(1)
            loss = F.binary_cross_entropy_with_logits(logits, digits[rows], reduction="sum")
            loss = loss + 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: ELBO {-total / len(digits):.2f} nats")
    return decoder


if __name__ == "__main__":
    main()
