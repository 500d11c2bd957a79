"""Enlarges a digit from 7 x 7 numbers, and with --face a drawn face from 16 x 16.

    python examples/super_resolution.py
    python examples/super_resolution.py --face      (takes minutes; needs crosscoding-faces)

Only averages over blocks of pixels are known, which is evidence of sums. Writes
super_resolution.png: the averages, completions that agree with them, their mean, and the truth.
"""

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import crosscoding as cc

NUM_COMPLETIONS = 5


def block_averages(data_shape: tuple[int, ...], size: int) -> Tensor:
    """The operator that averages pictures (channels, height, width) over square blocks."""
    num = data_shape[0] * data_shape[1] * data_shape[2]
    pictures = torch.eye(num).reshape(num, *data_shape)
    return F.avg_pool2d(pictures, size).flatten(1).mT.reshape(-1, *data_shape)


def digit() -> tuple[cc.VAE, Tensor, cc.methods.Method]:
    """Digits with normal pixels around the decoder's mean, as sums need a Gaussian likelihood."""
    digits = cc.zoo.load("mnist-20d")
    mean = nn.Sequential(digits.decoder, nn.Sigmoid(), nn.Unflatten(1, (1, 28)))
    vae = cc.VAE(mean, digits.latent_dim, cc.likelihoods.Gaussian(0.25))
    return vae, cc.zoo.digits()[0][29][None], cc.methods.Auto()


def face() -> tuple[cc.VAE, Tensor, cc.methods.Method]:
    """A face drawn from the model itself, as real ones have no licence for sharing."""
    vae = cc.zoo.load("anime-64d")
    with torch.no_grad():
        truth = vae.decode(torch.randn(vae.latent_dim))
    return vae, truth, cc.methods.Auto(purpose="mean", max_seconds=300)


def main() -> None:
    of_face = "--face" in sys.argv[1:]
    torch.manual_seed(3)
    vae, truth, method = face() if of_face else digit()
    averages = F.avg_pool2d(truth, 4)
    evidence = cc.Evidence.linear(block_averages(tuple(truth.shape), 4), averages.flatten())
    posterior = cc.condition(vae, evidence, method, seed=0)
    verdict = posterior.verdicts[0]
    print(f"{verdict.label}; {verdict.reasons[0]}")

    coarse = averages.repeat_interleave(4, -1).repeat_interleave(4, -2)
    completions = posterior.predict_mean(NUM_COMPLETIONS, seed=0)
    off = (F.avg_pool2d(completions, 4) - averages).abs().max()
    print(f"completions agree with the averages to {off:.0e}")
    panels = [coarse, *completions, posterior.mean(), truth]
    titles = ["known", *["completion"] * NUM_COMPLETIONS, "mean", "truth"]
    figure, axes = plt.subplots(1, len(panels), figsize=(9, 1.5))
    for axis, picture, title in zip(axes, panels, titles, strict=True):
        shown = (picture + 1) / 2 if of_face else picture
        axis.imshow(shown.clamp(0, 1).movedim(0, -1), cmap="gray", vmin=0, vmax=1)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    figure.tight_layout(pad=0.3)
    figure.savefig("super_resolution.png", dpi=110)


if __name__ == "__main__":
    main()
