"""The paper's claims that are judged, in the order of the page."""

from crosscoding.experiments.claims import comparisons, digits, faces, families
from crosscoding.experiments.claims.claim import Claim

CLAIMS: tuple[Claim, ...] = (
    *digits.CLAIMS,
    *faces.CLAIMS,
    *comparisons.CLAIMS,
    *families.CLAIMS,
)
