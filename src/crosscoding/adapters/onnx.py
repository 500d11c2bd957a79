"""ONNX decoders, converted to a module that torch differentiates.

The conversion is that of onnx2pytorch, of a model made plain first; then it is held against
onnxruntime at a few points, as a conversion that is off would go unnoticed. A file of ONNX is data:
operations by name, with tensors. Nothing in it is run but those operations; tensors that lie in
files beside it are read from its own folder only, which onnx sees to. What its operations take is
counted at z = 0 before each is run, and bounded. Where a graph's shapes follow from the values of
z, other z may take more: nothing bounds that.
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
_MOST = Cost(MOST_OPERATIONS, 2**32)  # twice what Stable Diffusion outputs at 512 x 512 pixels
_DYNAMIC = "export it with a batch dimension that has a name instead of a size"


@isolated
def from_onnx(path: str | Path, likelihood: Likelihood, *, max_bytes: int = MAX_BYTES) -> VAE:
    """The `VAE` of a decoder in an ONNX file, in float32 or float64 and on the CPU.

    Args:
        path: Its graph takes z (B, latent), or (B, *latent) of which z is then laid out flat, and
            outputs the likelihood's parameters, in one output or in several. B has any size, or
            1, which is mapped over the batch.
        likelihood: What the output means.
        max_bytes: Most that the file and the tensors beside it may take.

    Raises:
        ImportError: onnx, onnx2pytorch or onnxruntime is not installed.
        ModelFormatError: The file is damaged or too large, reads outside its folder, takes too much
            memory or time for one z, has an operation that onnx2pytorch does not know, or is
            converted to something else than onnxruntime runs.
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
    _hold_against_runtime(vae, model, path.name)
    return vae


def _loaded(path: Path, max_bytes: int) -> Any:
    """The model in memory and checked, with the weights that lie in other files of its folder."""
    onnx = library("onnx", "onnx")
    if not path.is_file():
        raise ModelFormatError(f"expected an ONNX file, got {path}, which is none")
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
    except Exception as error:  # of protobuf, of the checker, of the file system, or of C++
        raise ModelFormatError(f"expected an ONNX model in {path}: {error}") from error
    return model


def _check_size(size: int, max_bytes: int, path: Path) -> None:
    if size > max_bytes:
        raise ModelFormatError(
            f"expected at most {max_bytes} bytes in {path} and its weights, got {size} or more; "
            "raise max_bytes to load it"
        )


def _plain(model: Any) -> Any:
    """A copy without what onnx2pytorch 0.6 takes amiss.

    Attributes that say what holds without them, as `training_mode=0` of batch norm; and copies of
    weights by Identity nodes, which it does not take for weights.
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
        raise ValueError(f"expected a graph of one input, z, got one of inputs {names}")
    return inputs[0].type.tensor_type


class _Converted(nn.Module):
    """An ONNX graph as a module, with its several outputs as a tuple."""

    def __init__(self, model: Any, example: Tensor) -> None:
        super().__init__()
        convert = library("onnx2pytorch", "onnx").ConvertModel
        try:
            self.converted = convert(_plain(model))
            with Limited(_MOST):
                self.converted(example)  # which makes the modules that are lazy
        except ModelFormatError:
            raise
        except Exception as error:  # what an operation without a rule raises is not agreed on
            raise ModelFormatError(
                f"expected operations that onnx2pytorch converts, and it failed: {error}"
            ) from error

    def forward(self, z: Tensor) -> Tensor | tuple[Tensor, ...]:
        outputs = self.converted(z)
        return tuple(outputs) if isinstance(outputs, list) else outputs


@torch.no_grad()
def _hold_against_runtime(vae: VAE, model: Any, name: str) -> None:
    """Raise ModelFormatError unless onnxruntime outputs the same."""
    runtime = library("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors: it warns of shapes that an exporter has left behind
    try:
        session = runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime has exceptions of its own, without a base
        raise ModelFormatError(
            f"expected operations in {name} that onnxruntime runs, and it failed: {error}"
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
                f"expected {name} converted to what onnxruntime runs, got outputs that differ by "
                f"{error:.2g} of the largest: onnx2pytorch has one of its operations wrong"
            )
