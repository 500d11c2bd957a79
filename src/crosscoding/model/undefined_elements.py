"""What is told of elements for which a decoder outputs nothing that p(t|z) exists for."""

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from crosscoding.likelihoods import Likelihood

Name = Callable[[int], str]
"""An element in words, by its place in a datum laid out flat."""


def element_name(data_shape: Sequence[int], element: int) -> str:
    """An element of a flattened datum, by its index in the data's shape, for messages."""
    index = [int(i) for i in np.unravel_index(element, tuple(data_shape))]
    return f"element {index[0] if len(index) == 1 else tuple(index)}"


def sometimes_lost(likelihood: Likelihood, name: Name, params: Tensor, lost: Tensor) -> str:
    """A warning that some elements are NaN or infinite at some draws from the prior.

    Args:
        likelihood: For data laid out flat.
        name: What elements are called.
        params: The decoder's output for some draws, (N, E, *param_shape).
        lost: Which elements are lost, boolean, (N, E), some of them.
    """
    element = int(lost.sum(0).argmax())
    draw = int(lost[:, element].nonzero()[0, 0])
    others = int(lost.any(0).sum()) - 1
    more = f", beside {others} more elements" if others else ""
    return (
        f"the decoder outputs {likelihood.describe(params[draw], element)} for {name(element)} at "
        f"{int(lost[:, element].sum())} of {len(lost)} draws from the prior{more}; answers do not "
        "depend on it where it is not observed, but at such z it can be neither observed nor "
        "predicted: bound it in the decoder, or check the weights that were loaded"
    )


def nothing_to_predict(
    likelihood: Likelihood,
    name: Name,
    z: Tensor,
    params: Tensor,
    wrong: Tensor,
    query: int | None = None,
) -> str:
    """What keeps an element from being predicted.

    Args:
        likelihood: For data laid out flat.
        name: What elements are called.
        z: Draws, (S, latent).
        params: The decoder's output for them, (S, E, *param_shape).
        wrong: At which draws there is no prediction of which element, boolean, (S, E).
        query: Whose draws these are; None: the prior's.
    """
    share = wrong.to(z).mean(0)
    element = int(share.argmax())
    draw = int(wrong[:, element].nonzero()[0, 0])
    whose = "" if query is None else f"for query {query} "
    return (
        f"expected {name(element)} to have a prediction, and {whose}it has none at "
        f"{share[element]:.1%} of the draws: at one of norm {z[draw].norm():.3g} the decoder "
        f"outputs {likelihood.describe(params[draw], element)}; bound what overflows in the decoder. "
        "What is observed, and log p(x), do not depend on it"
    )
