"""The manifest: what a run was asked and what it found, the same for every run with these settings.

It contains no times; those are in the records of the shards and in log.jsonl.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from crosscoding.batch.folder import Folder, read_json, write_json, write_whole
from crosscoding.batch.inputs import Inputs
from crosscoding.batch.model_fingerprint import model_fingerprint
from crosscoding.batch.results import parquet_shards, zarr_shards
from crosscoding.batch.settings import Settings
from crosscoding.batch.worker import Record
from crosscoding.errors import ModelFormatError
from crosscoding.model.vae import VAE
from crosscoding.result.purposes import PURPOSES

_VERSION = 2
_ASKED = ("version", "crosscoding", "model", "source", "settings")
_OF_SHARDS = ("file", "start", "stop", "answered", "answers_sha256", "input")
_SCHEMA_OF = {"parquet": parquet_shards.schema_of, "zarr": zarr_shards.schema_of}


def asked(vae: VAE, inputs: Inputs, settings: Settings) -> dict[str, Any]:
    """The first part of the manifest: the model, source and settings of a run."""
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
    """SHA-256 of the model, source and settings of a run, in hex."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def check_same(folder: Folder, request: dict[str, Any]) -> None:
    """Raise ValueError if a folder contains another run, or something else."""
    if not folder.manifest.exists():
        others = [path.name for path in folder.path.iterdir() if not path.name.startswith(".")]
        if unknown := sorted(
            set(others) - {"shards", "records", "model", "log.jsonl", "rejected.jsonl"}
        ):
            raise ValueError(
                f"expected a new folder, or that of an earlier run, got {folder.path} with "
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
            key = next(key for key in before | now if before.get(key) != now.get(key))
            name = key if part == "settings" else f"{key} of the {part}"
            before, now = before.get(key), now.get(key)
        raise ValueError(
            f"expected {name} as in the run in {folder.path}, {_short(before)}, got {_short(now)}; "
            "choose another folder, or resume with what the run was started with"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def write_manifest(
    folder: Folder, request: dict[str, Any], records: Iterable[Record], *, complete: bool
) -> dict[str, Any]:
    """Write the manifest and the rejected rows; returns the manifest."""
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
