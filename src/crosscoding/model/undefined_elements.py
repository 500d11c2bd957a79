"""Messages about elements whose p(t|z) does not exist, as the decoder outputs NaN, say."""

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from crosscoding.errors import counted
from crosscoding.likelihoods import Likelihood

Name = Callable[[int], str]
"""An element in words, by its place in a flattened datum."""


def element_name(data_shape: Sequence[int], element: int) -> str:
    """An element of a flattened datum, by its index in the data's shape, for messages."""
    index = [int(i) for i in np.unravel_index(element, tuple(data_shape))]
    return f"element {index[0] if len(index) == 1 else tuple(index)}"


def sometimes_lost(likelihood: Likelihood, name: Name, params: Tensor, lost: Tensor) -> str:
    """A warning that some elements have no p(t|z) at some draws from the prior.

    Args:
        likelihood: For flattened data.
        name: Names an element.
        params: The decoder's output for N draws, (N, E, *param_shape).
        lost: Which elements are lost, boolean, (N, E); not all False.
    """
    element = int(lost.sum(0).argmax())
    draw = int(lost[:, element].nonzero()[0, 0])
    others = int(lost.any(0).sum()) - 1
    more = f", as for {counted(others, 'other element')}" if others else ""
    return (
        f"the decoder outputs {likelihood.describe(params[draw], element)} for {name(element)} at "
        f"{int(lost[:, element].sum())} of {len(lost)} draws from the prior{more}; answers do not "
        "depend on it unless it is observed, but at such z it can be neither observed nor "
        "predicted: bound it in the decoder, or check the loaded weights"
    )


def nothing_to_predict(
    likelihood: Likelihood,
    name: Name,
    z: Tensor,
    params: Tensor,
    wrong: Tensor,
    query: int | None = None,
) -> str:
    """Why an element cannot be predicted.

    Args:
        likelihood: For flattened data.
        name: Names an element.
        z: Draws, (S, latent).
        params: The decoder's output for them, (S, E, *param_shape).
        wrong: Which elements have no prediction at which draws, boolean, (S, E).
        query: The query whose draws these are; None: draws from the prior.
    """
    share = wrong.to(z).mean(0)
    element = int(share.argmax())
    draw = int(wrong[:, element].nonzero()[0, 0])
    whose = "" if query is None else f"for query {query} "
    return (
        f"expected {name(element)} to have a prediction, and {whose}it has none at "
        f"{share[element]:.1%} of the draws: at one of norm {z[draw].norm():.3g} the decoder "
        f"outputs {likelihood.describe(params[draw], element)}; bound what overflows in the "
        "decoder. Observed values and log p(x) do not depend on it"
    )
