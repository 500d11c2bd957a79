"""ONNX decoders: onnxruntime's outputs, gradients, and untrusted files."""

import os

import numpy as np
import pytest
import torch
from problems import seeded
from same_answers import MeanAndScale, assert_same_answers, every_kind_of_method
from torch import nn

import crosscoding as cc
from crosscoding.adapters import from_onnx
from crosscoding.errors import ModelFormatError
from crosscoding.likelihoods import Gaussian

onnx = pytest.importorskip("onnx", reason="needs the extra `onnx`")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
pytest.importorskip("onnxscript", reason="needs onnxscript, to export decoders")

pytestmark = [
    pytest.mark.usefixtures("onnx2pytorch"),
    pytest.mark.filterwarnings("ignore"),  # from exporter and converter
]
EXPORTERS = [(True, False), (True, True), (False, False), (False, True)]  # dynamo; any batch size


def exported(decoder, path, *latent, dynamo=True, dynamic=True, num=2):
    """A file written by torch.onnx.export, with its new exporter (dynamo) or the old one."""
    example = (torch.zeros(num if dynamic else 1, *latent),)
    if dynamo:
        shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
        program = torch.onnx.export(
            decoder, example, dynamo=True, dynamic_shapes=shapes, verbose=False
        )
        program.save(path)
    else:
        axes = {"z": {0: "batch"}} if dynamic else None
        torch.onnx.export(
            decoder, example, path, dynamo=False, input_names=["z"], dynamic_axes=axes
        )
    return path


def run(path, z: torch.Tensor) -> torch.Tensor:
    """What onnxruntime outputs, one z at a time."""
    session = onnxruntime.InferenceSession(path)
    name = session.get_inputs()[0].name
    return torch.cat(
        [torch.from_numpy(session.run(None, {name: each[None]})[0]) for each in z.numpy()]
    )


@pytest.fixture(params=EXPORTERS, ids=str, scope="module")
def path(request, decoder, tmp_path_factory):
    dynamo, dynamic = request.param
    path = tmp_path_factory.mktemp("onnx") / "decoder.onnx"
    return exported(decoder, path, 4, dynamo=dynamo, dynamic=dynamic)


@pytest.fixture(scope="module")
def vae(path, onnx2pytorch) -> cc.VAE:
    return from_onnx(path, Gaussian(0.1))


def test_a_file_decodes_as_onnxruntime_runs_it(vae, path, z):
    assert (vae.latent_dim, vae.data_shape) == (4, (1, 8, 8))
    torch.testing.assert_close(vae.decode(z), run(path, z), rtol=0, atol=1e-4)


def test_gradients_are_finite_differences_of_onnxruntime(vae, path, z):
    step = 1e-2  # step² is the error of the difference, 1e-7 / step that of float32
    direction = torch.randn(4, generator=seeded(3))
    wanted = (run(path, z + step * direction) - run(path, z - step * direction)) / (2 * step)
    _, tangent = torch.func.jvp(vae.decode, (z,), (direction.expand_as(z),))
    torch.testing.assert_close(tangent, wanted, rtol=0, atol=1e-3)
    points = z.clone().requires_grad_()
    vae.decode(points).sum().backward()
    torch.testing.assert_close((points.grad * direction).sum(), wanted.sum(), rtol=0, atol=1e-2)


@every_kind_of_method
def test_every_kind_of_method_answers_through_a_file(vae, plain, evidence, method):
    assert_same_answers(vae, plain, evidence, method)


def test_the_last_layer_of_a_stack_of_linear_layers_is_found(tmp_path):
    decoder = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 6), nn.Sigmoid())
    path = exported(decoder, tmp_path / "decoder.onnx", 3)
    assert from_onnx(path, cc.likelihoods.Bernoulli(logits=False)).head is not None


def test_latents_with_a_shape_are_flattened(tmp_path, z):
    decoder = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten(), nn.Linear(6, 7))
    for dynamic in (True, False):
        path = exported(decoder, tmp_path / "decoder.onnx", 2, 1, 2, dynamic=dynamic)
        vae = from_onnx(str(path), Gaussian(0.1))
        torch.testing.assert_close(vae.decode(z), decoder(z.reshape(5, 2, 1, 2)))


