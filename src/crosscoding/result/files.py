"""A posterior as a folder of safetensors and JSON, with its evidence and, if possible, its model.

The decoder is saved if it is a stack of common layers. A few of its outputs are always saved, so
that the model can be recognised when it is passed to `Posterior.load`.
"""

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from crosscoding import covariates
from crosscoding.columns import Table
from crosscoding.errors import ModelFormatError
from crosscoding.model.bound import selected
from crosscoding.model.files import some_outputs
from crosscoding.model.recognition import same_output
from crosscoding.model.vae import VAE
from crosscoding.persistence.folder import Contents, prefixed, read_folder, under, write_folder
from crosscoding.persistence.layers import describe
from crosscoding.result.findings import Findings
from crosscoding.result.saved_evidence import evidence_from_parts, evidence_to_parts
from crosscoding.target.base import Target
from crosscoding.target.discrete_target import target_of
from crosscoding.target.vae_target import VAETarget


@dataclass(frozen=True, eq=False)
class SavedPosterior:
    """What a posterior is made of, by the names of `Posterior`'s arguments."""

    findings: Findings
    target: Target | None
    batch_shape: torch.Size
    method: str
    generator: Generator
    seconds: float
    in_noise: bool

    def write(self, folder: Path) -> None:
        """Write everything or nothing; warn if the decoder cannot be saved."""
        findings_tensors, description = self.findings.to_parts()
        tensors = prefixed(findings_tensors, "findings")
        tensors["generator"] = self.generator.get_state()
        description |= {
            "method": self.method,
            "batch_shape": list(self.batch_shape),
            "seconds": self.seconds,
            "has_evidence": isinstance(self.target, VAETarget),
            "in_noise": self.in_noise,
            "vae": None,
        }
        if isinstance(self.target, VAETarget):
            evidence, vae = self.target.evidence, self.target.model
            own, description["sums"] = evidence_to_parts(evidence)
            tensors |= prefixed(own, "evidence")
            if evidence.given is not None:
                given, description["given"] = covariates.to_parts(evidence.given)
                tensors |= prefixed(given, "given")
            tensors["fingerprint"] = _fingerprint(self.target, self.findings.draws)
            description["table"] = None if vae.table is None else vae.table.to_json()
            vae_parts = vae.to_parts()
            settings, description["likelihood"] = vae.likelihood.to_parts()
            tensors |= prefixed(settings, "likelihood")
            if vae_parts is not None:
                tensors |= prefixed(vae_parts[0], "vae")
                description["vae"] = vae_parts[1]
            else:
                warnings.warn(
                    f"the {_not_saved(vae)} is not a stack of common layers, so it is not saved "
                    "with the posterior; pass the model when loading: "
                    "Posterior.load(path, vae=...)",
                    stacklevel=4,
                )
        write_folder(folder, "posterior", (tensors, description))

    @staticmethod
    def read(folder: Path, vae: VAE | None) -> "SavedPosterior":
        """Read what `write` wrote; raises what `Posterior.load` raises."""
        tensors, description = read_folder(folder, "posterior")
        findings = Findings.from_parts((under(tensors, "findings"), description))
        if vae is None and description.get("vae") is not None:
            vae = VAE.from_parts((under(tensors, "vae"), description["vae"]))
        evidence, generator = None, Generator()
        try:
            if description["has_evidence"]:
                given = covariates.from_parts(under(tensors, "given"), description.get("given"))
                own = under(tensors, "evidence"), description.get("sums", [])
                evidence = evidence_from_parts(own).with_given(given)
            generator.set_state(tensors["generator"])
            batch_shape = torch.Size(description["batch_shape"])
            method, seconds = str(description["method"]), float(description["seconds"])
            in_noise = bool(description.get("in_noise", False))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelFormatError(f"the posterior in {folder} is damaged: {error!r}") from error
        if batch_shape.numel() != len(findings.ess):
            raise ModelFormatError(
                f"expected {batch_shape.numel()} queries in {folder}, got {len(findings.ess)}"
            )
        target = None
        if vae is not None and vae.table is None and description.get("table") is not None:
            vae = copy.copy(vae)
            vae.table = Table.from_json(description["table"])
        if vae is not None and evidence is not None:
            try:
                target = target_of(vae, evidence)
            except ValueError as error:
                raise ModelFormatError(
                    f"expected the model that the posterior in {folder} belongs to: {error}"
                ) from error
            _check_fits(target, (tensors, description), batch_shape, findings.draws, folder)
        return SavedPosterior(findings, target, batch_shape, method, generator, seconds, in_noise)


def _check_fits(
    target: VAETarget, saved: Contents, batch_shape: torch.Size, draws: Tensor, folder: Path
) -> None:
    """Raise ModelFormatError unless evidence, draws and saved outputs match this model."""
    tensors, description = saved
    fits = target.batch_shape == batch_shape and target.latent_dim == draws.shape[-1]
    if not fits or target.vae.dtype != draws.dtype:
        raise ModelFormatError(f"the evidence, model and draws in {folder} do not fit together")
    here, given = _fingerprint(target, draws), tensors.get("fingerprint")
    if given is None or (here.shape, here.dtype) != (given.shape, given.dtype):
        raise ModelFormatError(f"expected saved outputs of the model in {folder}, got {given}")
    if not same_output(here, given):
        raise ModelFormatError(
            f"expected the model that the posterior in {folder} belongs to, got another"
        )
    settings, named = target.vae.likelihood.to_parts()
    kept = under(tensors, "likelihood")
    same = named == description.get("likelihood") and settings.keys() == kept.keys()
    if not same or not all(torch.equal(settings[name].cpu(), kept[name]) for name in kept):
        raise ModelFormatError(
            f"expected the likelihood that the posterior in {folder} belongs to, "
            f"{description.get('likelihood')}, got {target.vae.likelihood}"
        )


@torch.no_grad()
def _fingerprint(target: VAETarget, draws: Tensor) -> Tensor:
    """Some of the decoder's output at the first draws, to recognise the model by."""
    few = torch.arange(min(4, target.num_queries), device=draws.device)
    vae = selected(target.vae, few)
    return some_outputs(vae.decode_flat(draws[0, :4]))


def _not_saved(vae: VAE) -> str:
    """Which network of a model keeps it from being saved."""
    return "decoder" if describe(vae.own_decoder) is None else "prior"
