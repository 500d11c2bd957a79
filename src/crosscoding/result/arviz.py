"""Answers as ArviZ objects, for its plots and diagnostics.

Source: the InferenceData schema of ArviZ. Differs in: nothing. `z` has the dimensions (chain, draw,
batch_0, …, latent), with integer coordinates.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crosscoding.evidence import Evidence
from crosscoding.result.findings import Findings

_Variables = dict[str, tuple[list[str], Tensor]]


def to_arviz(
    findings: Findings,
    evidence: Evidence | None,
    batch_shape: torch.Size,
    attributes: Mapping[str, str | float],
) -> Any:
    """Draws, weights and evidence as InferenceData (ArviZ 0.x) or DataTree (ArviZ 1.x).

    Args:
        findings: Those of the flat batch.
        evidence: Values of shape (*batch, *data); None leaves out the group of observed data.
        batch_shape: Shape of the batch of queries.
        attributes: Attributes of the result and of its group `posterior`.
    Raises:
        ImportError: ArviZ is not installed.
    """
    arviz, xarray = _arviz_and_xarray()
    named = dict(attributes) | {"inference_library": "crosscoding"}
    groups = {
        name: _dataset(xarray, variables, named if name == "posterior" else {})
        for name, variables in _groups(findings, evidence, batch_shape).items()
    }
    inference_data = vars(arviz).get("InferenceData")  # getattr on 1.x would make one up and warn
    if inference_data is not None:
        return inference_data(attrs=named, **groups)
    return xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=named), **groups})


def _arviz_and_xarray() -> tuple[Any, Any]:
    try:
        return import_module("arviz"), import_module("xarray")
    except ImportError as error:
        raise ImportError(
            "expected ArviZ to be installed; install it with: pip install 'crosscoding[arviz]'"
        ) from error


def _groups(
    findings: Findings, evidence: Evidence | None, batch_shape: torch.Size
) -> dict[str, _Variables]:
    """The variables of each group, with the names of their dimensions."""
    batch = [f"batch_{i}" for i in range(len(batch_shape))]
    by_chain = (findings.num_chains, len(findings.draws) // findings.num_chains, *batch_shape)
    z = findings.draws.reshape(*by_chain, findings.draws.shape[-1])
    groups: dict[str, _Variables] = {"posterior": {"z": (["chain", "draw", *batch, "latent"], z)}}
    if findings.log_weights is not None:
        log_weights = findings.log_weights.reshape(by_chain)
        groups["sample_stats"] = {"log_weights": (["chain", "draw", *batch], log_weights)}
    if evidence is not None:
        num_data_dims = evidence.values.ndim - len(batch)
        dims = batch + [f"data_{i}" for i in range(num_data_dims)]
        known = evidence.has_value
        values = torch.where(known, evidence.values, torch.nan)
        groups["observed_data"] = {"evidence": (dims, values), "mask": (dims, known)}
    return groups


def _dataset(xarray: Any, variables: _Variables, attributes: Mapping[str, str | float]) -> Any:
    sizes = {
        dim: size
        for dims, values in variables.values()
        for dim, size in zip(dims, values.shape, strict=True)
    }
    return xarray.Dataset(
        {name: (dims, v.detach().cpu().numpy()) for name, (dims, v) in variables.items()},
        coords={dim: np.arange(size) for dim, size in sizes.items()},
        attrs=attributes,
    )
