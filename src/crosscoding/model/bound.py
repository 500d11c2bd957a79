"""Decoders that take covariates, bound to those of some queries: then they take only z.

The VAE of a bound decoder takes points (*sample, B, latent), one column for each of the B queries,
or any number of points if B = 1. All methods use it like any other VAE.
"""

import copy
import inspect
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from crosscoding.covariates import (
    Covariates,
    batch_shape,
    check_covariates,
    distinct,
    flattened,
    mapped,
    number_of_rows,
    tensors,
    tiled,
)
from crosscoding.errors import first_line
from crosscoding.evidence import as_tensor

Model = TypeVar("Model", bound=Any)
"""A `VAE`."""

WITHOUT = "the model's decoder takes only z; VAE(..., given=examples) makes it take covariates"
MOST_KNOWN = 64  # distinct examples, each with decoded points of its own
_MOST_TRIED = 256  # rows of covariates to try one by one, to name the one that a decoder rejects


def kept_examples(given: Covariates, device: torch.device) -> Covariates:
    """The first distinct rows of examples, at most `MOST_KNOWN`; None if there are none.

    Raises:
        TypeError: They are neither tensors nor arrays, or empty.
        ValueError: They have no rows or unequal numbers of rows, are not finite, or are on another
            device.
    """
    if given is None:
        return None
    given = mapped(lambda part: as_tensor(part, "covariates"), given)
    if not tensors(given):
        raise TypeError("expected examples of covariates, at least one tensor, got nothing")
    sizes = {tensor.shape[:1] for tensor in tensors(given)}
    if sizes & {(), (0,)} or len(sizes) > 1:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors(given))
        raise ValueError(
            "expected examples of covariates with one row each, (N, *covariates) with N >= 1, got "
            f"shape {shapes}"
        )
    check_covariates(given, device)
    rows = distinct(mapped(Tensor.detach, given))[0]
    return mapped(lambda tensor: tensor[:MOST_KNOWN].clone(), rows)


def first_row(examples: Covariates) -> Covariates:
    """The first of the examples, as one row."""
    return mapped(lambda tensor: tensor[:1], examples)


class Bound(nn.Module):
    """A network bound to the covariates of B queries, which the rows of its input take in turn."""

    def __init__(self, network: nn.Module, rows: Covariates) -> None:
        super().__init__()
        self.network, self.rows = network, rows

    def forward(self, z: Tensor) -> Any:
        return self.network(z, tiled(self.rows, len(z)))


