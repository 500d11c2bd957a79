"""Damaged folders, and folders of something else, are refused."""

import math

import pytest
import torch
from cheap_methods import LISTED
from problems import linear_gaussian_problem
from safetensors.torch import load_file, save_file
from tampering import (
    edit_description,
    edit_parts,
    edit_tensor,
    without_description,
    without_tensor,
)

import crosscoding as cc

pytestmark = pytest.mark.usefixtures("short_start", "without_closed_form")


def edit_vae(**changes):
    return edit_parts(lambda _, description: description["vae"].update(changes))


def truncated(folder):
    path = folder / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


DAMAGES = {
    "no description": lambda folder: (folder / "description.json").unlink(),
    "no tensors": lambda folder: (folder / "tensors.safetensors").unlink(),
    "tensors cut short": truncated,
    "tensors empty": lambda folder: (folder / "tensors.safetensors").write_bytes(b""),
    "tensors of noise": lambda folder: (folder / "tensors.safetensors").write_bytes(b"\xff" * 99),
    "description no JSON": lambda folder: (folder / "description.json").write_text('{"kind": '),
    "description binary": lambda folder: (folder / "description.json").write_bytes(b"\xff\x00"),
    "description a list": lambda folder: (folder / "description.json").write_text("[]"),
    "another kind": edit_description(kind="vae"),
    "no batch shape": without_description("batch_shape"),
    "batch shape of words": edit_description(batch_shape=["a"]),
    "batch shape of another size": edit_description(batch_shape=[7]),
    "batch shape negative": edit_description(batch_shape=[-3]),
    "seconds a word": edit_description(seconds="long"),
    "seconds nothing": edit_description(seconds=None),
    "has_evidence missing": without_description("has_evidence"),
    "method missing": without_description("method"),
    "vae a number": edit_description(vae=3),
    "likelihood unknown": edit_vae(likelihood={"name": "Cauchy", "settings": {}}),
    "likelihood a word": edit_vae(likelihood="Gaussian"),
    "layer unknown": edit_vae(architecture=[["Evil", {}]]),
    "architecture a number": edit_vae(architecture=3),
    "latent a word": edit_vae(latent_dim="two"),
    "latent of another size": edit_vae(latent_dim=5),
    "crosscoder a number": edit_description(crosscoder=3),
    "crosscoder unknown": edit_description(crosscoder={"name": "X", "settings": {}, "dim": 2}),
    "crosscoder of another dim": edit_description(
        crosscoder={"name": "Gaussian", "settings": {}, "dim": 3}
    ),
    "crosscoder of dim -1": edit_description(
        crosscoder={"name": "Gaussian", "settings": {}, "dim": -1}
    ),
    "draws missing": without_tensor("findings.draws"),
    "draws flat": edit_tensor("findings.draws", lambda t: t.flatten()),
    "draws of other queries": edit_tensor("findings.draws", lambda t: t[:, :1].contiguous()),
    "ess missing": without_tensor("findings.ess"),
    "ess of other queries": edit_tensor("findings.ess", lambda t: t[:1].clone()),
    "pareto_k of other queries": edit_tensor("findings.pareto_k", lambda t: t[:1].clone()),
    "draws of integers": edit_tensor("findings.draws", lambda t: t.int()),
    "draws of another dtype": edit_tensor("findings.draws", lambda t: t.double()),
    "no draw": edit_tensor("findings.draws", lambda t: t[:0].clone()),
    "ess of integers": edit_tensor("findings.ess", lambda t: t.long()),
    "log_evidence of NaN": edit_tensor("findings.log_evidence", lambda t: t * math.nan),
    "parameters of another dtype": edit_tensor("findings.crosscoder.shift", lambda t: t.double()),
    "everything of another dtype": edit_parts(
        lambda tensors, _: tensors.update(
            {k: t.double() for k, t in tensors.items() if k.startswith("findings")}
        )
    ),
    "outputs missing": without_tensor("fingerprint"),
    "outputs of integers": edit_tensor("fingerprint", lambda t: t.int()),
    "chains a word": edit_description(num_chains="two"),
    "chains none": edit_description(num_chains=0),
    "chains that do not divide the draws": edit_description(num_chains=7),
    "parameters missing": without_tensor("findings.crosscoder.shift"),
    "parameters of another shape": edit_tensor(
        "findings.crosscoder.lower", lambda t: t[:, :1].clone()
    ),
    "weights missing": without_tensor("vae.decoder.0.weight"),
    "weights of another shape": edit_tensor("vae.decoder.0.weight", lambda t: t.mT.contiguous()),
    "evidence missing": without_tensor("evidence.values"),
    "evidence of NaN": edit_tensor("evidence.values", lambda t: torch.full_like(t, math.nan)),
    "evidence of other data": edit_tensor("evidence.values", lambda t: t[:, :4].contiguous()),
    "mask of numbers": edit_tensor("evidence.mask", lambda t: t.float()),
    "generator missing": without_tensor("generator"),
    "generator cut short": edit_tensor("generator", lambda t: t[:10].clone()),
}


@pytest.fixture(scope="module")
def fit(problem):
    """A fitted Gaussian with all its parts."""
    return cc.condition(problem.vae, problem.evidence, LISTED["gvi"], seed=0)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_folder_is_refused(fit, damage, tmp_path):
    fit.save(tmp_path / "saved")
    damage(tmp_path / "saved")
    with pytest.raises(cc.ModelFormatError):
        cc.Posterior.load(tmp_path / "saved")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("findings.pareto_k"), "'findings.pareto_k' is missing"),
        (lambda tensors: tensors.pop("findings.stats.finished"), "stats.finished' is missing"),
        (lambda tensors: tensors["findings.ess"].fill_(9e9), "'findings.ess' is damaged"),
        (lambda t: t.update({"findings.draws": t["findings.draws"].flip(1)}), "draws' is damaged"),
    ],
    ids=["pareto_k", "finished", "ess", "queries permuted"],
)
def test_a_lost_figure_does_not_make_an_answer_trusted(change, said, tmp_path):
    """Auto cut short is not trusted; with these figures missing or changed, it would be."""
    problem = linear_gaussian_problem(6, data_dim=8, scale=0.5, batch=(2,))
    method = cc.methods.Auto(max_decodes=1)
    posterior = cc.condition(problem.vae, problem.evidence, method, seed=0)
    assert not posterior.trusted.any()
    posterior.save(tmp_path / "saved")
    path = tmp_path / "saved" / "tensors.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    with pytest.raises(cc.ModelFormatError, match=said):
        cc.Posterior.load(tmp_path / "saved")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("ess", lambda t: t.long(), "got torch.int64 for 'ess'"),
        ("draws", lambda t: t[:0].clone(), "at least 1 draw in 'draws', got 0"),
        ("log_evidence", lambda t: t * math.nan, "expected a number in 'log_evidence'"),
    ],
)
def test_a_tensor_that_cannot_be_right_is_named(fit, name, change, said, tmp_path):
    fit.save(tmp_path / "saved")
    edit_tensor(f"findings.{name}", change)(tmp_path / "saved")
    with pytest.raises(cc.ModelFormatError, match=said):
        cc.Posterior.load(tmp_path / "saved")


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(cc.ModelFormatError, match=r"expected a saved posterior in .*is missing"):
        cc.Posterior.load(tmp_path / "nowhere")
