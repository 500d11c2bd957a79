"""Completes the lower half of digits with a VAE that was trained with pythae.

    python examples/adapters/pythae_picture.py     (needs crosscoding[pythae])

So that it runs anywhere, the script trains pythae's default networks for seconds on digits drawn
from a model of the zoo; load yours with AutoModel.load_from_folder instead. Writes
pythae_picture.png: evidence, completions, mean and truth.
"""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from pythae.data.datasets import DatasetOutput
from pythae.models import VAE, VAEConfig

import crosscoding as cc


def trained(pictures: torch.Tensor, steps: int = 1500) -> VAE:
    """A VAE of binary pictures (N, 1, 28, 28)."""
    model = VAE(VAEConfig(input_dim=(1, 28, 28), latent_dim=8, reconstruction_loss="bce"))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        rows = pictures[torch.randint(len(pictures), (64,))]
        loss = model(DatasetOutput(data=rows)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def main() -> None:
    torch.manual_seed(0)
    digits, _ = cc.zoo.digits()
    zoo = cc.zoo.load("mnist-20d")
    pictures = zoo.sample_prior(2000, seed=0)
    vae = cc.adapters.from_pythae(trained(torch.cat([pictures, digits]).unsqueeze(1)))

    truth = digits[[0, 12, 24]].unsqueeze(1)
    seen = cc.rectangle_mask((28, 28), rows=(0, 13)).unsqueeze(0)
    posterior = cc.condition(vae, cc.Evidence(truth, seen), seed=0)
    for verdict in posterior.verdicts:
        print(verdict.label, "; ", verdict.reasons[0], sep="")

    known = torch.where(seen, truth, torch.nan)
    panels = [known, *posterior.predict_mean(5, seed=0), posterior.mean(), truth]
    figure, axes = plt.subplots(3, 8, figsize=(8, 3.2))
    colours = plt.get_cmap("gray").with_extremes(bad="tab:blue")
    for column, panel in enumerate(panels):
        for row in range(3):
            axes[row, column].imshow(panel[row, 0], cmap=colours, vmin=0, vmax=1)
            axes[row, column].axis("off")
    for column, title in enumerate(["observed", *["completion"] * 5, "mean", "truth"]):
        axes[0, column].set_title(title, fontsize=9)
    figure.tight_layout(pad=0.3)
    figure.savefig("pythae_picture.png", dpi=110)


if __name__ == "__main__":
    main()
