"""Exported programs: the same answers as their module, and files only with allow_code."""

import io
import os
import warnings
import zipfile

import pytest
import torch
from same_answers import MeanAndScale, assert_same_answers, every_kind_of_method
from torch import nn
from torch.export import Dim, ExportedProgram, export

import crosscoding as cc
from crosscoding.adapters import from_export
from crosscoding.likelihoods import Bernoulli, Gaussian

DYNAMIC = ({0: Dim.DYNAMIC},)
SHAPES = {"any": (3, DYNAMIC), "named": (3, ({0: Dim("batch")},)), "one": (1, None)}


def program_of(decoder: nn.Module, *latent: int, num: int = 3, shapes=DYNAMIC) -> ExportedProgram:
    return export(decoder.eval(), (torch.zeros(num, *latent),), dynamic_shapes=shapes)


@pytest.fixture(params=SHAPES, scope="module")
def vae(request, decoder) -> cc.VAE:
    num, shapes = SHAPES[request.param]
    return from_export(program_of(decoder, 4, num=num, shapes=shapes), Gaussian(0.1))


def test_a_program_decodes_as_its_module(vae, plain, z):
    assert (vae.latent_dim, vae.data_shape) == (4, (1, 8, 8))
    torch.testing.assert_close(vae.decode(z), plain.decode(z))


@every_kind_of_method
@pytest.mark.slow
def test_every_kind_of_method_answers_through_a_program(vae, plain, evidence, method):
    assert_same_answers(vae, plain, evidence, method)


def test_latents_with_a_shape_are_flattened(z):
    decoder = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten(), nn.Linear(6, 7))
    for num, shapes in SHAPES.values():
        vae = from_export(program_of(decoder, 2, 1, 2, num=num, shapes=shapes), Gaussian(0.1))
        assert vae.latent_dim == 4
        torch.testing.assert_close(vae.decode(z), decoder(z.reshape(5, 2, 1, 2)))


@pytest.mark.parametrize("shapes", SHAPES)
def test_several_outputs_are_several_parameters(shapes, z):
    num, dynamic = SHAPES[shapes]
    program = program_of(MeanAndScale(), 4, num=num, shapes=dynamic)
    vae = from_export(program, Gaussian(scale=None))
    assert vae.decode(z).shape == (5, 6, 2)


def test_the_program_is_not_changed(decoder, z):
    program = program_of(decoder, 4)
    from_export(program, Gaussian(0.1)).decode(z)
    assert all(weight.requires_grad for weight in program.parameters())
    torch.testing.assert_close(program.module()(z), decoder(z))


def test_a_program_in_training_mode_is_refused():
    dropping = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5)).train()
    program = export(dropping, (torch.zeros(3, 4),), dynamic_shapes=DYNAMIC)
    with pytest.raises(ValueError, match="deterministic"):
        from_export(program, Gaussian(0.1))


@pytest.mark.parametrize(
    ("num", "shapes", "words"),
    [(3, None, r"got an input of shape \(3, 4\)"), (3, ({0: Dim("batch", max=64)},), "64")],
)
def test_a_batch_of_limited_size_is_refused_with_advice(decoder, num, shapes, words):
    with pytest.raises(ValueError, match=words) as caught:
        from_export(program_of(decoder, 4, num=num, shapes=shapes), Gaussian(0.1))
    assert "dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)" in str(caught.value)


def test_a_latent_dimension_of_any_size_is_refused():
    program = program_of(nn.Tanh(), 4, shapes=({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},))
    with pytest.raises(ValueError, match=r"expected an input of shape .* got \(any, any\)"):
        from_export(program, Gaussian(0.1))


def test_a_program_of_two_inputs_is_refused():
    class Two(nn.Module):
        def forward(self, z, c):
            return z + c

    with pytest.raises(ValueError, match="expected a program with one tensor input, z"):
        from_export(export(Two(), (torch.zeros(1, 4), torch.zeros(1, 4))), Gaussian(0.1))


def test_another_type_is_refused(decoder):
    with pytest.raises(TypeError, match=r"expected a torch\.export\.ExportedProgram"):
        from_export(decoder, Bernoulli())


# ---- files -----------------------------------------------------------------------------------


class RunsWhenUnpickled:
    def __init__(self, folder) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def archive(decoder, tmp_path):
    """A file of torch.export.save."""
    path = tmp_path / "decoder.pt2"
    torch.export.save(program_of(decoder, 4), path)
    return path


@pytest.fixture
def harmful(archive, tmp_path):
    """The same file with example inputs that make a folder when unpickled, and that folder."""
    path, made = tmp_path / "harmful.pt2", tmp_path / "made"
    pickled = io.BytesIO()
    torch.save(((RunsWhenUnpickled(made),), {}), pickled)
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            inputs = entry.filename.endswith("sample_inputs/model.pt")
            content = pickled.getvalue() if inputs else source.read(entry)
            target.writestr(entry.filename.replace("decoder/", "harmful/", 1), content)
    return path, made


def test_a_file_is_not_loaded_without_allow_code(harmful):
    path, made = harmful
    with pytest.raises(ValueError, match="pass allow_code=True"):
        from_export(path, Gaussian(0.1))
    assert not made.exists()


def test_a_file_can_indeed_run_code(harmful):
    path, made = harmful
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from_export(path, Gaussian(0.1), allow_code=True)
        except Exception as error:  # torch may fail on the inputs after unpickling them
            print(error)
    assert made.is_dir()


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_file_is_loaded_with_allow_code(archive, plain, z, kind):
    vae = from_export(kind(archive), Gaussian(0.1), allow_code=True)
    torch.testing.assert_close(vae.decode(z), plain.decode(z))


@pytest.mark.parametrize("name", ["decoder.pt", "decoder.CKPT", "decoder.pt2"])
def test_a_pickle_is_refused_whatever_its_name_and_whatever_the_caller_says(tmp_path, name):
    torch.save(nn.Linear(2, 3), tmp_path / name)
    with pytest.raises(cc.ModelFormatError, match=r"no pickle.*pass that to crosscoding\.VAE"):
        from_export(tmp_path / name, Gaussian(0.1), allow_code=True)
