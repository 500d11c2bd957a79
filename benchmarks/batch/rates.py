"""Measures rates, memory and start-up of `crosscoding batch`, for docs/batch.md.

    python benchmarks/batch/rates.py [--only NAME] [--rows 10000000] [--share 1]

"linear", "network" and "digits" compare a run in one process with the library alone, in rows per
CPU second, so that other programs on the machine matter little. "two workers" and "many rows" are
timed by the clock, so nothing else should run. --share 0.01 takes a hundredth of all rows, to
try it out. Writes benchmarks/results/batch.json.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

import crosscoding as cc
from crosscoding.result.purposes import PURPOSES

RESULTS = Path(__file__).parents[1] / "results" / "batch.json"
SHARD = 1000


def linear_model():
    """Two latents, three numbers: answered in closed form, the cheapest model there is."""
    torch.manual_seed(1)
    return cc.VAE(nn.Linear(2, 3), 2, cc.likelihoods.Gaussian(0.5))


def network_model():
    """Four latents, eight numbers, a hidden layer: goes through the cascade."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 8))
    return cc.VAE(network, 4, cc.likelihoods.Gaussian(0.5))


def gappy(vae, num, seed=0):
    values = vae.sample_prior(num, seed=seed).numpy()
    values[np.random.default_rng(seed).random(values.shape) < 0.3] = np.nan
    return values


def with_rows(vae, num):
    return vae, gappy(vae, num)


def cpu_seconds():
    own, children = (resource.getrusage(who) for who in (0, -1))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def bare(vae, values):
    """The same answers by the library alone, in blocks of a shard."""
    method = cc.methods.Auto(purpose="interval")
    for block in torch.from_numpy(values).split(SHARD):
        evidence = cc.Evidence.from_nan(block)
        posterior = cc.condition(vae, evidence, method, seed=0, progress=False)
        posterior.mean()
        posterior.quantile([0.05, 0.95], seed=0)
        verdicts = posterior.verdicts
        for purpose in PURPOSES:
            [verdicts.label(row, purpose) for row in range(len(block))]


def rates(folder, vae, values):
    """Rows per CPU second, by the library alone and by a run: medians of three, in alternation."""
    torch.set_num_threads(1)
    num = len(values)
    np.save(folder / "rows.npy", values)
    bare(vae, values[:1])  # decodes the points that the model keeps
    found = {"bare": [], "run": []}
    for repeat in range(3):
        began = time.process_time()
        bare(vae, values)
        found["bare"].append(num / (time.process_time() - began))
        began = time.process_time()
        cc.batch.run(vae, folder / "rows.npy", folder / f"{repeat}", progress=False)
        found["run"].append(num / (time.process_time() - began))
    medians = {name: float(np.median(own)) for name, own in found.items()}
    return {"rows": num, **medians, "ratio": medians["run"] / medians["bare"]}


