"""ONNX decoders, converted to a module that torch can differentiate.

onnx2pytorch converts a simplified copy of the model. The result is compared with onnxruntime at a
few points, because a wrong conversion would go unnoticed otherwise. An ONNX file is data:
operations by name, with tensors. Only those operations are run, and onnx makes sure that tensors in
other files are read only from the model's own folder. The cost of each operation is counted at
z = 0 before it is run, and bounded. If a graph's shapes depend on the values of z, other z may cost
more, without a bound.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crosscoding.adapters.flat_input import with_flat_input
from crosscoding.adapters.libraries import library
from crosscoding.errors import ModelFormatError
from crosscoding.isolation import isolated
from crosscoding.likelihoods import Likelihood
from crosscoding.model.cost import Cost, Limited
from crosscoding.model.vae import VAE
from crosscoding.persistence.layers import MOST_OPERATIONS
from crosscoding.persistence.pickles import refuse_pickle
from crosscoding.random import generator_from, normal

MAX_BYTES = 2**31
_TOLERANCE = 1e-4  # of the largest output
_NUM_PROBES = 3
_WITH_GRAPHS = ("If", "Loop", "Scan", "SequenceMap")
_MOST_LATENT = 2**24
_MOST = Cost(MOST_OPERATIONS, 2**32)  # twice the values of Stable Diffusion at 512 x 512 pixels
_DYNAMIC = "export it with a batch dimension that has a name instead of a size"


@isolated
def from_onnx(path: str | Path, likelihood: Likelihood, *, max_bytes: int = MAX_BYTES) -> VAE:
    """The `VAE` of a decoder in an ONNX file, in float32 or float64, on the CPU.

    Args:
        path: A graph from z (B, latent), or (B, *latent), which is flattened in the `VAE`, to the
            likelihood's parameters, in one output or in several. B is dynamic or 1; a graph for 1
            is mapped over the batch.
        likelihood: What the output means.
        max_bytes: Largest total size of the file and of the tensors in other files.

    Raises:
        ImportError: onnx, onnx2pytorch or onnxruntime is not installed.
        ModelFormatError: The file is damaged or too large, reads outside its folder, takes too much
            memory or time for one z, has an operation that onnx2pytorch does not know, or is
            converted to a module that differs from what onnxruntime runs.
        ValueError: The graph has other inputs; or `VAE` refuses the decoder.
    """
    path = Path(path)
    refuse_pickle(path, "build its module, load the weights, and export it with torch.onnx.export")
    model = _loaded(path, max_bytes)
    given = _input_of(model)
    shape = [dim.dim_value if dim.HasField("dim_value") else None for dim in given.shape.dim]
    if any(not 0 <= (size or 1) <= _MOST_LATENT for size in shape):
        raise ModelFormatError(f"expected an input of (batch, *latent) in {path}, got {shape}")
    example = np.zeros(
        [size or 1 for size in shape],
        library("onnx", "onnx").helper.tensor_dtype_to_np_dtype(given.elem_type),
    )
    converted = _Converted(model, torch.from_numpy(example))
    decoder, latent_dim = with_flat_input(converted, shape, _DYNAMIC)
    vae = VAE(decoder, latent_dim, likelihood)
    _compare_with_runtime(vae, model, path.name)
    return vae


def _loaded(path: Path, max_bytes: int) -> Any:
    """The checked model in memory, including weights in other files of its folder."""
    onnx = library("onnx", "onnx")
    if not path.is_file():
        raise ModelFormatError(f"expected an ONNX file, got {path}, which is not a file")
    size = path.stat().st_size
    _check_size(size, max_bytes, path)
    try:
        model = onnx.load(path, load_external_data=False)
        lie_outside = onnx.external_data_helper.uses_external_data
        outside = [weight for weight in model.graph.initializer if lie_outside(weight)]
        for name in {e.value for w in outside for e in w.external_data if e.key == "location"}:
            size += (path.parent / name).stat().st_size
        _check_size(size, max_bytes, path)
        for weight in outside:
            onnx.external_data_helper.load_external_data_for_tensor(weight, str(path.parent))
        for node in model.graph.node:
            if node.op_type in _WITH_GRAPHS or any(lie_outside(a.t) for a in node.attribute):
                raise ModelFormatError(
                    f"expected operations on tensors in {path}, got {node.op_type}, which holds "
                    "a graph of its own or reads a file"
                )
        onnx.checker.check_model(model)
    except ModelFormatError:
        raise
    except Exception as error:  # from protobuf, the checker, the file system or C++
        raise ModelFormatError(f"expected an ONNX model in {path}: {error}") from error
    return model


def _check_size(size: int, max_bytes: int, path: Path) -> None:
    if size > max_bytes:
        raise ModelFormatError(
            f"expected at most {max_bytes} bytes in {path} and its weights, got {size} or more; "
            "raise max_bytes to load it"
        )


def _simplified(model: Any) -> Any:
    """A copy without two things that onnx2pytorch 0.6 mishandles.

    These are attributes set to their default, such as `training_mode=0` of batch norm, and copies
    of weights by Identity nodes, which it does not recognise as weights.
    """
    schema_of = library("onnx", "onnx").defs.get_schema
    model = copy.deepcopy(model)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    names = {tensor.name for tensor in model.graph.initializer}
    outputs = {output.name for output in model.graph.output}
    copies: dict[str, str] = {}
    for node in list(model.graph.node):
        node.input[:] = [copies.get(name, name) for name in node.input]
        if node.op_type == "Identity" and node.input[0] in names and node.output[0] not in outputs:
            copies[node.output[0]] = node.input[0]
            model.graph.node.remove(node)
            continue
        known = schema_of(node.op_type, versions[node.domain], node.domain).attributes
        for attribute in list(node.attribute):
            if known[attribute.name].default_value == attribute:
                node.attribute.remove(attribute)
    return model


def _input_of(model: Any) -> Any:
    """Type and shape of the graph's one input."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = [value.name for value in inputs]
        raise ValueError(f"expected a graph with one input, z, got inputs {names}")
    return inputs[0].type.tensor_type


