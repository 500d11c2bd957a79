"""Running, resuming and recording, with an experiment that takes no time."""

import json
from dataclasses import dataclass

import pytest
import torch

from crosscoding import plots
from crosscoding.experiments.experiment import (
    Context,
    Experiment,
    Result,
    UnavailableError,
    plain,
)
from crosscoding.experiments.figures import hmc_acceptance
from crosscoding.experiments.recorded_runs import finished, run, run_all
from crosscoding.methods import Grid


@dataclass(frozen=True)
class Settings:
    size: int = 3


def made_up(calls, *, missing=False):
    """An experiment of two parts that records its calls."""

    def measure(settings, context):
        def part(name):
            calls.append(name)
            return Result({"size": settings.size}, {"values": torch.ones(settings.size)})

        parts = [context.part(name, settings, lambda n=name: part(n)) for name in ("one", "two")]
        calls.append("measure")
        total = sum(p.tensors["values"].sum() for p in parts)
        return Result({"total": total, "nothing": float("nan")}, {"values": torch.arange(4.0)})

    def draw(result):
        calls.append("draw")
        figure = plots.new_figure(2, 2)
        figure.add_subplot().plot(result.tensors["values"])
        return {"made-up-a": figure}

    def subjects(context):
        if missing:
            raise UnavailableError("expected a model that is not here")
        return {"model": "abc"}

    return Experiment(
        "made-up", "title", "wanted", Settings(), Settings(2), measure, draw, subjects
    )


def test_an_experiment_is_written_as_png_svg_json_and_tensors(tmp_path):
    record, was_there = run(made_up([]), Context(tmp_path, seed=5), version="1.2")
    assert not was_there
    assert record == json.loads((tmp_path / "made-up.json").read_text())
    assert record["numbers"] == {"total": 6.0, "nothing": None}
    assert record["settings"] == {"size": 3}
    assert record["seed"] == 5
    assert record["subjects"] == {"model": "abc"}
    assert record["versions"]["crosscoding"] == "1.2"
    assert record["seconds"] >= 0
    for name in ("made-up-a.png", "made-up-a.svg", "made-up.safetensors"):
        assert name in record["files"]
        assert (tmp_path / name).stat().st_size > 50


def test_finished_experiments_are_not_run_again(tmp_path):
    calls = []
    first, _ = run(made_up(calls), Context(tmp_path))
    calls.clear()
    second, was_there = run(made_up(calls), Context(tmp_path))
    assert was_there
    assert second == first
    assert calls == []


@pytest.mark.parametrize("change", [{"seed": 1}, {"quick": True}])
def test_other_settings_or_another_seed_run_again(tmp_path, change):
    run(made_up([]), Context(tmp_path))
    calls, quick = [], change.get("quick", False)
    _, was_there = run(made_up(calls), Context(tmp_path, seed=change.get("seed", 0)), quick=quick)
    assert not was_there
    assert calls == ["one", "two", "measure", "draw"]


def test_settings_can_be_changed_by_name(tmp_path):
    calls = []
    experiment = made_up(calls)
    record, _ = run(experiment.with_settings({"size": 5}), Context(tmp_path))
    assert record["settings"] == {"size": 5}
    assert record["changed"] == {"size": 5}
    assert run(experiment.with_settings({"size": 5}), Context(tmp_path))[1]
    assert not run(experiment, Context(tmp_path))[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sise": 5}, "expected a setting of made-up, got 'sise'; it has size"),
        ({"size": 5.5}, "expected size of made-up to be like 3, got 5.5"),
        ({"size": True}, "expected size of made-up to be like 3, got True"),
        ({"size": [5]}, "expected size of made-up to be like 3"),
    ],
)
def test_unknown_settings_and_wrong_types_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        made_up([]).with_settings(changes)


def test_a_list_of_settings_is_taken_as_a_tuple_of_the_same_kind():
    changed = hmc_acceptance.FIG5.with_settings({"num_leapfrog": [10], "step_sizes": [1, 0.5]})
    assert changed.full.num_leapfrog == (10,)
    assert changed.quick.step_sizes == (1, 0.5)
    with pytest.raises(ValueError, match="num_leapfrog"):
        hmc_acceptance.FIG5.with_settings({"num_leapfrog": []})


def test_an_interrupted_run_resumes_after_its_last_finished_part(tmp_path):
    context = Context(tmp_path)
    context.part("one", Settings(), lambda: Result({"size": 3}, {"values": torch.ones(3)}))
    calls = []
    record, _ = run(made_up(calls), context)
    assert calls == ["two", "measure", "draw"]
    assert record["seconds_of_which_kept"] >= 0


def test_a_damaged_part_is_done_again(tmp_path):
    run(made_up([]), Context(tmp_path))
    (tmp_path / "made-up.json").unlink()
    (damaged,) = (tmp_path / "parts").glob("one-*")
    (damaged / "tensors.safetensors").write_bytes(b"no tensors")
    calls = []
    run(made_up(calls), Context(tmp_path))
    assert calls == ["one", "measure", "draw"]
    calls.clear()
    (tmp_path / "made-up.json").unlink()
    run(made_up(calls), Context(tmp_path))
    assert calls == ["measure", "draw"]


def test_a_lost_picture_is_drawn_again_without_measuring_its_parts(tmp_path):
    run(made_up([]), Context(tmp_path))
    (tmp_path / "made-up-a.svg").unlink()
    assert finished("made-up", tmp_path) is None
    calls = []
    run(made_up(calls), Context(tmp_path))
    assert calls == ["measure", "draw"]


def test_a_damaged_record_is_ignored(tmp_path):
    (tmp_path / "made-up.json").write_text("{")
    assert finished("made-up", tmp_path) is None


def test_running_all_skips_what_cannot_be_run_and_says_why(tmp_path):
    told = []
    experiments = [made_up([], missing=True), made_up([])]
    run_all(experiments, Context(tmp_path), done=lambda e, record, what: told.append(what))
    assert told == ["expected a model that is not here", "measured"]
    with pytest.raises(UnavailableError):
        run(experiments[0], Context(tmp_path / "elsewhere"))


def test_pictures_have_the_same_bits_at_every_run(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run(made_up([]), Context(tmp_path / name))
    first, second = ((tmp_path / n / "made-up-a.svg").read_bytes() for n in ("a", "b"))
    assert first == second


def test_settings_become_json_with_methods_written_out():
    settings = {"method": Grid(), "own": Settings(), "list": (1, 2.5, float("inf"))}
    assert plain(settings) == {
        "method": repr(Grid()),
        "own": {"size": 3},
        "list": [1, 2.5, None],
    }


def test_a_missing_folder_or_file_says_which_option_names_it(tmp_path):
    with pytest.raises(UnavailableError, match="--data or in CROSSCODING_DATA"):
        Context(tmp_path).data_file("mnist.npz")
    with pytest.raises(UnavailableError, match="no such file"):
        Context(tmp_path, models=tmp_path).model_file("celeba-100d/decoder.safetensors")
