"""SCVI and LinearSCVI models of scvi-tools, as models of gene counts.

    μ_g = exp(library) softmax_g(z, batch, covariates),   p(t_g|z) = ZINB, NB or Poisson of mean μ_g

In scvi, a cell's library is the log of its total count, which is unknown if genes are missing. Here
it is one more latent. Its prior is scvi's own for models that have one: normal, with the mean and
variance of the log total counts in the cell's batch. For others, the same is estimated.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crosscoding.adapters.libraries import library as imported
from crosscoding.columns import Column, Table
from crosscoding.isolation import isolated
from crosscoding.likelihoods import (
    Gaussian,
    Likelihood,
    NegativeBinomial,
    Poisson,
    ZeroInflated,
)
from crosscoding.model.vae import VAE

_NUM_LIBRARIES = 8  # examples of total counts for each combination of batch and covariates
_NUM_EXAMPLES = 64  # as many as a VAE keeps
_BATCH, _CATEGORIES, _CONTINUOUS, _LABELS = "batch", "categories", "continuous", "labels"
_LIBRARY = "library"
_KEYS = {
    _BATCH: "batch",
    _LABELS: "labels",
    _CATEGORIES: "extra_categorical_covs",
    _CONTINUOUS: "extra_continuous_covs",
}


@isolated
def from_scvi(model: Any, *, library: str = "latent") -> VAE:
    """The `VAE` of a trained scvi-tools SCVI or LinearSCVI model, with a table of the genes.

    Data are counts, one element per gene. If the model has batches, covariates or labels that its
    decoder uses, evidence carries them, a row for each cell, as `Evidence(counts, mask,
    given={"batch": codes})` with scvi's codes, whole numbers from 0, in shape (N, 1). The keys are
    "batch", "categories" and "continuous" for further covariates, "labels" and "library", and only
    those that the decoder takes; `vae.examples` shows them.

    Args:
        model: A trained `scvi.model.SCVI` or `scvi.model.LinearSCVI`, with its AnnData.
        library: "latent" if the cells' total counts are unknown: the last latent is then the log
            library in standard deviations of its prior. "given" if they are known; pass them as
            given={"library": total counts}, shape (N, 1). A model that was set up with size factors
            always takes these, under the same key.

    Raises:
        ImportError: scvi-tools is not installed.
        TypeError: model is of another class.
        ValueError: It is not trained, has no counts, or library is neither of these.
    """
    scvi = imported("scvi", "scvi")
    _check(model, scvi)
    if library not in ("latent", "given"):
        raise ValueError(f"expected library to be 'latent' or 'given', got {library!r}")
    module = model.module
    is_latent = library == "latent" and not module.use_size_factor_key
    rows = _covariates_of(model)
    prior = _library_prior(model, module) if is_latent else None
    decoder = _Decoder(module, prior, set(rows))
    examples = _examples(model, rows, with_library=not is_latent)
    names = [str(name) for name in model.adata.var_names]
    kind = "number" if module.gene_likelihood == "normal" else "count"
    return VAE(
        decoder,
        module.n_latent + is_latent,
        decoder.likelihood(),
        given=examples or None,
        table=Table.of([Column(name, kind) for name in names]),
    )


def _check(model: Any, scvi: Any) -> None:
    """Raise TypeError or ValueError unless this is a trained model with its counts."""
    if isinstance(model, (str, Path)):
        raise TypeError(
            f"expected a model, got the path {str(model)!r}: scvi-tools saves pickles, which run "
            "whatever code they name when they are loaded; if you trust it, load it with "
            "scvi.model.SCVI.load and pass the model"
        )
    if type(model) not in (scvi.model.SCVI, scvi.model.LinearSCVI):
        raise TypeError(
            f"expected an SCVI or LinearSCVI model of scvi-tools, got {type(model).__name__}, "
            "whose decoder or prior differs"
        )
    if not model.is_trained_:
        raise ValueError("expected a trained model, got one that is not; call its train first")
    if model.minified_data_type is not None:
        raise ValueError(
            "expected a model with its counts, got one with minified data; load it with the "
            "AnnData that it was trained on"
        )


class _Decoder(nn.Module):
    """From z, and covariates if there are any, to the parameters of all genes.

    Args:
        module: The model's module in scvi-tools; the parts that are used are copied.
        prior: Mean and variance of the log library for each batch, shape (2, batches); None if the
            library is given.
        keys: Keys of the covariates.
    """

    decoder: Any
    log_dispersion: Tensor
    prior: Tensor | None

    def __init__(self, module: Any, prior: Tensor | None, keys: set[str]) -> None:
        super().__init__()
        self.decoder = copy.deepcopy(module.decoder).cpu()
        self.is_linear = not hasattr(module.decoder, "px_scale_decoder")
        if not self.is_linear and not module.use_size_factor_key:
            self.decoder.px_scale_decoder[-1] = nn.LogSoftmax(-1)
        self.register_buffer("log_dispersion", _copied(getattr(module, "px_r", None)))
        self.register_buffer("prior", prior)
        self.keys = keys
        self.dispersion, self.gene_likelihood = module.dispersion, module.gene_likelihood
        self.num_latents = module.n_latent
        self.is_positive = module.use_size_factor_key
        self.is_simplex = module.latent_distribution == "ln"
        self.embedding = None
        if module.batch_representation == "embedding":
            self.embedding = copy.deepcopy(module.get_embedding("batch")).cpu()

    def likelihood(self) -> Likelihood:
        """The likelihood whose parameters `forward` outputs."""
        total = self.log_dispersion.exp() if self.dispersion == "gene" else None
        return {
            "zinb": lambda: ZeroInflated(NegativeBinomial(total)),
            "nb": lambda: NegativeBinomial(total),
            "poisson": lambda: Poisson(log_rate=True),
            "normal": lambda: Gaussian(total),
        }[self.gene_likelihood]()

    def forward(self, z: Tensor, given: Mapping[str, Tensor] | None = None) -> Tensor:
        given = given or {}
        codes = {k: given[k].long() for k in self.keys & {_BATCH, _LABELS, _CATEGORIES}}
        batch = codes.get(_BATCH, torch.zeros_like(z[:, :1], dtype=torch.long))
        log_library, own = self._log_library(z, batch, given), z[:, : self.num_latents]
        own = own.softmax(-1) if self.is_simplex else own
        inputs = [own, *([given[_CONTINUOUS].to(z)] if _CONTINUOUS in self.keys else [])]
        categories = codes[_CATEGORIES].split(1, 1) if _CATEGORIES in codes else ()
        if self.embedding is not None:
            inputs.append(self.embedding(batch[:, 0]))
        else:
            categories = (batch, *categories)
        log_scale, logits, of_cell = self._decoded(torch.cat(inputs, -1), categories)
        log_mean = log_scale + log_library
        return self._params(log_mean, logits, self._log_dispersion(batch, codes, of_cell))

    def _log_library(self, z: Tensor, batch: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        if self.prior is None:
            return given[_LIBRARY].to(z).log()
        mean, variance = self.prior[:, batch]
        return mean + variance.sqrt() * z[:, -1:]

    def _decoded(
        self, inputs: Tensor, categories: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log shares of the genes, logits of extra zeros, and log dispersions of the cell."""
        decoder = self.decoder
        if self.is_linear:
            raw = decoder.factor_regressor(inputs, *categories)
            return raw.log_softmax(-1), decoder.px_dropout_decoder(inputs, *categories), None
        nothing = torch.zeros_like(inputs[:, :1])
        scale, of_cell, _, logits = decoder(self.dispersion, inputs, nothing, *categories)
        return (scale.log() if self.is_positive else scale), logits, of_cell

    def _log_dispersion(
        self, batch: Tensor, codes: Mapping[str, Tensor], of_cell: Tensor | None
    ) -> Tensor | None:
        """log r of each gene if it depends on the cell; None otherwise."""
        if self.dispersion == "gene-cell":
            return of_cell
        if self.dispersion == "gene":
            return None
        which = batch if self.dispersion == "gene-batch" else codes.get(_LABELS, 0 * batch)
        return self.log_dispersion[:, which[:, 0]].T

    def _params(self, log_mean: Tensor, logits: Tensor, log_r: Tensor | None) -> Tensor:
        """Parameters as `likelihood` takes them."""
        if self.gene_likelihood == "poisson":
            return log_mean
        if self.gene_likelihood == "normal":
            mean = log_mean.exp()
            return mean if log_r is None else torch.stack([mean, log_r.exp()], -1)
        own = self.log_dispersion if log_r is None else log_r
        parts = [log_mean - own] if log_r is None else [log_mean - own, own.exp()]
        if self.gene_likelihood == "zinb":
            parts = [logits, *parts]
        return parts[0] if len(parts) == 1 else torch.stack(parts, -1)


