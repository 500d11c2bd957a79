"""Fixtures: a model of the zoo, short fits, and folders of real data and models, if available."""

import os
from pathlib import Path

import pytest
import torch

import crosscoding as cc

# Modules whose assertions tests call: these too say what they compared.
pytest.register_assert_rewrite("auto_answers", "same_answers", "surroundings")

# The fits here are small: a second thread saves nothing, and waits long if cores are busy.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mnist_2d() -> cc.VAE:
    """The paper's 784-64-2-64-784 VAE, from the zoo."""
    return cc.zoo.load("mnist-2d")


@pytest.fixture
def short_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps for the start of a fit, in tests that hold wherever it starts."""
    monkeypatch.setattr("crosscoding.methods.numerics.variational_starts._BEND_STEPS", 20)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, in a list whose entry a test can change."""
    times = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: times[0])
    return times


@pytest.fixture
def without_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send linear models, whose answers are known, through the cascade."""
    monkeypatch.setattr(
        "crosscoding.methods.cascade.closed_form._linear_elements", lambda vae: None
    )


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data that CROSSCODING_DATA names."""
    return _folder_named_by("CROSSCODING_DATA")


@pytest.fixture(scope="session")
def models_folder() -> Path:
    """The folder of third-party trained models that CROSSCODING_MODELS names."""
    return _folder_named_by("CROSSCODING_MODELS")


def _folder_named_by(variable: str) -> Path:
    name = os.environ.get(variable)
    if not name:
        pytest.skip(f"needs real files: {variable} is not set")
    folder = Path(name)
    if not folder.is_dir():
        pytest.skip(f"needs real files: {variable} is {name}, which is not a folder")
    return folder
