"""SCVI and LinearSCVI: densities against scvi-tools' own, answers against a grid."""

import numpy as np
import pytest
import torch
from problems import seeded
from torch import Tensor

import crosscoding as cc
from crosscoding.adapters import from_scvi

scvi = pytest.importorskip("scvi", reason="needs the extra `scvi`")

pytestmark = pytest.mark.filterwarnings("ignore")  # of scvi-tools and Lightning
NUM_GENES = 40

CASES = {
    "zinb": {},
    "one batch": {"setup": {"batch_key": None}},
    "nb by batch": {"gene_likelihood": "nb", "dispersion": "gene-batch"},
    "zinb by label": {"dispersion": "gene-label", "setup": {"labels_key": "labels"}},
    "zinb by cell": {"dispersion": "gene-cell", "n_layers": 2},
    "poisson": {"gene_likelihood": "poisson"},
    "normal": {"gene_likelihood": "normal"},
    "covariates": {
        "setup": {"categorical_covariate_keys": ["lane"], "continuous_covariate_keys": ["age"]}
    },
    "own prior of the library": {"use_observed_lib_size": False},
    "logistic normal": {"latent_distribution": "ln"},
    "embedded batches": {"batch_representation": "embedding"},
    "size factors": {"setup": {"size_factor_key": "size"}},
    "linear": {"linear": True},
    "linear zinb": {"linear": True, "gene_likelihood": "zinb"},
}


def cells():
    """scvi's synthetic data, with covariates."""
    adata = scvi.data.synthetic_iid(batch_size=60, n_genes=NUM_GENES)
    generator = np.random.default_rng(0)
    adata.obs["lane"] = generator.choice(["x", "y", "z"], adata.n_obs)
    adata.obs["age"] = generator.normal(size=adata.n_obs)
    adata.obs["size"] = generator.uniform(50, 500, adata.n_obs)
    return adata


def trained(setup=None, linear: bool = False, n_latent: int = 3, **settings):
    kind = scvi.model.LinearSCVI if linear else scvi.model.SCVI
    adata, setup = cells(), {"batch_key": "batch", **(setup or {})}
    with torch.random.fork_rng():
        scvi.settings.seed = 0
        kind.setup_anndata(adata, **setup)
        model = kind(adata, n_latent=n_latent, n_hidden=16, **settings)
        model.train(max_epochs=3, accelerator="cpu", enable_progress_bar=False, logger=False)
    model.module.eval()
    return model


def of_cells(model, vae: cc.VAE, rows: np.ndarray) -> dict[str, Tensor]:
    """The covariates of some cells, as the VAE takes them."""
    registry = {
        "batch": "batch", "labels": "labels", "categories": "extra_categorical_covs",
        "continuous": "extra_continuous_covs",
    }  # fmt: skip
    found = {}
    for key in vae.examples or {}:
        if key == "library":
            continue
        values = np.asarray(model.adata_manager.get_from_registry(registry[key]))[rows]
        found[key] = torch.as_tensor(values).reshape(len(rows), -1).to(vae.examples[key].dtype)
    return found


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("library", ["latent", "given"])
def test_densities_are_those_of_scvi(name, library):
    model = trained(**CASES[name])
    vae = from_scvi(model, library=library)
    rows = np.array([0, 70, 5, 100, 30])
    given = of_cells(model, vae, rows)
    counts = torch.as_tensor(np.asarray(model.adata.X[rows])).float()
    z = torch.randn(5, vae.latent_dim, generator=seeded(0))
    manager, module = model.adata_manager, model.module
    batch = torch.as_tensor(np.asarray(manager.get_from_registry("batch"))[rows]).long()
    sized = "size_factor_key" in CASES[name].get("setup", {})
    if sized or library == "given":
        size = torch.tensor([[100.0], [200.0], [400.0], [80.0], [300.0]])
        given["library"], log_library = size, size.log()
    else:
        moments = [library_moments(model, int(code)) for code in batch[:, 0]]
        mean, deviation = torch.tensor(moments).T[:, :, None]
        log_library = mean + deviation * z[:, -1:]
    own = z[:, :3].softmax(-1) if name == "logistic normal" else z[:, :3]
    theirs = module.generative(
        z=own,
        library=log_library,
        size_factor=log_library if sized else None,
        batch_index=batch,
        y=torch.as_tensor(np.asarray(manager.get_from_registry("labels"))[rows]).long(),
        cont_covs=given.get("continuous"),
        cat_covs=given.get("categories"),
    )["px"]
    found = vae.likelihood.log_prob(vae.decode(z, given or None), counts)
    # scvi adds 1e-8 within logarithms
    torch.testing.assert_close(found, theirs.log_prob(counts), rtol=1e-3, atol=1e-3)
    assert vae.table.names == tuple(model.adata.var_names)


