"""Advice on answers that are not trusted: what to do next, as Python calls or options of a command.

Advice names what it suggests in braces, such as {hmc}. `IN_PYTHON` has a Python call for each of
these names; the command line has an option for each. `lazy_verdicts` chooses among the advice of
checks.
"""

IN_PYTHON = {
    "auto": "methods.Auto()",
    "hmc": "methods.HMC()",
    "smc": "methods.TemperedSMC()",
    "large_smc": "methods.TemperedSMC(num_particles=10_000)",
    "mixture": "a richer cross-coder, such as crosscoders.Mixture(8)",
    "seed": "another seed",
}

# Advice on answers by the methods that other advice recommends: which settings to change.
_SETTINGS = {
    "TemperedSMC": "raise num_particles, to 10_000 say, and num_moves",
    "Discrete": "compare it with the answer by {seed}, or observe more elements",
    "Grid": "raise radius and num_checks, or lower tolerance",
}
_ON_DENSITIES = {
    "Auto": "compare it with {large_smc}, try another prior_scale, or write the density in "
    "coordinates in which it is rounder",
    "TemperedSMC": "raise num_particles and num_moves, try another prior_scale, or write the "
    "density in coordinates in which it is rounder",
}
_PLANE = 2  # latent dimensions up to which a grid can integrate what other methods find hard
_IN_PLANE = (
    "integrate it with methods.Grid(radius=100), with a larger radius until the box holds all of it"
)


def last_resort(method: str, density_dim: int | None) -> str:
    """Advice on answers by a method that other advice recommends, so as not to go in circles.

    For other methods it is "".

    Args:
        method: Name of the method that answered.
        density_dim: Size of z if the target is a bare density; None if it is a VAE.
    """
    if density_dim is None or method not in _ON_DENSITIES:
        return _SETTINGS.get(method, "")
    return _ON_DENSITIES[method] if density_dim > _PLANE else _IN_PLANE
