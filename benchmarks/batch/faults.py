"""Injects faults into `crosscoding batch` at random moments, for the table in docs/batch.md.

    python benchmarks/batch/faults.py [--kills 100] [--only NAME]

After each fault the run is repeated until it is complete, and must then have the manifest of an
undisturbed run, with the same SHA-256 of every shard, and each row once. Writes
benchmarks/results/batch_faults.json. What needs Ray is skipped where it is not installed.
"""

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

import crosscoding as cc
from crosscoding.batch import SourceChangedError, StoppedError

RESULTS = Path(__file__).parents[1] / "results" / "batch_faults.json"
SHARDS, SHARD_ROWS = 40, 20


class Bench:
    """A source, a model, and the result of an undisturbed run."""

    def __init__(self, folder):
        torch.set_num_threads(1)
        torch.manual_seed(1)
        network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))
        vae = cc.VAE(network, 2, cc.likelihoods.Gaussian(0.5))
        values = vae.sample_prior(SHARDS * SHARD_ROWS, seed=0).numpy()
        values[np.random.default_rng(0).random(values.shape) < 0.3] = np.nan
        values[5, 0] = np.inf  # a row that is rejected
        self.folder, self.source, self.model = folder, folder / "rows.npy", folder / "model"
        np.save(self.source, values)
        vae.save(self.model)
        self.vae = cc.load_vae(self.model)
        self.num = 0
        began = time.perf_counter()
        self.whole = self.run(self.new()).manifest
        self.seconds = time.perf_counter() - began

    def new(self):
        self.num += 1
        return self.folder / f"out-{self.num}"

    def run(self, out, model=None, **options):
        options = {"shard_rows": SHARD_ROWS, "progress": False, "draws": 1, **options}
        options.setdefault("method", cc.methods.Importance(num_draws=300))
        return cc.batch.run(model or self.vae, self.source, out, **options)

    def check(self, out):
        """Finish a run and compare it with the undisturbed one."""
        result = self.run(out)
        assert result.complete
        assert result.manifest == self.whole
        rows = pd.read_parquet(out / "shards")["row"].tolist()
        rejected = [json.loads(line)["row"] for line in (out / "rejected.jsonl").open()]
        assert sorted(rows + rejected) == list(range(SHARDS * SHARD_ROWS))

    def forked(self, work):
        """Start work in a fork of this process, which has everything imported; returns its id."""
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)


def killed_drivers(bench, kills):
    """kill -9 of the driver at random moments, again and again, until a run is complete."""
    moments, out, runs, done = random.Random(0), bench.new(), 0, 0
    while done < kills:
        child = bench.forked(lambda out=out: bench.run(out))
        time.sleep(moments.uniform(0, bench.seconds / 10))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            done += 1
            continue
        bench.check(out)
        runs, out = runs + 1, bench.new()
    bench.check(out)
    return {"faults": done, "runs": runs + 1}


def killed_workers(bench, kills):
    """kill -9 of worker processes at random moments of a run by two."""
    return _killed(bench, kills, "spawn_main", os.getpid(), {"workers": 2})


def killed_actors(bench, kills):
    """kill -9 of Ray's actors at random moments."""
    import ray

    ray.init(
        num_cpus=2, object_store_memory=2 * 10**8, include_dashboard=False, log_to_driver=False
    )
    try:
        return _killed(bench, kills, "ray::MapWorker", None, {"workers": 2})
    finally:
        ray.shutdown()


def _killed(bench, kills, name, parent, options):
    """Kill processes with this name, and this parent if one is given, while a run goes on."""
    moments, done, runs = random.Random(1), 0, 0
    while done < kills:
        out, over = bench.new(), threading.Event()
        hits = []

        def hunt(over=over, hits=hits):
            while not over.wait(moments.uniform(0, 2)):
                found = _processes(name, parent)
                if found and len(hits) < 3:  # a few in a run, as it has few shards
                    hits.append(os.kill(moments.choice(found), signal.SIGKILL))

        hunter = threading.Thread(target=hunt)
        hunter.start()
        try:
            bench.run(out, bench.model, **options)
        except StoppedError as error:
            print("  stopped:", error)
        finally:
            over.set()
            hunter.join()
        bench.check(out)
        done, runs = done + len(hits), runs + 1
        print("  killed", done, flush=True)
    return {"faults": done, "runs": runs}


