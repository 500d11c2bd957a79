"""p(z|x) as pictures: draws, over contours of the exact density in 2-d or a curve in 1-d."""

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from crosscoding.plots import Panels, draw_curve, draw_plane, on_grid, panels_on, plain, window
from crosscoding.result.look import Look
from crosscoding.result.views import View, array

_SIZE = (3.2, 3.3)
_NUM_DRAWS = 500
_MOST_OPERATIONS = 2e10  # multiply-adds for the density of a query: about a second
_MOST_SIDE, _LEAST_SIDE = 160, 24  # points of a grid, in each direction
_POINTS = 400  # of a line
_AT_ONCE = 1000


@torch.no_grad()
def draw_latent(view: View, look: Look, given: Any) -> Panels:
    """A panel for each query.

    Raises:
        ValueError: There are no such dimensions.
    """
    z = view.posterior._latents(view.latents(_NUM_DRAWS))
    dim = z.shape[-1]
    dims = (0, 0) if dim == 1 else _checked(look.dims, dim)
    panels = panels_on(given, (1, len(view.names)), _SIZE)
    for query, (axes, title) in enumerate(zip(panels[0], view.titles, strict=True)):
        own = z[:, query]
        if dim == 1:
            line = _line(own[:, 0])
            curve = _density(view.posterior, query, line)
            draw_curve(axes, array(line), curve, array(own[:, 0]))
        else:
            contours = _contours(view.posterior, query, own, dims) if dim == 2 else {}
            draw_plane(axes, array(own[:, list(dims)]), dims, **contours)
        axes.set_title(plain(title), fontsize=10)
    return panels


def _checked(dims: Sequence[int], dim: int) -> tuple[int, int]:
    """Two different dimensions of z."""
    wanted = list(dims)
    right = all(isinstance(d, int) and not isinstance(d, bool) and 0 <= d < dim for d in wanted)
    if len(wanted) != 2 or not right or wanted[0] == wanted[1]:
        raise ValueError(
            f"expected dims as two different numbers from 0 to {dim - 1}, got {tuple(wanted)}"
        )
    return wanted[0], wanted[1]


def _contours(posterior: Any, query: int, z: Tensor, dims: tuple[int, int]) -> dict[str, Any]:
    """A grid and the density on it, as `draw_plane` takes them; none where it is not known."""
    operations = 1.0 if posterior.target is None else posterior.target.operations
    side = int(min((_MOST_OPERATIONS / operations) ** 0.5, _MOST_SIDE))
    if side < _LEAST_SIDE:
        return {}
    grid = window(z[:, list(dims)], side)
    own = posterior._of([query])
    found = on_grid(lambda points: _log_density(own, points[:, list(dims)]), grid)
    if not found.isfinite().any():
        return {}
    return {"grid": array(grid), "log_density": array(found)}


def _line(z: Tensor) -> Tensor:
    """Points over the range of draws (S,), with a margin, (N,)."""
    low, high = z.amin(), z.amax()
    margin = 0.25 * (high - low).clamp_min(1e-6)
    return torch.linspace(0, 1, _POINTS).to(z) * (high - low + 2 * margin) + low - margin


def _density(posterior: Any, query: int, line: Tensor) -> NDArray[Any] | None:
    """p(z|x) at points (N,) that cover it, (N,); None if it is not known."""
    log_density = _log_density(posterior._of([query]), line[:, None])
    if not log_density.isfinite().any():
        return None
    values = (log_density - log_density.max()).exp()
    return array(values / torch.trapezoid(values, line))


def _log_density(posterior: Any, points: Tensor) -> Tensor:
    """log p(z|x) of the only query at points (N, latent), up to a constant, (N,).

    If the answer has no model it is log q(z|x), or −∞ if there are only draws.
    """
    pieces = [_log_shape(posterior, own[:, None])[:, 0] for own in points.split(_AT_ONCE)]
    return torch.cat(pieces).nan_to_num(nan=-torch.inf)


def _log_shape(posterior: Any, z: Tensor) -> Tensor:
    """The same at points (N, 1, latent), (N, 1)."""
    target = posterior._flat_target
    if target is None:
        try:
            return posterior.log_prob(z)
        except NotImplementedError:
            return torch.full_like(z[..., 0], -torch.inf)
    if not posterior._in_noise:
        return target.log_joint(z, checked=False)
    noise, ladj = target.noise_and_ladj(z)
    reached = noise.isfinite().all(-1)  # the prior reaches no other z
    noise = torch.where(reached[..., None], noise, 0.0)
    return torch.where(reached, target.log_joint(noise, checked=False) + ladj, -torch.inf)