class _Converted(nn.Module):
    """An ONNX graph as a module; several outputs become a tuple."""

    def __init__(self, model: Any, example: Tensor) -> None:
        super().__init__()
        convert = library("onnx2pytorch", "onnx").ConvertModel
        try:
            self.converted = convert(_simplified(model))
            with Limited(_MOST):
                self.converted(example)  # which creates its lazy modules
        except ModelFormatError:
            raise
        except Exception as error:  # operations without a rule raise various errors
            raise ModelFormatError(
                f"expected operations that onnx2pytorch converts, but it failed: {error}"
            ) from error

    def forward(self, z: Tensor) -> Tensor | tuple[Tensor, ...]:
        outputs = self.converted(z)
        return tuple(outputs) if isinstance(outputs, list) else outputs


@torch.no_grad()
def _compare_with_runtime(vae: VAE, model: Any, name: str) -> None:
    """Raise ModelFormatError unless onnxruntime outputs the same numbers."""
    runtime = library("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors only: it warns of shapes that exporters leave behind
    try:
        session = runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise ModelFormatError(
            f"expected operations in {name} that onnxruntime runs, but it failed: {error}"
        ) from error
    (given,) = session.get_inputs()
    like = torch.empty(0, dtype=vae.dtype)
    for z in normal((_NUM_PROBES, vae.latent_dim), generator=generator_from(1), like=like):
        outputs = session.run(None, {given.name: z.reshape(1, *given.shape[1:]).numpy()})
        wanted = [torch.from_numpy(output) for output in outputs]
        joined = wanted[0] if len(wanted) == 1 else vae.likelihood.join(wanted)
        error = (vae.decode(z[None]) - joined).abs().max() / joined.abs().max().clamp_min(1e-6)
        if not error <= _TOLERANCE:
            raise ModelFormatError(
                f"expected {name} to convert to what onnxruntime runs, got outputs that differ by "
                f"{error:.2g} of the largest: onnx2pytorch converts one of its operations wrongly"
            )
