"""The manifest: what a run was asked and what it found, the same for every run with these settings.

It has no times in it; those are in the records of the shards and in log.jsonl.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from crosscoding.batch.folder import Folder, read_json, write_json, write_whole
from crosscoding.batch.inputs import Inputs
from crosscoding.batch.results import parquet_shards, zarr_shards
from crosscoding.batch.settings import Settings
from crosscoding.batch.worker import Record
from crosscoding.errors import ModelFormatError
from crosscoding.model.amortised import Amortised
from crosscoding.model.bound import for_first
from crosscoding.model.files import some_outputs
from crosscoding.model.tried_prior import prior_probes
from crosscoding.model.vae import VAE
from crosscoding.persistence.folder import fingerprint, prefixed
from crosscoding.result.purposes import PURPOSES

_VERSION = 2
_NUM_OUTPUTS = 8  # of each row, to recognise a network by
_ASKED = ("version", "crosscoding", "model", "source", "settings")
_OF_SHARDS = ("file", "start", "stop", "answered", "answers_sha256", "input")
_SCHEMA_OF = {"parquet": parquet_shards.schema_of, "zarr": zarr_shards.schema_of}


def model_fingerprint(vae: VAE) -> str:
    """SHA-256 of a model, with its amortised cross-coder, in hex.

    It covers weights, structure, likelihood, prior and table, and rounded outputs, as the code or
    the plain attributes of a network of the user's own may have changed.
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
    """The family of an amortised cross-coder and, if any, what twins say of its proposals."""
    coverage = None if amortised.record is None else amortised.record.coverage
    family = repr(amortised.crosscoder)
    return family if coverage is None else [family, coverage.to_json()]


def _rounded(outputs: Tensor) -> list[int]:
    """A few outputs in hundredths of the largest.

    So few and so coarse, as those of two processors, 2e-6 apart, must not be rounded differently.
    """
    few = outputs[:, :: -(-outputs.shape[1] // _NUM_OUTPUTS)].double()
    few = torch.where(few.isfinite(), few, 0.0).cpu()
    return (100 * few / few.abs().max().clamp_min(1e-300)).round().long().flatten().tolist()


def asked(vae: VAE, inputs: Inputs, settings: Settings) -> dict[str, Any]:
    """The first part of the manifest: what a run is about."""
    import crosscoding

    model = {
        "fingerprint": model_fingerprint(vae),
        "latent_dim": vae.latent_dim,
        "data_shape": list(vae.data_shape),
        "columns": None if vae.table is None else vae.table.to_json(),
    }
    return {
        "version": _VERSION,
        "crosscoding": crosscoding.__version__,
        "model": model,
        "source": inputs.describe(),
        "settings": settings.to_json(),
    }


def run_digest(request: dict[str, Any]) -> str:
    """SHA-256 of what a run is about, in hex."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def check_same(folder: Folder, request: dict[str, Any]) -> None:
    """Raise ValueError if a folder has another run, or something else, in it."""
    if not folder.manifest.exists():
        others = [path.name for path in folder.path.iterdir() if not path.name.startswith(".")]
        if unknown := sorted(
            set(others) - {"shards", "records", "model", "log.jsonl", "rejected.jsonl"}
        ):
            raise ValueError(
                f"expected a new folder, or one of an earlier run, got {folder.path} with "
                f"{unknown[0]} in it"
            )
        return
    try:
        found = read_json(folder.manifest)
    except ModelFormatError as error:
        raise ValueError(f"{error}; move {folder.path} away, or choose another folder") from None
    if not isinstance(found, dict):
        raise ValueError(
            f"expected a manifest in {folder.manifest}, got {_short(found)}; move {folder.path} "
            "away, or choose another folder"
        )
    for part in _ASKED:
        before, now = found.get(part), request[part]
        if before == now:
            continue
        name = f"the {part}"
        if isinstance(before, dict) and isinstance(now, dict):
            key = next(key for key in now if before.get(key) != now[key])
            name = key if part == "settings" else f"{key} of the {part}"
            before, now = before.get(key), now[key]
        raise ValueError(
            f"expected {name} as in the run in {folder.path}, {_short(before)}, got {_short(now)}; "
            "choose another folder, or give what it was begun with"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def write_manifest(
    folder: Folder, request: dict[str, Any], records: Iterable[Record], *, complete: bool
) -> dict[str, Any]:
    """Write the manifest, and the rejected rows, and return the former."""
    shards, rejected = [], []
    verdicts = {purpose: Counter[str]() for purpose in PURPOSES}
    for record in records:
        shards.append({name: getattr(record, name) for name in _OF_SHARDS})
        shards[-1]["rejected"] = len(record.rejected)
        rejected += [{"row": row, "reason": reason} for row, reason in record.rejected]
        for purpose, own in record.verdicts.items():
            verdicts[purpose].update(own)
    schema = None
    if shards:
        schema = _SCHEMA_OF[request["settings"]["format"]](folder.shard_named(shards[0]["file"]))
    manifest = {
        **request,
        "schema": schema,
        "complete": complete,
        "answered": sum(shard["answered"] for shard in shards),
        "rejected": len(rejected),
        "verdicts": {purpose: dict(sorted(own.items())) for purpose, own in verdicts.items()},
        "shards": shards,
    }
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rejected)
    write_whole(folder.rejected, lines.encode())
    write_json(folder.manifest, manifest)
    return manifest
