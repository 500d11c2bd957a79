"""Imputes genes that a panel did not measure, with intervals, using a model of scvi-tools.

    python examples/adapters/scvi_counts.py        (needs crosscoding[scvi])

So that it runs anywhere, the script trains SCVI for seconds on scvi's synthetic cells; load your
own model instead. Writes scvi_counts.png: 90 % intervals of 40 genes that were not measured in a
cell, and their true counts.
"""

import warnings

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import scvi
import torch

import crosscoding as cc


def main() -> None:
    warnings.simplefilter("ignore")  # from scvi, while it trains
    scvi.settings.seed = 0
    adata = scvi.data.synthetic_iid()
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    trained = scvi.model.SCVI(adata, n_latent=5)
    trained.train(max_epochs=20, accelerator="cpu", enable_progress_bar=False)

    model = cc.adapters.from_scvi(trained)
    counts = torch.as_tensor(np.asarray(adata.X[:4]), dtype=torch.float32)
    measured = torch.arange(100) < 60
    batch = torch.zeros(4, 1, dtype=torch.long)
    evidence = cc.Evidence(counts, measured, given={"batch": batch})
    posterior = cc.condition(model, evidence, seed=0)
    for cell, verdict in enumerate(posterior.verdicts):
        print(f"cell {cell}: {verdict.label}; {verdict.reasons[0]}")

    low, high = (end[:, ~measured] for end in posterior.interval(0.9, seed=0))
    truth, mean = counts[:, ~measured], posterior.mean()[:, ~measured]
    inside = ((truth >= low) & (truth <= high)).float().mean()
    print(f"{inside:.0%} of {truth.numel()} unmeasured counts are in their 90 % intervals")

    genes = range(60, 100)
    figure, axis = plt.subplots(figsize=(8, 3), layout="constrained")
    axis.vlines(genes, low[0], high[0], color="0.7", linewidth=4, label="90 % interval")
    axis.plot(genes, mean[0], "_", color="tab:blue", label="mean")
    axis.plot(genes, truth[0], ".", color="tab:orange", label="true count")
    axis.set(xlabel="gene", ylabel="count", title="a cell of which genes 0 to 59 were measured")
    axis.legend(frameon=False, ncols=3)
    figure.savefig("scvi_counts.png", dpi=110)


if __name__ == "__main__":
    main()
