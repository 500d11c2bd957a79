"""Answers a query through a torch.export program, which does not need the decoder's class.

    python examples/adapters/exported_program.py

Writes decoder.pt2, and exported_program.png: the observed pixels of a digit, completions, their
mean and the truth.
"""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

import crosscoding as cc


def main() -> None:
    vae = cc.zoo.load("mnist-20d")
    batch = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(vae.decoder, (torch.zeros(2, 20),), dynamic_shapes=batch)
    torch.export.save(program, "decoder.pt2")

    # torch unpickles parts of such a file, so say that you trust it
    loaded = cc.adapters.from_export("decoder.pt2", cc.likelihoods.Bernoulli(), allow_code=True)
    digit = cc.zoo.digits()[0][29]
    evidence = cc.Evidence(digit, cc.random_mask((28, 28), 0.15, seed=0))
    posteriors = [cc.condition(model, evidence, seed=0) for model in (vae, loaded)]
    for name, posterior in zip(("module", "program"), posteriors, strict=True):
        log_evidence = posterior.log_evidence
        print(f"{name}: log p(x) = {log_evidence:.4f} nats, {posterior.verdicts[0].label}")
    gap = (posteriors[0].mean() - posteriors[1].mean()).abs().max()
    print(f"means differ by at most {gap:.0e}")

    known = torch.where(evidence.mask, digit, torch.nan)
    panels = [known, *posteriors[1].predict_mean(4, seed=0), posteriors[1].mean(), digit]
    titles = ["observed", *["completion"] * 4, "mean", "truth"]
    figure, axes = plt.subplots(1, 7, figsize=(9, 1.6))
    colours = plt.get_cmap("gray").with_extremes(bad="tab:blue")
    for axis, title, picture in zip(axes, titles, panels, strict=True):
        axis.imshow(picture, cmap=colours, vmin=0, vmax=1)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    figure.tight_layout(pad=0.3)
    figure.savefig("exported_program.png", dpi=110)


if __name__ == "__main__":
    main()