def _copied(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.detach().cpu().clone()


def _covariates_of(model: Any) -> dict[str, np.ndarray]:
    """The covariates that the decoder takes, of all cells, each (cells, columns)."""
    module, registry = model.module, model.adata_manager.data_registry
    used = {
        _BATCH: module.n_batch > 1,
        _LABELS: module.dispersion == "gene-label" and module.n_labels > 1,
        _CATEGORIES: _KEYS[_CATEGORIES] in registry,
        _CONTINUOUS: _KEYS[_CONTINUOUS] in registry,
    }
    found = {}
    for key in (key for key, is_used in used.items() if is_used):
        rows = np.asarray(model.adata_manager.get_from_registry(_KEYS[key]))
        found[key] = rows.reshape(len(rows), -1)
    return found


def _library_prior(model: Any, module: Any) -> Tensor:
    """Mean and variance of the log library of each batch, shape (2, batches)."""
    if hasattr(module, "library_log_means"):
        parts = [module.library_log_means.cpu(), module.library_log_vars.cpu()]
        return torch.cat(parts).float()
    totals, batch = _totals(model), model.adata_manager.get_from_registry(_KEYS[_BATCH])
    codes = np.asarray(batch).reshape(-1)
    logs = [
        np.log(totals[(codes == code) & (totals > 0)]) for code in range(max(module.n_batch, 1))
    ]
    # a batch without cells: scvi's placeholders
    moments = [(own.mean(), own.var()) if len(own) else (0.0, 1.0) for own in logs]
    return torch.tensor(np.array(moments).T, dtype=torch.float32)


def _totals(model: Any) -> np.ndarray:
    """Total counts of all cells."""
    counts = model.adata_manager.get_from_registry("X")
    return np.asarray(counts.sum(1)).reshape(-1)


def _examples(model: Any, rows: dict[str, np.ndarray], with_library: bool) -> dict[str, Tensor]:
    """Covariates of some cells, with each combination of codes first."""
    num = model.adata.n_obs
    codes = [rows[key] for key in (_BATCH, _LABELS, _CATEGORIES) if key in rows]
    together = np.concatenate(codes, 1) if codes else np.zeros((num, 1))
    first = np.unique(together, axis=0, return_index=True)[1]
    if _CONTINUOUS in rows:
        spread = np.linspace(0, num - 1, min(num, _NUM_EXAMPLES)).astype(int)
        first = np.concatenate([first, spread])
    found = {key: torch.from_numpy(values[first]) for key, values in rows.items()}
    found = {k: v.float() if k == _CONTINUOUS else v.long() for k, v in found.items()}
    if not with_library:
        return found
    if model.module.use_size_factor_key:
        sizes = np.asarray(model.adata_manager.get_from_registry("size_factor")).reshape(-1)
    else:
        sizes = _totals(model)
    levels = np.quantile(sizes[sizes > 0], np.linspace(0.02, 0.98, _NUM_LIBRARIES))
    each = {key: value.repeat_interleave(_NUM_LIBRARIES, 0) for key, value in found.items()}
    library = torch.from_numpy(np.tile(levels, len(first))).float()[:, None]
    return {**each, _LIBRARY: library}