def test_double_precision_is_kept(tmp_path):
    decoder = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 6)).double()
    path = tmp_path / "decoder.onnx"
    torch.onnx.export(decoder, (torch.zeros(1, 3).double(),), dynamo=True, verbose=False).save(path)
    z = torch.randn(5, 3, generator=seeded(0), dtype=torch.double)
    torch.testing.assert_close(from_onnx(path, Gaussian(0.1)).decode(z), decoder(z))


def test_several_outputs_are_several_parameters(tmp_path, z):
    decoder = MeanAndScale()
    vae = from_onnx(exported(decoder, tmp_path / "decoder.onnx", 4), Gaussian(scale=None))
    torch.testing.assert_close(vae.decode(z), torch.stack(decoder(z), -1))


# ---- graphs that are refused -----------------------------------------------------------------


def graph_file(path, *nodes, shape=(None, 4), weights=(), domain="", num_inputs=1):
    """A file of a graph from z to y, written by hand."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    names = ["z", "c"][:num_inputs]
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name in names],
        [helper.make_tensor_value_info("y", kind, (None, None))],
        list(weights),
    )
    imports = [helper.make_opsetid("", 18)]
    if domain:
        imports.append(helper.make_opsetid(domain, 1))
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


def node(operation: str, *inputs: str, domain: str = ""):
    return onnx.helper.make_node(operation, list(inputs), ["y"], domain=domain)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((3, 4), r"any batch size, or for 1, got an input of shape \(3, 4\); export it with"),
        ((None, None), r"of shape \(batch, \*latent\), got \(any, any\)"),
        ((None, "size"), r"of shape \(batch, \*latent\), got \(any, any\)"),
        ((4,), r"of shape \(batch, \*latent\), got \(4\)"),
        ((), r"of shape \(batch, \*latent\), got \(\)"),
    ],
)
def test_an_input_of_another_shape_is_refused(tmp_path, shape, words):
    path = graph_file(tmp_path / "decoder.onnx", node("Tanh", "z"), shape=shape)
    with pytest.raises(ValueError, match=words):
        from_onnx(path, Gaussian(0.1))


def test_a_graph_of_two_inputs_is_refused(tmp_path):
    path = graph_file(tmp_path / "decoder.onnx", node("Add", "z", "c"), num_inputs=2)
    with pytest.raises(ValueError, match="expected a graph with one input, z, got inputs"):
        from_onnx(path, Gaussian(0.1))


def test_an_unknown_operation_is_refused(tmp_path):
    unknown = node("Whatever", "z", domain="somewhere")
    path = graph_file(tmp_path / "decoder.onnx", unknown, domain="somewhere")
    with pytest.raises(ModelFormatError, match="expected operations that onnx2pytorch converts"):
        from_onnx(path, Gaussian(0.1))


def constant(name: str, *values: int):
    return onnx.numpy_helper.from_array(np.array(values, np.int64), name)


def step(operation: str, *names: str, **attributes):
    """A node that outputs the last of the names."""
    return onnx.helper.make_node(operation, list(names[:-1]), [names[-1]], **attributes)


BOMBS = {  # of memory; of time, with small tensors; of tensors that are only read
    "tiled": [step("Tile", "z", "sizes", "y")],
    "multiplied": [
        step("Transpose", "z", "t"),  # (4, 1)
        step("Expand", "z", "sizes", "rows"),
        step("Expand", "t", "turned", "columns"),
        step("MatMul", "columns", "rows", "y"),
    ],
    "summed": [
        step("Expand", "z", "sizes", "rows"),
        step("ReduceSum", "rows", "first", "y", keepdims=1),
    ],
}


@pytest.mark.parametrize("nodes", BOMBS.values(), ids=BOMBS)
def test_operations_that_cost_too_much_are_refused_before_they_run(nodes, tmp_path):
    numbers = [constant("sizes", 2**45, 4), constant("turned", 4, 2**45), constant("first", 0)]
    path = graph_file(tmp_path / "decoder.onnx", *nodes, weights=numbers)
    with pytest.raises(ModelFormatError, match="expected at most 8796093022208 multiply-adds"):
        from_onnx(path, Gaussian(0.1))


def test_a_wrong_conversion_is_refused(path, onnx2pytorch, monkeypatch):
    class Wrong(onnx2pytorch.ConvertModel):
        def forward(self, z):
            return super().forward(z) * 1.01

    monkeypatch.setattr(onnx2pytorch, "ConvertModel", Wrong)
    with pytest.raises(
        ModelFormatError, match=r"outputs that differ by 0\.0[01]\d* of the largest"
    ):
        from_onnx(path, Gaussian(0.1))


# ---- files -----------------------------------------------------------------------------------


def external(path, location: str, length: int | None = None):
    """A file of y = z w whose weights w, 4 x 4, are in another file."""
    weight = onnx.numpy_helper.from_array(np.zeros((4, 4), np.float32), "w")
    onnx.external_data_helper.set_external_data(weight, location, length=length)
    weight.ClearField("raw_data")
    return graph_file(path, node("MatMul", "z", "w"), weights=[weight])


def test_weights_beside_the_file_are_read(tmp_path, z):
    weight = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    (tmp_path / "weights.bin").write_bytes(weight.tobytes())
    vae = from_onnx(external(tmp_path / "decoder.onnx", "weights.bin"), Gaussian(0.1))
    torch.testing.assert_close(vae.decode(z), z @ torch.from_numpy(weight))


@pytest.mark.parametrize("how", ["absolute", "above", "linked", "linked hard"])
def test_weights_outside_the_folder_are_not_read(tmp_path, how):
    folder, secret = tmp_path / "model", tmp_path / "secret"
    folder.mkdir()
    secret.write_bytes(bytes(64))
    location = {"absolute": str(secret), "above": "../secret"}.get(how, "weights.bin")
    if how == "linked":
        (folder / "weights.bin").symlink_to(secret)
    if how == "linked hard":
        os.link(secret, folder / "weights.bin")
    with pytest.raises(ModelFormatError, match="expected an ONNX model in"):
        from_onnx(external(folder / "decoder.onnx", location), Gaussian(0.1))


def test_weights_that_are_cut_off_or_missing_are_refused(tmp_path):
    for length, content in [(None, bytes(60)), (64, bytes(60)), (None, None)]:
        if content is not None:
            (tmp_path / "weights.bin").write_bytes(content)
        else:
            (tmp_path / "weights.bin").unlink()
        with pytest.raises(ModelFormatError, match="expected an ONNX model in"):
            from_onnx(external(tmp_path / "decoder.onnx", "weights.bin", length), Gaussian(0.1))


def test_a_file_that_is_too_large_is_refused(tmp_path):
    (tmp_path / "weights.bin").write_bytes(bytes(64))
    path = external(tmp_path / "decoder.onnx", "weights.bin")
    size = path.stat().st_size + 64
    from_onnx(path, Gaussian(0.1), max_bytes=size)
    for limit in (10, size - 1):
        with pytest.raises(ModelFormatError, match=f"expected at most {limit} bytes"):
            from_onnx(path, Gaussian(0.1), max_bytes=limit)


def test_a_damaged_file_is_refused(path, tmp_path):
    damaged = tmp_path / "decoder.onnx"
    damaged.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ModelFormatError, match="expected an ONNX model in"):
        from_onnx(damaged, Gaussian(0.1))
    with pytest.raises(ModelFormatError, match="which is not a file"):
        from_onnx(tmp_path / "nowhere.onnx", Gaussian(0.1))


@pytest.mark.parametrize("name", ["decoder.pth", "decoder.onnx"])
def test_a_pickle_is_refused_with_advice_to_export_it(tmp_path, name):
    torch.save(nn.Linear(2, 3), tmp_path / name)
    with pytest.raises(ModelFormatError, match=r"expected no pickle.*torch\.onnx\.export"):
        from_onnx(tmp_path / name, Gaussian(0.1))
