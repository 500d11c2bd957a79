"""A model's fingerprint, which keeps the answers of different models in different folders."""

from typing import Any

import torch
from torch import Tensor, nn

from crosscoding.model.amortised import Amortised
from crosscoding.model.bound import for_first
from crosscoding.model.files import some_outputs
from crosscoding.model.tried_prior import prior_probes
from crosscoding.model.vae import VAE
from crosscoding.persistence.folder import fingerprint, prefixed

_NUM_OUTPUTS = 8  # per row, to recognise a network by


def model_fingerprint(vae: VAE) -> str:
    """SHA-256 of a model, with its amortised cross-coder, in hex.

    It covers weights, structure, likelihood, prior and table. Rounded outputs are included because
    the code or plain attributes of a user's own network can change while its weights do not.
    """
    tensors, likelihood = vae.likelihood.to_parts()
    tensors = prefixed(tensors, "likelihood")
    networks: dict[str, nn.Module] = {"decoder": vae.own_decoder, "prior": vae.prior}
    like, given = torch.empty(0, dtype=vae.dtype, device=vae.device), for_first(vae).given
    probes = prior_probes(vae.prior, like, given=given)
    with torch.no_grad():
        log_prior = vae.prior.log_prob(probes, given)[:, None]
        outputs = {"decoder": vae.own_print().outputs, "prior": log_prior}
    if vae.amortised is not None:
        networks["amortised"] = vae.amortised.network
        data = vae.data_for_trial()
        mask = torch.ones_like(data, dtype=torch.bool)
        with torch.no_grad():
            outputs["amortised"] = some_outputs(vae.amortised.network(data, mask))
    for name, network in networks.items():
        weights = {k: v for k, v in network.state_dict().items() if isinstance(v, Tensor)}
        tensors |= prefixed(weights, name)
    description = {
        "likelihood": likelihood,
        "latent_dim": vae.latent_dim,
        "networks": {name: str(network) for name, network in networks.items()},
        "outputs": {name: _rounded(output) for name, output in outputs.items()},
        "crosscoder": None if vae.amortised is None else _crosscoder(vae.amortised),
        "table": None if vae.table is None else vae.table.to_json(),
    }
    return fingerprint(tensors, description)


def _crosscoder(amortised: Amortised) -> Any:
    """The family of an amortised cross-coder and, if it was estimated, its coverage of twins."""
    coverage = None if amortised.record is None else amortised.record.coverage
    family = repr(amortised.crosscoder)
    return family if coverage is None else [family, coverage.to_json()]


def _rounded(outputs: Tensor) -> list[int]:
    """A few outputs, rounded to hundredths of the largest.

    They are few and coarse because outputs of two processors, which differ by 2e-6, must be rounded
    to the same numbers.
    """
    few = outputs[:, :: -(-outputs.shape[1] // _NUM_OUTPUTS)].double()
    few = torch.where(few.isfinite(), few, 0.0).cpu()
    return (100 * few / few.abs().max().clamp_min(1e-300)).round().long().flatten().tolist()
