"""Fills in the lower half of digits: the picture at the top of the README.

    python examples/fill_in.py

Writes fill_in.png and prints the verdict on each answer.
"""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

import crosscoding as cc

NUM_COMPLETIONS = 6


def main() -> None:
    vae = cc.zoo.load("mnist-20d")
    digits, labels = cc.zoo.digits()
    truth = digits[[12, 21, 29, 35]]
    seen = cc.rectangle_mask(vae.data_shape, rows=(0, 13))
    posterior = cc.condition(vae, cc.Evidence(truth, seen), seed=0)
    for label, verdict in zip(labels[[12, 21, 29, 35]].tolist(), posterior.verdicts, strict=True):
        print(f"a {label}: {verdict.label}; {verdict.reasons[0]}")

    evidence = torch.where(seen, truth, torch.nan)
    completions = posterior.predict(NUM_COMPLETIONS, seed=0)
    panels = [evidence[None], completions, posterior.mean()[None], truth[None]]
    titles = ["observed", *["completion"] * NUM_COMPLETIONS, "mean", "truth"]
    pictures = torch.cat(panels)
    figure, axes = plt.subplots(len(truth), len(titles), figsize=(9, 4.2))
    colours = plt.get_cmap("gray").with_extremes(bad="tab:blue")
    for column, title in enumerate(titles):
        axes[0, column].set_title(title, fontsize=9)
        for row in range(len(truth)):
            axes[row, column].imshow(pictures[column, row], cmap=colours, vmin=0, vmax=1)
            axes[row, column].axis("off")
    figure.tight_layout(pad=0.3)
    figure.savefig("fill_in.png", dpi=110)
    print("fill_in.png: the observed part (missing pixels in blue), completions, mean, truth")


if __name__ == "__main__":
    main()
