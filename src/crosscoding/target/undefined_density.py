"""Why log p(x|z) is NaN or −inf at a z, in words: what the decoder outputs for which element."""

import torch
from torch import Tensor

from crosscoding.model.vae import VAE
from crosscoding.target.partial_evidence import PartialEvidence
from crosscoding.uncertain_values import UncertainValues


@torch.no_grad()
def why_undefined(
    vae: VAE,
    z: Tensor,
    values: Tensor,
    mask: Tensor,
    uncertain: UncertainValues | None,
    partial: PartialEvidence | None,
) -> str:
    """Why log p(x|z) of one query is NaN or −inf at a z.

    Args:
        vae: The model, as a function of z.
        z: The point, shape (latent,).
        values: The query's values, flattened, (E,).
        mask: Which are known exactly, (E,).
        uncertain: What is known of the others, (E,), if anything is.
        partial: What the evidence other than exact values adds to log p(x|z), for this query alone.
    """
    if not z.isfinite().all():
        return "the method moved to a z that is NaN or infinite"
    likelihood, params = vae.flat_likelihood, vae.decode_flat(z)
    log_probs = likelihood.log_prob(likelihood.only(params[None], mask[None]), values)[0]
    undefined = mask & log_probs.isnan()
    found = (undefined if undefined.any() else mask & log_probs.isinf()).nonzero()
    where = f"at a z of norm {z.norm():.3g} the decoder outputs"
    if not len(found) and partial is not None:
        place = partial.impossible(params[None])
        found = mask.new_tensor([[place]], dtype=torch.long) if place >= 0 else found
    if not len(found):
        return f"{where} NaN or infinity, or its derivative is NaN"
    element = int(found[0, 0])
    known = "" if undefined.any() else _what_is_known(values, mask, uncertain, element)
    return f"{where} {likelihood.describe(params, element)} for {vae.element_name(element)}{known}"


def _what_is_known(
    values: Tensor, mask: Tensor, uncertain: UncertainValues | None, element: int
) -> str:
    """What the evidence says of an element, as a clause."""
    if uncertain is not None and uncertain.is_bounded[element]:
        low, high = uncertain.low[element].item(), uncertain.high[element].item()
        return f", which lies between {low:.6g} and {high:.6g}"
    if mask[element] or (uncertain is not None and uncertain.noise[element] > 0):
        return f", whose value is {values[element].item():.6g}"
    return ", for which a sum or a set is known"
