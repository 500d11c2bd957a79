"""A server on loopback in this process, and models for it."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pandas as pd
import torch
from problems import linear_gaussian_problem

import crosscoding as cc
from crosscoding.serve import Limits, Served, application

NEEDS = "needs the extra: pip install 'crosscoding[serve]'"


def line() -> Served:
    """A linear-Gaussian model of six elements, whose answers have closed forms."""
    return Served("line", linear_gaussian_problem().vae, "")


class Labelled(torch.nn.Module):
    """Means that depend on z and, by much more, on a label of three."""

    def __init__(self) -> None:
        super().__init__()
        self.of_z, self.of_label = torch.nn.Linear(2, 4), torch.nn.Linear(3, 4)

    def forward(self, z: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return self.of_z(z) + 10 * self.of_label(label)


def labelled() -> Served:
    """A model whose decoder takes labels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = cc.VAE(Labelled(), 2, cc.likelihoods.Gaussian(0.1), given=torch.eye(3))
    return Served("labelled", vae, "")


class Slow(torch.nn.Module):
    """Means that are no linear function of z, after `delay` seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.delay = torch.nn.Linear(8, 8), 0.0

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        time.sleep(self.delay)
        return torch.sin(self.linear(z))


def slow() -> Served:
    """A model that is slow once its decoder's `delay` is set."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Served("slow", cc.VAE(Slow(), 8, cc.likelihoods.Gaussian(0.1)), "")


def table() -> Served:
    """An untrained model of a table with a column of each kind."""
    df = pd.DataFrame(
        {
            "age": [25.5, 41.0, 33.25, 58.0],
            "city": ["Bonn", "Ulm", "Kiel", "Ulm"],
            "children": [0, 2, 1, 3],
            "grade": pd.Categorical(["low", "high", "mid", "low"], ["low", "mid", "high"], True),
            "owner": [True, False, True, False],
            "since": pd.to_datetime(["2020-01-01", "2021-05-05", "2019-03-03", "2022-12-31"]),
        }
    )
    own = cc.tables.Table(df)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = torch.nn.Linear(2, own.num_params)
    return Served("people", cc.VAE(decoder, 2, own.likelihood(), table=own), "")


@contextmanager
def served(models: Sequence[Served], limits: Limits | None = None, **more) -> Iterator[str]:
    """The address of a server with these models, ready to answer."""
    import uvicorn

    app = application(models, limits, **more)
    config = uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        address = f"http://127.0.0.1:{port}"
        _wait_until_ready(address)
        yield address
    finally:
        server.should_exit = True
        thread.join(timeout=20)


def _wait_until_ready(address: str) -> None:
    import httpx

    while httpx.get(f"{address}/readyz").status_code != 200:
        time.sleep(0.02)


def ask(api, **body):
    """The answer to a question about the model `line`."""
    response = api.post("/v1/condition", json={"model": "line", **body})
    assert response.status_code == 200, response.text
    return response.json()


def refused(api, status=422, **body):
    """What the server says of a question that it refuses."""
    response = api.post("/v1/condition", json={"model": "line", **body})
    assert response.status_code == status, response.text
    return response.json()["detail"]