def _processes(name, parent):
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().decode(errors="replace")
            above = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if name in words and parent in (None, above):
            found.append(int(path.name))
    return found


def lost_nodes(bench, times):
    """A node of a Ray cluster leaves in the middle of a run, and another joins."""
    import ray
    from ray.cluster_utils import Cluster

    store = {"object_store_memory": 10**8, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **store})
    node = cluster.add_node(num_cpus=1, object_store_memory=10**8)
    ray.init(address=cluster.address, log_to_driver=False)
    done = 0
    try:
        for _ in range(times):
            out, changed = bench.new(), []

            def change(now, changed=changed):
                nonlocal node
                if now.shards >= SHARDS // 4 and not changed:
                    changed.append(cluster.remove_node(node, allow_graceful=False))
                    node = cluster.add_node(num_cpus=1, object_store_memory=10**8)

            bench.run(out, bench.model, workers=2, on_progress=change)
            bench.check(out)
            done += len(changed)
    finally:
        ray.shutdown()
        cluster.shutdown()
    return {"faults": done, "runs": times}


def full_disks(bench, times):
    """A limit on the size of files makes a write fail in the middle, as on a full disk."""
    moments, done = random.Random(2), 0
    for _ in range(times):
        out, most = bench.new(), moments.randint(100, 7000)

        def limited(out=out, most=most):
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            try:
                bench.run(out)
            except StoppedError:
                os._exit(3)

        _, status = os.waitpid(bench.forked(limited), 0)
        done += os.waitstatus_to_exitcode(status) == 3
        bench.check(out)
    return {"faults": done, "runs": times}


def changed_bytes(bench, times):
    """One byte of a finished shard or record changed, or its end cut off."""
    moments, out = random.Random(3), bench.new()
    bench.run(out)
    for _ in range(times):
        path = moments.choice(sorted([*(out / "shards").iterdir(), *(out / "records").iterdir()]))
        content = bytearray(path.read_bytes())
        place = moments.randrange(len(content))
        if moments.random() < 0.5:
            content[place] ^= 1 << moments.randrange(8)
        else:
            del content[place:]
        path.write_bytes(content)
        bench.check(out)
    return {"faults": times, "runs": times + 1}


def changed_sources(bench, times):
    """A row of the source changed while it is read: the run must raise, and stay incomplete."""
    moments, content, told = random.Random(4), bench.source.read_bytes(), 0
    stamp = bench.source.stat()
    for _ in range(times):
        out, at = bench.new(), moments.randrange(1, SHARDS)

        def change(now, at=at):
            if now.shards == at:
                bench.source.write_bytes(content[:-4] + b"\0\0\0\0")

        try:
            bench.run(out, on_progress=change)
        except SourceChangedError:
            told += 1
        bench.source.write_bytes(content)
        os.utime(bench.source, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        bench.check(out)
    return {"faults": told, "runs": times}


def second_drivers(bench, times):
    """A second driver on a folder that is in use: refused, and the first goes on."""
    refused, out = 0, bench.new()

    def second(now):
        nonlocal refused
        if refused < times:
            try:
                bench.run(out)
            except ValueError as error:
                refused += "no other run" in str(error)

    bench.run(out, on_progress=second)
    bench.check(out)
    return {"faults": refused, "runs": 1}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of the driver")
    parser.add_argument("--only")
    asked = parser.parse_args()
    faults = {
        "driver killed": (killed_drivers, asked.kills),
        "byte changed or file cut": (changed_bytes, 50),
        "disk full": (full_disks, 20),
        "source changed while read": (changed_sources, 10),
        "second driver": (second_drivers, 10),
        "worker killed": (killed_workers, 5),
        "actor killed": (killed_actors, 5),
        "node left, another joined": (lost_nodes, 2),
    }
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for name, (inject, times) in faults.items():
            if asked.only not in (None, name):
                continue
            if inject in (killed_actors, lost_nodes) and find_spec("ray") is None:
                print(name, "needs Ray", file=sys.stderr)
                continue
            counts = inject(bench, times)
            print(name, counts, flush=True)
            found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            found[name] = counts
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
