"""Load-tests a server on loopback: mixed requests, many in flight; none may be lost or wrong.

    .venv-serve/bin/python benchmarks/serve/load.py [--requests 1000] [--in-flight 50]

Starts `crosscoding serve` with two models of digits, sends the requests in rounds, compares each
answer with that of `condition`, and prints latencies, and the server's memory after each round.
"""

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import torch

import crosscoding as cc

MODELS = ("mnist-2d", "mnist-20d")
ROUNDS = 5
NUM_QUESTIONS = 24
_PATIENCE = 1800  # seconds; a request without an answer by then counts as lost
_AGREED = 0.2  # nats: both log p(x) are right to 0.1 where they are trusted


def questions() -> list[dict]:
    """Different questions: models, evidence, sizes, outputs, and some that are wrong."""
    digits, _ = cc.zoo.digits()
    found = []
    for number in range(NUM_QUESTIONS):
        rows = (0, 13) if number % 2 else (10, 27)
        mask = cc.rectangle_mask((28, 28), rows=rows)
        pixels = torch.where(mask, digits[number : number + 1 + number // 20], torch.nan)
        values = np.where(np.isnan(pixels.numpy()), None, pixels.double().numpy()).tolist()
        question = {"model": MODELS[number % 8 == 3], "values": values, "draws": number % 2}
        question["outputs"] = ["mean"] if number % 2 else ["mean", "std"]
        if number % 8 == 7:
            question["values"] = [1, 2, 3]
        found.append(question)
    return found


def expected(question: dict) -> list[float] | None:
    """log p(x) of each query; None for a question that is wrong."""
    if question["values"] == [1, 2, 3]:
        return None
    values = torch.tensor(np.array(question["values"], dtype=np.float32))
    vae = cc.zoo.load(question["model"])
    return cc.condition(vae, cc.Evidence.from_nan(values), seed=0).log_evidence.tolist()


def judged(response: httpx.Response, wanted: list[float] | None) -> str:
    """Judge a response: "right", "refused", or what is wrong with it."""
    if response.status_code in (429, 503):
        return "refused" if int(response.headers["retry-after"]) >= 1 else "no Retry-After"
    if wanted is None:
        return "right" if response.status_code == 422 else f"status {response.status_code}, not 422"
    if response.status_code != 200:
        return f"status {response.status_code}"
    found = response.json()["answers"]
    if len(found) != len(wanted):
        return "wrong number of answers"
    for answer, log_evidence in zip(found, wanted, strict=True):
        trusted = answer["verdict"]["label"] == "trusted"
        if trusted and abs(answer["log_evidence"] - log_evidence) > _AGREED:
            return f"log p(x) {answer['log_evidence']:.2f}, not {log_evidence:.2f}"
    return "right"


def memory(pid: int) -> float:
    """Resident memory of a process in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("expected VmRSS of the server")


async def loaded(address: str, asked: list[dict], wanted: list, total: int, most: int) -> dict:
    """Send `total` requests, at most `most` at once; returns latencies and judgements."""
    bodies = [json.dumps(question) for question in asked]
    headers = {"Content-Type": "application/json"}
    latencies, judgements, gate = [], Counter(), asyncio.Semaphore(most)
    limits = httpx.Limits(max_connections=most)
    async with httpx.AsyncClient(base_url=address, timeout=_PATIENCE, limits=limits) as client:

        async def one(number: int) -> None:
            place = number % len(asked)
            async with gate:
                start = time.perf_counter()
                response = await client.post(
                    "/v1/condition", content=bodies[place], headers=headers
                )
                latencies.append(time.perf_counter() - start)
                judgements[judged(response, wanted[place])] += 1

        await asyncio.gather(*map(one, range(total)))
    return {"latencies": np.array(latencies), "judgements": judgements}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--in-flight", type=int, default=50)
    given = parser.parse_args()
    asked = questions()
    wanted = [expected(question) for question in asked]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "crosscoding", "serve", *MODELS, "--port", str(port)]
    server = subprocess.Popen(command)
    try:
        while True:
            try:
                if httpx.get(f"{address}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        wrong = 0
        for number in range(ROUNDS):
            start = time.perf_counter()
            per_round = given.requests // ROUNDS
            done = asyncio.run(loaded(address, asked, wanted, per_round, given.in_flight))
            seconds = time.perf_counter() - start
            wrong += per_round - done["judgements"]["right"]
            low, high = np.quantile(done["latencies"], [0.5, 0.99])
            print(
                f"round {number + 1}: {dict(done['judgements'])}, {per_round / seconds:.1f} "
                f"requests/s, median {low:.2f} s, 99 % {high:.2f} s, {memory(server.pid):.0f} MiB",
                flush=True,
            )
    finally:
        server.terminate()
        server.wait(30)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
