"""All claims of the paper that are judged, in the order of the page."""

from crosscoding.experiments import claims_of_digits, claims_of_faces, claims_of_others
from crosscoding.experiments.claim import Claim

CLAIMS: tuple[Claim, ...] = (
    *claims_of_digits.CLAIMS,
    *claims_of_faces.CLAIMS,
    *claims_of_others.CLAIMS,
)
