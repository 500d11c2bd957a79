"""Figure 9, with minimal settings."""

from dataclasses import replace

import pytest

from crosscoding.experiments.experiment import Context
from crosscoding.experiments.figures import mixture_without_vae
from crosscoding.experiments.recorded_runs import run


@pytest.mark.slow
def test_every_method_has_its_distance_and_share_for_each_seed(tmp_path, monkeypatch):
    every = mixture_without_vae._compared_methods(mixture_without_vae.Settings(num_warmup=4))
    assert list(every) == ["NF", "FCN", "GVI", "HMC", "HMC, 1 chain", "Auto"]
    few = {"GVI": every["GVI"], "Auto": every["Auto"]}
    monkeypatch.setattr(mixture_without_vae, "_compared_methods", lambda settings: few)
    record, _ = run(
        replace(
            mixture_without_vae.FIG9, full=mixture_without_vae.Settings(num_seeds=2, num_draws=400)
        ),
        Context(tmp_path),
    )
    numbers = record["numbers"]
    for figures in numbers["methods"].values():
        assert len(figures["mmd"]) == len(figures["far_share"]) == 2
    # MMD² of two sets of 400 exact draws is 0 ± 0.003; a Gaussian's is above 0.05.
    assert max(map(abs, numbers["mmd_between_exact_draws"])) < 0.02
    assert max(numbers["methods"]["Auto"]["mmd"]) < 0.02
    assert min(numbers["methods"]["GVI"]["mmd"]) > 0.04
    assert {"fig9.png", "fig9-seeds.png"} <= set(record["files"])
