"""Programs of `torch.export`: a decoder as a graph of torch's own operations.

Reading one from a file may run code. In torch 2.13, `torch.export.load` unpickles the example
inputs (with the restricted loader, then with the unrestricted one if that refuses them) and all
weights and constants that the archive marks as pickled, and it passes expressions of sizes to
`sympy.sympify`, which evaluates them as Python. So a file is loaded only if the caller allows it. A
program that is already in memory is used as it is.
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
    """The `VAE` of a decoder that `torch.export.export` exported in eval mode.

    Args:
        program: A program from z (B, latent), or (B, *latent), which is flattened in the `VAE`, to
            the likelihood's parameters, a tensor or a tuple of tensors. B is dynamic or 1; a
            program for 1 is mapped over the batch. Or the path of a file that `torch.export.save`
            wrote.
        likelihood: What the output means.
        allow_code: Whether a file may be loaded. A `.pt2` archive holds pickles and expressions
            that torch evaluates: whoever wrote the file can run any code on your machine.

    Raises:
        TypeError: program is something else.
        ModelFormatError: It is a pickle, such as `torch.save` writes.
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
            "unpickles parts of it, which runs whatever code they name; if you trust whoever wrote "
            "it, pass allow_code=True"
        )
    return torch.export.load(path)


def _input_shape(program: ExportedProgram) -> list[int | None]:
    """Sizes of the program's one input; None for a dynamic size."""
    names = program.graph_signature.user_inputs
    inputs = [node for node in program.graph.nodes if node.name in names]
    values = [node.meta.get("val") for node in inputs]
    if len(values) != 1 or not isinstance(values[0], Tensor):
        raise ValueError(f"expected a program with one tensor input, z, got inputs {names}")
    return [None if _is_unlimited(size, program) else int(size) for size in values[0].shape]


def _is_unlimited(size: int | torch.SymInt, program: ExportedProgram) -> bool:
    """Whether a size is a symbol without an upper limit; raises for a symbol with one."""
    if isinstance(size, int):
        return False
    limits = program.range_constraints[size.node.expr]
    if limits.upper < _UNLIMITED:
        raise ValueError(f"expected a program for any batch size, got {limits}; {_DYNAMIC}")
    return True


class _Program(nn.Module):
    """An exported program as a plain module, which can be copied and set to eval mode."""

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
