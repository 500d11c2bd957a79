"""How evidence is displayed: how many elements are known in each way."""

from typing import Any

import torch
from torch import Tensor

from crosscoding import covariates
from crosscoding.display import Description, Displayed
from crosscoding.errors import counted
from crosscoding.isolation import isolated_class
from crosscoding.linear_evidence import LinearEvidence
from crosscoding.uncertain_values import UncertainValues


@isolated_class
class EvidenceWords(Displayed):
    """The displays of `Evidence`, which documents the attributes."""

    values: Tensor
    mask: Tensor
    exact: Tensor
    uncertain: UncertainValues | None
    sums: tuple[LinearEvidence, ...]
    given: Any

    def __repr__(self) -> str:
        share = self.mask.to(torch.float32).mean().item() if self.mask.numel() else 0.0
        more = [
            f", {counted(num, name)}" if name != "noisy" else f", {num} noisy"
            for name, num in self._counts().items()
            if num
        ]
        start = f"Evidence(shape={tuple(self.values.shape)}, {share:.1%} observed"
        return f"{start}{''.join(more)})"

    def _counts(self) -> dict[str, int]:
        """How many elements have noise, an interval or a set, and how many sums each query has."""
        known = self.uncertain
        return {
            "noisy": 0 if known is None else int((known.noise > 0).sum()),
            "interval": 0 if known is None else int(known.is_bounded.sum()),
            "set": 0 if known is None else int(known.has_set.sum()),
            "sum": sum(part.values.shape[-1] for part in self.sums),
        }

    def _described(self, *, pictures: bool) -> Description:
        counts, size = self._counts(), max(self.mask.numel(), 1)

        def of_all(num: int) -> str:
            return f"{num:,} of {self.mask.numel():,} elements ({num / size:.1%})"

        numbers = {
            "known exactly": int(self.exact.sum()),
            "with noise": counts["noisy"],
            "in an interval": counts["interval"],
            "in a set": counts["set"],
            "unknown": int((~self.mask).sum()),
        }
        facts = [("shape", str(tuple(self.values.shape)))]
        facts += [
            (name, of_all(num)) for name, num in numbers.items() if num or name == "known exactly"
        ]
        if counts["sum"]:
            facts.append(("sums", f"{counts['sum']} a query"))
        if self.given is not None:
            shapes = [str(tuple(own.shape)) for own in covariates.tensors(self.given)]
            facts.append(("covariates", ", ".join(shapes)))
        return Description("Evidence", tuple(facts))