def library_moments(model, batch: int) -> tuple[float, float]:
    """Mean and deviation of the log library of a batch, by scvi's own function."""
    means, variances = scvi.model._utils._init_library_size(
        model.adata_manager, max(model.module.n_batch, 1)
    )
    return float(means[0, batch]), float(variances[0, batch]) ** 0.5


def log_terms(vae: cc.VAE, evidence: cc.Evidence) -> tuple[Tensor, Tensor]:
    """A grid over both latents and log p(z, x) on it, one query."""
    axis = torch.linspace(-6, 6, 241)
    z = torch.cartesian_prod(axis, axis)
    given = {"batch": evidence.given["batch"].expand(len(z), 1)}
    params = vae.decode(z, given)
    log_prob = vae.likelihood.log_prob(params, evidence.values).double()
    log_joint = torch.where(evidence.mask, log_prob, 0.0).sum(-1)
    log_joint = log_joint - 0.5 * z.double().square().sum(-1) - np.log(2 * np.pi)
    return z, log_joint + 2 * np.log(float(axis[1] - axis[0]))


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_missing_genes_are_imputed_as_on_a_grid(likelihood):
    model = trained(n_latent=1, gene_likelihood=likelihood)
    vae = from_scvi(model)
    counts = torch.as_tensor(np.asarray(model.adata.X[:1])).float()
    evidence = cc.Evidence(counts, torch.arange(NUM_GENES) < 25, given=of_cells(model, vae, [0]))
    posterior = cc.condition(vae, evidence, seed=0)
    z, terms = log_terms(vae, evidence)
    assert posterior.log_evidence.item() == pytest.approx(terms.logsumexp(0).item(), abs=0.1)
    given = {"batch": evidence.given["batch"].expand(len(z), 1)}
    means = vae.likelihood.mean(vae.decode(z, given)).double()
    exact = (terms.softmax(0)[:, None] * means).sum(0)
    missing = torch.arange(NUM_GENES) >= 25
    error = (posterior.mean()[0] - exact)[missing].abs()
    assert (error < 0.2 * posterior.std()[0][missing]).all()
    draws = posterior.predict(2000, seed=1)[:, 0, missing].double()
    inside = (draws <= draws.quantile(0.95, 0)) & (draws >= draws.quantile(0.05, 0))
    assert (inside.double().mean(0) >= 0.89).all()


def test_an_interval_of_a_count_is_evidence():
    model = trained(n_latent=1)
    vae = from_scvi(model)
    low = torch.full((1, NUM_GENES), -torch.inf)
    low[0, 3] = 5
    evidence = cc.Evidence.interval(low, torch.full((1, NUM_GENES), torch.inf))
    counts = torch.as_tensor(np.asarray(model.adata.X[:1])).float()
    known = cc.Evidence(counts, torch.arange(NUM_GENES) > 30, given=of_cells(model, vae, [0]))
    posterior = cc.condition(vae, known & evidence, seed=0)
    assert (posterior.predict(300, seed=0)[:, 0, 3] >= 5).all()


def test_what_cannot_be_served_is_said():
    adata = cells()
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    untrained = scvi.model.SCVI(adata)
    with pytest.raises(ValueError, match="call its train first"):
        from_scvi(untrained)
    with pytest.raises(TypeError, match=r"got the path 'model'"):
        from_scvi("model")
    scvi.model.SCANVI.setup_anndata(
        adata, labels_key="labels", unlabeled_category="?", batch_key="batch"
    )
    with pytest.raises(TypeError, match="got SCANVI"):
        from_scvi(scvi.model.SCANVI(adata))
    with pytest.raises(ValueError, match="'latent' or 'given'"):
        from_scvi(trained(n_latent=1), library="observed")
