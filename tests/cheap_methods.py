"""Every method of the registry, with settings that take a fraction of a second."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from crosscoding.crosscoders import FCN, Gaussian, InverseAutoregressive, Mixture, Planar, Spline
from crosscoding.methods import METHODS, Method, Variational


def cheap_settings(method: type[Method]) -> dict:
    """What the method's own test module sets `CHEAP` to.

    The module is read and not run: its tests stay with pytest, and it may import this one.
    """
    name = f"test_{method.__module__.rpartition('.')[2]}.py"
    path = Path(__file__).parent / "methods" / name
    for statement in ast.parse(path.read_text("utf-8") if path.exists() else "").body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "CHEAP":
            return ast.literal_eval(statement.value)
    raise LookupError(
        f"expected tests/methods/{name} to set CHEAP, the settings with which {method.__name__} "
        "takes a fraction of a second, such as CHEAP = {'num_draws': 60}, or {} for the defaults"
    )


CHEAP = {method: cheap_settings(method) for method in {type(e.method) for e in METHODS.values()}}
SMALL = {
    Gaussian: Gaussian(),
    Planar: Planar(3),
    FCN: FCN((8,)),
    Mixture: Mixture(2),
    Spline: Spline(2, bins=3, hidden=4),
    InverseAutoregressive: InverseAutoregressive(4, layers=1),
}


def cheap(method: Method) -> Method:
    """The method with settings that take a fraction of a second."""
    if isinstance(method, Variational):
        method = replace(method, crosscoder=SMALL.get(type(method.crosscoder), method.crosscoder))
    return replace(method, **CHEAP[type(method)])


LISTED = {
    name: cheap(entry.method) for name, entry in METHODS.items() if entry.method.takes_continuous
}
every_method = pytest.mark.parametrize("method", LISTED.values(), ids=LISTED.keys())
# The same, but of the fits that differ in their map alone, only one is among the quick tests.
every_method_one_fit = pytest.mark.parametrize(
    "method",
    [
        pytest.param(
            method,
            id=name,
            marks=[pytest.mark.slow] if isinstance(method, Variational) and name != "gvi" else [],
        )
        for name, method in LISTED.items()
    ],
)
