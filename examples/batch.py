"""Answers the rows of a CSV file on a cluster, here of two Ray nodes on this machine.

    python examples/batch.py

So that it runs anywhere, the script invents a model and rows. One process answers them first; with
the extra `ray` (pip install 'crosscoding[ray]'), the two nodes do so too, with the same results.
"""

import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

import crosscoding as cc


def model() -> cc.VAE:
    """A VAE of three numbers, untrained; yours is trained."""
    torch.manual_seed(0)
    return cc.VAE(torch.nn.Linear(2, 3), latent_dim=2, likelihood=cc.likelihoods.Gaussian(0.3))


def write_rows(path: Path, vae: cc.VAE, num: int) -> None:
    """Write a CSV file with a key, gaps, and a cell that is not a number."""
    values = vae.sample_prior(num, seed=0).numpy()
    gaps = np.random.default_rng(0).random(values.shape) < 0.3
    lines = ["key,height,weight,age"]
    for number, (row, missing) in enumerate(zip(values, gaps, strict=True)):
        cells = ["" if gap else f"{value:.3f}" for value, gap in zip(row, missing, strict=True)]
        lines.append(",".join([f"k{number}", *cells]))
    lines[5] = "k4,tall,0.1,0.2"
    path.write_text("\n".join(lines) + "\n")


def main() -> None:
    """Answer the rows in this process, and again on a cluster."""
    folder = Path(tempfile.mkdtemp())
    vae = model()
    write_rows(folder / "rows.csv", vae, 400)
    options = {"keep": ["key"], "shard_rows": 50, "progress": False}

    one = cc.batch.run(vae, folder / "rows.csv", folder / "one", **options)
    print(f"one process: {one.answered} answered, {one.rejected} rejected, {one.verdicts}")
    print((folder / "one" / "rejected.jsonl").read_text().strip())
    if find_spec("ray") is None:
        print("Ray is not installed, so the cluster is left out")
        return

    import ray
    from ray.cluster_utils import Cluster

    store = {"object_store_memory": 10**8}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **store})
    cluster.add_node(num_cpus=1, **store)
    ray.init(address=cluster.address, log_to_driver=False)
    two = cc.batch.run(vae, folder / "rows.csv", folder / "two", workers=2, **options)
    ray.shutdown()
    cluster.shutdown()
    print("two nodes: the same answers" if two.manifest == one.manifest else "they differ")


if __name__ == "__main__":
    main()
