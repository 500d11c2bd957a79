"""Evidence as tensors and JSON, as saved in a posterior's folder."""

from torch import Tensor

from crosscoding.evidence import Evidence
from crosscoding.linear_evidence import LinearEvidence

EvidenceParts = tuple[dict[str, Tensor], list[bool]]
"""Tensors by name, and for each of the sums whether queries share the operator."""


def evidence_to_parts(evidence: Evidence) -> EvidenceParts:
    """The parts from which `evidence_from_parts` restores the evidence."""
    tensors = {"values": evidence.values, "mask": evidence.exact}
    if evidence.uncertain is not None:
        own = vars(evidence.uncertain)
        tensors |= {name: part for name, part in own.items() if part is not None}
    for index, part in enumerate(evidence.sums):
        tensors[f"sums.{index}.operator"] = part.operator
        tensors[f"sums.{index}.values"] = part.values
        tensors[f"sums.{index}.noise"] = part.noise
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return tensors, [part.is_shared for part in evidence.sums]


def evidence_from_parts(parts: EvidenceParts) -> Evidence:
    """The evidence that `evidence_to_parts` described.

    Raises:
        KeyError, TypeError, ValueError: The parts do not belong together.
    """
    tensors, are_shared = parts
    evidence = _of_elements(tensors)
    sums = tuple(
        LinearEvidence(
            tensors[f"sums.{index}.operator"],
            tensors[f"sums.{index}.values"],
            tensors[f"sums.{index}.noise"],
            bool(is_shared),
        )
        for index, is_shared in enumerate(are_shared)
    )
    return evidence.with_sums(sums)


def _of_elements(tensors: dict[str, Tensor]) -> Evidence:
    """What is known of single elements."""
    if "low" not in tensors:
        return Evidence(tensors["values"], tensors["mask"])
    known = Evidence.interval(tensors["low"], tensors["high"])
    if "allowed" in tensors:
        known = known & Evidence.one_of(tensors["allowed"])
    noise = tensors["noise"]
    return known & Evidence(tensors["values"], tensors["mask"] | (noise > 0), noise=noise)