def two_workers(folder, vae, num):
    """CPU seconds of two workers compared with one, without their start-up."""
    vae.save(folder / "model")
    np.save(folder / "rows.npy", gappy(vae, num))
    np.save(folder / "few.npy", gappy(vae, max(num // 10, 1)))
    taken = {}
    for workers in (1, 2):
        for name in ("few", "rows"):
            began, wall = cpu_seconds(), time.perf_counter()
            source = folder / f"{name}.npy"
            out = folder / f"{name}-{workers}"
            options = {"workers": workers, "shard_rows": max(num // 40, 1), "progress": False}
            cc.batch.run(folder / "model", source, out, **options)
            taken[name, workers] = cpu_seconds() - began, time.perf_counter() - wall
    rest = {w: taken["rows", w][0] - taken["few", w][0] for w in (1, 2)}
    walls = {w: taken["rows", w][1] - taken["few", w][1] for w in (1, 2)}
    return {
        "rows": num,
        "cpu_seconds": rest,
        "wall_seconds": walls,
        "speed_up_if_cores_are_free": 2 * rest[1] / rest[2],
        "speed_up_by_wall_clock": walls[1] / walls[2],
        "load": os.getloadavg()[0],
    }


def many_rows(folder, num):
    """Two workers on many rows of the cheapest model: time, and memory in the course of the run."""
    vae = linear_model()
    vae.save(folder / "model")
    block = gappy(vae, 100_000)
    path = folder / "rows.npy"
    whole = np.lib.format.open_memmap(path, "w+", block.dtype, (num, 3))
    for start in range(0, num, len(block)):
        whole[start : start + len(block)] = block[: num - start]
    whole.flush()
    del whole
    early, most = {}, {}

    def look(now):
        """Record the memory of this process, the driver, and of its largest worker."""
        found = {"driver": resident("self"), "worker": max(map(resident, workers()), default=0)}
        for name, size in found.items():
            most[name] = max(size, most.get(name, 0))
            if now.rows <= 100_000:
                early[name] = max(size, early.get(name, 0))

    began, cpu = time.perf_counter(), cpu_seconds()
    options = {"shard_rows": 10_000, "on_progress": look, "progress": False, "workers": 2}
    result = cc.batch.run(folder / "model", path, folder / "out", **options)
    seconds = time.perf_counter() - began
    return {
        "rows": result.rows,
        "wall_seconds": seconds,
        "rows_per_second": result.rows / seconds,
        "cpu_seconds": cpu_seconds() - cpu,
        "bytes_of_memory_at_100000": early,
        "most_bytes_of_memory": most,
        "ratio": {name: most[name] / early[name] for name in most},
        "bytes_of_shards": sum(file.stat().st_size for file in (folder / "out/shards").iterdir()),
        "load": os.getloadavg()[0],
    }


def workers():
    """Process ids of workers, without the process that tracks shared memory."""
    own = os.getpid()
    children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
    return [c for c in children if "spawn_main" in Path(f"/proc/{c}/cmdline").read_text()]


def resident(process):
    """Resident memory of a process, in bytes."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def start_up(folder):
    """CPU seconds from the command to its first shard, of one row."""
    np.save(folder / "rows.npy", gappy(linear_model(), 1))
    linear_model().save(folder / "model")
    words = ["batch", str(folder / "model"), str(folder / "rows.npy"), "--out", str(folder / "out")]
    before, wall = cpu_seconds(), time.perf_counter()
    subprocess.run([sys.executable, "-m", "crosscoding", *words], check=True, capture_output=True)
    return {
        "cpu_seconds": cpu_seconds() - before,
        "wall_seconds": time.perf_counter() - wall,
        "load": os.getloadavg()[0],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help='of "many rows"')
    parser.add_argument("--share", type=float, default=1.0, help="of the rows of each section")
    parser.add_argument("--only")
    asked = parser.parse_args()

    def few(num):
        return max(round(num * asked.share), 1)

    sections = {
        "linear": lambda folder: rates(folder, *with_rows(linear_model(), few(20_000))),
        "network": lambda folder: rates(folder, *with_rows(network_model(), few(2_000))),
        "digits": lambda folder: digits(folder, few(200)),
        "two workers": lambda folder: two_workers(folder, network_model(), few(20_000)),
        "many rows": lambda folder: many_rows(folder, few(asked.rows)),
        "start-up": start_up,
    }
    if asked.only not in (None, *sections):
        parser.error(f"expected --only with one of {', '.join(sections)}")
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name, measure in sections.items():
        if asked.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                found[name] = measure(Path(folder))
            print(name, found[name], flush=True)
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def digits(folder, num):
    """Rates on pictures: mnist-2d, upper halves."""
    vae = cc.zoo.load("mnist-2d")
    known = cc.zoo.digits()[0].numpy()
    values = known[np.arange(num) % len(known)].copy()
    values[:, 14:] = np.nan
    return rates(folder, vae, values)


if __name__ == "__main__":
    main()
