"""Answers a query through an ONNX file, and compares it with the answer of the module it came from.

    python examples/adapters/onnx_file.py          (needs crosscoding[onnx] and onnxscript)

Writes decoder.onnx, and onnx_file.png: the digit, and the means of both answers.
"""

import contextlib
import os
import warnings

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

import crosscoding as cc


def main() -> None:
    vae = cc.zoo.load("mnist-20d")
    warnings.simplefilter("ignore")  # from the exporter, which also prints
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        torch.onnx.export(vae.decoder, (torch.zeros(1, 20),), "decoder.onnx", dynamo=True)

    loaded = cc.adapters.from_onnx("decoder.onnx", cc.likelihoods.Bernoulli())
    digit = cc.zoo.digits()[0][29]
    evidence = cc.Evidence(digit, cc.random_mask((28, 28), 0.15, seed=0))
    posteriors = [cc.condition(model, evidence, seed=0) for model in (vae, loaded)]
    for name, posterior in zip(("module", "ONNX"), posteriors, strict=True):
        log_evidence = posterior.log_evidence
        print(f"{name}: log p(x) = {log_evidence:.4f} nats, {posterior.verdicts[0].label}")

    known = torch.where(evidence.mask, digit, torch.nan)
    panels = {"observed": known, "truth": digit}
    panels |= {"module": posteriors[0].mean(), "ONNX": posteriors[1].mean()}
    figure, axes = plt.subplots(1, 4, figsize=(6, 1.8))
    colours = plt.get_cmap("gray").with_extremes(bad="tab:blue")
    for axis, (title, picture) in zip(axes, panels.items(), strict=True):
        axis.imshow(picture, cmap=colours, vmin=0, vmax=1)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    figure.tight_layout(pad=0.3)
    figure.savefig("onnx_file.png", dpi=110)


if __name__ == "__main__":
    main()