class WithoutCovariates(nn.Module):
    """A decoder of z alone that ignores covariates, on which only the prior depends."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor, given: Covariates) -> Any:
        return self.network(z)


def takes_covariates(network: nn.Module) -> bool:
    """Whether a network can be called with a second argument, according to its signature."""
    try:
        signature = inspect.signature(network.forward)
    except (TypeError, ValueError):  # of compiled code
        return True
    try:
        signature.bind(None, None)
    except TypeError:
        return False
    return True


def bound(vae: Model, rows: Covariates) -> Model:
    """The model for queries with these covariates, B rows."""
    chosen = copy.copy(vae)
    chosen.decoder, chosen.given = Bound(vae.decoder, rows).eval(), rows
    if vae.head is not None:
        chosen.head = replace(vae.head, trunk=Bound(vae.head.trunk, rows).eval())
    chosen.unbound, chosen.kept = vae, {k: vae.kept[k] for k in ("cost",) if k in vae.kept}
    return chosen


def free(vae: Model) -> Model:
    """The model before it was bound to covariates; itself if it is not bound."""
    return vae if vae.given is None else vae.unbound


def selected(vae: Model, index: Tensor | slice) -> Model:
    """The model for some of its queries; itself if it is not bound, or bound to one row for all."""
    if vae.given is None or number_of_rows(vae.given) == 1:
        return vae
    return bound(vae.unbound, mapped(lambda tensor: tensor[index], vae.given))


def bound_for(vae: Model, given: Covariates, shape: torch.Size) -> Model:
    """The model for covariates that broadcast to points (*shape, latent).

    Raises:
        TypeError: They are neither tensors nor arrays.
        ValueError: They do not fit, are missing, or the decoder takes none.
    """
    if vae.examples is None or (given is None and vae.given is not None):
        if given is not None:
            raise ValueError(f"expected no covariates, as {WITHOUT}, got some")
        return vae
    if given is None:
        raise ValueError(
            "expected covariates, as the decoder takes some beside z: pass given=..., as in "
            "decode(z, given) or Evidence(values, mask, given=...)"
        )
    given = mapped(lambda part: as_tensor(part, "covariates"), given)
    batch = batch_shape(given, vae.examples)
    check_covariates(given, vae.device)
    try:
        torch.broadcast_shapes(batch, shape)
        rows = mapped(lambda t: t.expand((*shape, *t.shape[len(batch) :])), given)
    except RuntimeError as error:
        raise ValueError(
            f"expected covariates with batch dimensions that broadcast to {tuple(shape)}, got "
            f"{tuple(batch)}"
        ) from error
    return bound(vae, flattened(rows, len(shape)))


def checked_rows(vae: Any, given: Covariates, shape: torch.Size) -> Covariates:
    """Covariates of queries as rows; None for a decoder that takes none.

    Args:
        vae: The model.
        given: Covariates, with batch dimensions (*batch).
        shape: (*batch).
    Raises:
        ValueError: They are missing, superfluous, or do not fit the model or the batch.
    """
    if vae.examples is None:
        if given is not None:
            raise ValueError(f"expected evidence without covariates, as {WITHOUT}")
        return None
    if given is None:
        raise ValueError(
            "expected evidence with covariates, as the decoder takes some beside z: "
            "Evidence(values, mask, given=...)"
        )
    batch = batch_shape(given, vae.examples)
    if batch != shape:
        raise ValueError(
            f"expected covariates of each query, with batch shape {tuple(shape)}, got "
            f"{tuple(batch)}"
        )
    check_covariates(given, vae.device)
    return flattened(given, len(shape))


@torch.no_grad()
def try_rows(vae: Any, kinds: Tensor) -> None:
    """Raise ValueError if the decoder fails for whole-number covariates that no example has.

    Args:
        vae: A model bound to covariates.
        kinds: Which example each row of them equals, (B,); −1 if none.
    """
    new = mapped(lambda tensor: tensor[kinds < 0], vae.given)
    if (kinds >= 0).all() or all(tensor.is_floating_point() for tensor in tensors(new)):
        return
    rows = distinct(new)[0]
    found, where = _error_of(vae, rows), ""
    if not found:
        return
    for index in range(min(number_of_rows(rows), _MOST_TRIED)):
        one = mapped(lambda tensor, at=index: tensor[at : at + 1], rows)
        if own := _error_of(vae, one):
            where = " for " + ", ".join(str(t[0].tolist())[:80] for t in tensors(one))
            found = own
            break
    raise ValueError(f"expected covariates that the decoder takes, but it failed{where}: {found}")


def _error_of(vae: Any, rows: Covariates) -> str:
    """What a decoder raises for covariates; "" if it takes them."""
    z = torch.zeros(number_of_rows(rows), vae.latent_dim, dtype=vae.dtype, device=vae.device)
    try:
        bound(vae.unbound, rows).decode_flat(z)
    except Exception as error:  # a user's module may raise anything
        return first_line(error) or type(error).__name__
    return ""


def for_first(vae: Model) -> Model:
    """The model for its first example; itself if it has none, or is bound already."""
    is_free = vae.examples is not None and vae.given is None
    return bound(vae, first_row(vae.examples)) if is_free else vae


def known(vae: Model, place: int) -> Model:
    """The model bound to one of its examples; it is kept, with all that is computed from it."""
    name = f"given example {place}"
    if name not in vae.kept:
        vae.kept[name] = bound(vae, mapped(lambda t: t[place : place + 1], vae.examples))
    return vae.kept[name]
