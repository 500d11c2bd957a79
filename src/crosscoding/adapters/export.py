"""Programs of `torch.export`: a decoder as a graph of torch's own operations.

Reading one from a file may run code. In torch 2.13, `torch.export.load` gives the example inputs
to pickle (the restricted loader, and where that refuses them the unrestricted one), as well as all
weights and constants that the archive itself marks as pickled, and expressions of sizes to
`sympy.sympify`, which evaluates them as Python. So a file is loaded on the caller's word only; a
program that is in memory already is taken as it is.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from crosscoding.adapters.flat_input import with_flat_input
from crosscoding.isolation import isolated
from crosscoding.likelihoods import Likelihood
from crosscoding.model.vae import VAE
from crosscoding.persistence.pickles import refuse_pickle

_UNLIMITED = 2**31
_DYNAMIC = "export it with dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)"


@isolated
def from_export(
    program: ExportedProgram | str | Path,
    likelihood: Likelihood,
    *,
    allow_code: bool = False,
) -> VAE:
    """The `VAE` of a decoder that `torch.export.export` made a program of, in eval mode.

    Args:
        program: Takes z (B, latent), or (B, *latent) of which z is then laid out flat, and puts
            out the likelihood's parameters, as a tensor or a tuple of them. B is dynamic, or 1,
            which is mapped over the batch. Or the path of what `torch.export.save` wrote.
        likelihood: What the output means.
        allow_code: Whether a file may be loaded. A `.pt2` archive holds pickles and expressions
            that torch evaluates: whoever wrote the file can run any code on your machine.

    Raises:
        TypeError: program is something else.
        ModelFormatError: It is a pickle, as of `torch.save`.
        ValueError: It is a file and allow_code is not set, or has other inputs; or `VAE` refuses
            the decoder.

    Example:
        >>> from crosscoding.likelihoods import Gaussian
        >>> program = torch.export.export(nn.Linear(2, 5).eval(), (torch.zeros(1, 2),))
        >>> from_export(program, Gaussian(0.1)).data_shape
        torch.Size([5])
    """
    if isinstance(program, (str, Path)):
        program = _loaded(Path(program), allow_code)
    if not isinstance(program, ExportedProgram):
        raise TypeError(f"expected a torch.export.ExportedProgram, got {type(program).__name__}")
    decoder, latent_dim = with_flat_input(_Program(program), _input_shape(program), _DYNAMIC)
    return VAE(decoder, latent_dim, likelihood)


def _loaded(path: Path, allow_code: bool) -> ExportedProgram:
    refuse_pickle(path, "build its module, load the weights, and pass that to crosscoding.VAE")
    if not allow_code:
        raise ValueError(
            f"expected an exported program in memory, got the file {path.name}: torch.export.load "
            "unpickles parts of it, which runs whatever code they name; where you trust whoever "
            "wrote it, say allow_code=True"
        )
    return torch.export.load(path)


def _input_shape(program: ExportedProgram) -> list[int | None]:
    """Sizes of the program's one input, None where any size will do."""
    names = program.graph_signature.user_inputs
    inputs = [node for node in program.graph.nodes if node.name in names]
    values = [node.meta.get("val") for node in inputs]
    if len(values) != 1 or not isinstance(values[0], Tensor):
        raise ValueError(f"expected a program of one tensor, z, got one of inputs {names}")
    return [None if _is_unlimited(size, program) else int(size) for size in values[0].shape]


def _is_unlimited(size: int | torch.SymInt, program: ExportedProgram) -> bool:
    """Whether a size is a symbol, and one without an upper limit."""
    if isinstance(size, int):
        return False
    limits = program.range_constraints[size.node.expr]
    if limits.upper < _UNLIMITED:
        raise ValueError(f"expected a program of any batch size, got {limits}; {_DYNAMIC}")
    return True


class _Program(nn.Module):
    """An exported program as a plain module, which can be copied and put in eval mode."""

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        unlifted: nn.Module = program.module()
        if program.call_spec.out_spec is not None and program.call_spec.out_spec.type is dict:
            raise ValueError("expected a program that outputs a tensor or a tuple, got a dict")
        graph = fx.Graph()
        outputs = graph.graph_copy(unlifted.graph, {})  # without the structure of its arguments
        graph.output(outputs)
        self.graph_module = fx.GraphModule(unlifted, graph)

    def forward(self, z: Tensor) -> Tensor | Sequence[Tensor]:
        outputs = self.graph_module(z)
        return outputs[0] if len(outputs) == 1 else outputs
