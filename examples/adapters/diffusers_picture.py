"""Fills in digits with a third of their pixels known, using an AutoencoderKL of diffusers.

    python examples/adapters/diffusers_picture.py  (needs crosscoding[diffusers])

So that it runs anywhere, the script trains a small one, with latents of 1 x 7 x 7, for half a
minute on digits drawn from a model of the zoo; load your own with AutoencoderKL.from_pretrained.
Writes diffusers_picture.png: evidence, completions, mean and truth.
"""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from diffusers import AutoencoderKL

import crosscoding as cc


def trained(pictures: torch.Tensor, steps: int = 600) -> AutoencoderKL:
    """An autoencoder of pictures (N, 1, 28, 28) in [-1, 1]."""
    model = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 16),
        norm_num_groups=4,
        latent_channels=1,
        sample_size=28,
        scaling_factor=1.0,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = pictures[torch.randint(len(pictures), (32,))]
        posterior = model.encode(rows).latent_dist
        mismatch = (model.decode(posterior.sample()).sample - rows).square().sum() / (2 * 0.3**2)
        optimizer.zero_grad()
        (mismatch + posterior.kl().sum()).backward()
        optimizer.step()
    return model.eval()


def main() -> None:
    torch.manual_seed(0)
    digits = 2 * cc.zoo.digits()[0].unsqueeze(1) - 1
    drawn = 2 * cc.zoo.load("mnist-20d").sample_prior(2000, seed=0).unsqueeze(1) - 1
    vae = cc.adapters.from_diffusers(trained(drawn), size=28, scale=0.3)
    print(vae)

    truth = digits[[0, 12, 24]]
    seen = cc.random_mask((28, 28), 0.33, seed=0).unsqueeze(0)
    # for a first look in seconds, one Gaussian, which is never trusted
    method = cc.methods.Variational(cc.crosscoders.Gaussian(rank=8), steps=300)
    posterior = cc.condition(vae, cc.Evidence(truth, seen), method, seed=0)
    for verdict in posterior.verdicts:
        print(f"{verdict.label}; {verdict.reasons[0]}")

    known = torch.where(seen, truth, torch.nan)
    panels = [known, *posterior.predict_mean(5, seed=0), posterior.mean(), truth]
    figure, axes = plt.subplots(3, 8, figsize=(8, 3.2))
    colours = plt.get_cmap("gray").with_extremes(bad="tab:blue")
    for column, panel in enumerate(panels):
        for row in range(3):
            axes[row, column].imshow(panel[row, 0], cmap=colours, vmin=-1, vmax=1)
            axes[row, column].axis("off")
    for column, title in enumerate(["observed", *["completion"] * 5, "mean", "truth"]):
        axes[0, column].set_title(title, fontsize=9)
    figure.tight_layout(pad=0.3)
    figure.savefig("diffusers_picture.png", dpi=110)


if __name__ == "__main__":
    main()
