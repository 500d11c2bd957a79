"""The experiment on families, with a small model in place of each, and its tables."""

from dataclasses import replace

import pytest
import torch

import crosscoding as cc
from crosscoding.experiments.claims import families as claims
from crosscoding.experiments.experiment import Context, UnavailableError
from crosscoding.experiments.figures import families
from crosscoding.experiments.problem import digest
from crosscoding.experiments.recorded_runs import run
from crosscoding.priors import Gaussian

TINY = families.Settings(num_digits=1, num_complete=3, num_sets=2, num_draws=20, steps=5)
EXPERIMENT = replace(families.FAMILIES_ON_DIGITS, full=TINY)


@pytest.mark.slow
def test_every_model_gets_verdicts_costs_and_pictures(tmp_path, monkeypatch, mnist_2d):
    monkeypatch.setattr(families.zoo, "load", lambda name: mnist_2d)
    monkeypatch.setattr(families, "FAMILIES", ("mnist-iwae", "mnist-ladder"))
    for module in (families, claims):
        monkeypatch.setattr(module, "SAME_DECODER", ("mnist-iwae",))
    record, _ = run(EXPERIMENT, Context(tmp_path))
    numbers, names = record["numbers"], [families.PLAIN, *families.FAMILIES]
    assert list(numbers["models"]) == names
    for model in numbers["models"].values():
        assert sum(sum(each.values()) for each in model["verdicts"].values()) == 4
        assert model["processor_seconds_a_query"] > 0
        assert model["decodes_a_query"] > 100
        assert len(model["complete"]["log_prob"]) == 3
        assert len(model["query_log_prob"]) == 4
    assert list(numbers["same_decoder"]) == [families.PLAIN, *families.SAME_DECODER]
    pictures = {f"families-{name}.png" for name in (*names, "complete", "same-decoder")}
    assert pictures <= set(record["files"])
    lines = claims.section(numbers)
    for name in names:
        (row,) = (line for line in lines if line.startswith(f"| {name} | {latent_dim(name)} |"))
        assert row.count("|") == 12
    gaps = [line for line in lines if line.startswith(f"| {families.PLAIN} | ")]
    assert len(gaps) == 2  # in either table
    assert "| 0.00 ± 0.00 |" in "".join(lines)  # the same model, so nothing changes


def latent_dim(name):
    return cc.zoo.card(name)["latent_dim"]


def test_without_its_models_the_experiment_is_skipped_with_advice(tmp_path, monkeypatch):
    monkeypatch.setattr(cc.zoo, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="pip install crosscoding-families"):
        run(EXPERIMENT, Context(tmp_path))


def test_models_that_differ_only_in_their_prior_have_other_digests():
    decoder = torch.nn.Linear(2, 4)
    scales = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])
    models = [
        cc.VAE(decoder, 2, cc.likelihoods.Gaussian(), prior=Gaussian(torch.zeros(2), scale))
        for scale in scales
    ]
    assert digest(models[0]) != digest(models[1])
