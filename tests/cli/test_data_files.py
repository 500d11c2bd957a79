"""Reading data from files: what is rescaled, what is left as it is, and what is refused."""

import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import crosscoding as cc
from crosscoding.cli.data_files import read_data as read
from crosscoding.likelihoods import Bernoulli, Gaussian, Poisson


def model(likelihood, shape=(2, 3)) -> cc.VAE:
    size = int(np.prod(shape))
    return cc.VAE(nn.Sequential(nn.Linear(2, size), nn.Unflatten(1, shape)), 2, likelihood)


def read_data(words: str, vae: cc.VAE) -> torch.Tensor:
    return read(words, vae).values


def test_numbers_are_read_in_the_models_dtype(tmp_path):
    values = np.random.default_rng(0).normal(size=(5, 2, 3))
    np.save(tmp_path / "a.npy", values)
    data = read_data(str(tmp_path / "a.npy"), model(Gaussian()))
    assert data.dtype == torch.float32
    torch.testing.assert_close(data, torch.from_numpy(values).float())


def test_flat_data_get_the_models_shape(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(12.0).reshape(2, 6))
    data = read_data(str(tmp_path / "a.npy"), model(Gaussian()))
    assert torch.equal(data, torch.arange(12.0).reshape(2, 2, 3))


@pytest.mark.parametrize(
    ("likelihood", "wanted"),
    [(Bernoulli(), [0, 0, 1]), (Gaussian(), [-1, -1 / 255, 1]), (Poisson(), [0, 127, 255])],
    ids=str,
)
def test_bytes_are_rescaled_if_the_data_can_be_pictures(tmp_path, likelihood, wanted):
    np.save(tmp_path / "a.npy", np.full((4, 2, 3), [0, 127, 255], dtype=np.uint8))
    data = read_data(str(tmp_path / "a.npy"), model(likelihood))
    torch.testing.assert_close(data[0, 0], torch.tensor(wanted, dtype=torch.float32))


def test_bytes_of_a_table_are_not_rescaled(tmp_path):
    np.save(tmp_path / "a.npy", np.full((4, 6), 200, dtype=np.uint8))
    assert (read_data(str(tmp_path / "a.npy"), model(Gaussian(), (6,))) == 200).all()


def test_among_several_arrays_the_fitting_or_named_one_is_read(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, labels=np.arange(4), train=np.zeros((4, 2, 3)))
    assert read_data(str(path), model(Gaussian())).shape == (4, 2, 3)
    np.savez(path, train=np.zeros((4, 2, 3)), test=np.ones((3, 2, 3)))
    assert read_data(f"{path}:test", model(Gaussian())).shape == (3, 2, 3)
    with pytest.raises(ValueError, match=r"as FILE.npz:NAME, of shape \(N, 2, 3\) .*train \(4, 2"):
        read_data(str(path), model(Gaussian()))
    with pytest.raises(ValueError, match="there is no array valid, only train, test"):
        read_data(f"{path}:valid", model(Gaussian()))


def test_only_the_chosen_array_is_unpacked_and_only_up_to_a_limit(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, other=np.zeros((4, 5)), train=np.zeros((4, 6)))
    read, shapes = np.lib.format.read_array, []

    def noted(*args, **options):
        array = read(*args, **options)
        shapes.append(array.shape)
        return array

    monkeypatch.setattr(np.lib.format, "read_array", noted)
    read_data(str(path), model(Gaussian()))
    assert shapes == [(4, 6)]
    header = {"shape": (10**9, 6), "fortran_order": False, "descr": "<f4"}
    with zipfile.ZipFile(path, "w") as archive, archive.open("train.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(
        ValueError, match="train takes 24000000000 bytes, more than the limit of 4294967296"
    ):
        read_data(str(path), model(Gaussian()))


def test_a_zip_of_pictures(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "a.png")
    data = read_data(str(tmp_path / "a.zip"), model(Gaussian(), (3, 4, 4)))
    wanted = torch.from_numpy(picture).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(data, wanted[None])
    with pytest.raises(ValueError, match="models of square colour pictures"):
        read_data(str(tmp_path / "a.zip"), model(Gaussian()))


def test_pickles_and_other_files_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}]), allow_pickle=True)
    (tmp_path / "b.npy").write_text("no array")
    (tmp_path / "c.npz").write_text("")
    for name in ("a.npy", "b.npy", "c.npz"):
        with pytest.raises(ValueError, match="cannot read the arrays"):
            read_data(str(tmp_path / name), model(Gaussian()))


@pytest.mark.parametrize("array", [np.zeros((3, 5)), np.zeros(6), np.zeros((3, 6), dtype=complex)])
def test_arrays_that_do_not_fit_are_refused(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=r"expected an array of numbers of shape \(N, 2, 3\)"):
        read_data(str(tmp_path / "a.npy"), model(Gaussian()))


def test_bytes_of_zeros_and_ones_are_not_rescaled(tmp_path):
    np.save(tmp_path / "a.npy", np.full((4, 2, 3), [0, 1, 1], dtype=np.uint8))
    for likelihood in (Bernoulli(), Gaussian()):
        data = read_data(str(tmp_path / "a.npy"), model(likelihood))
        assert torch.equal(data[0, 0], torch.tensor([0.0, 1.0, 1.0]))


def test_numbers_of_the_other_byte_order_are_read(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(12.0).reshape(2, 6).astype(">f4"))
    data = read_data(str(tmp_path / "a.npy"), model(Gaussian()))
    assert torch.equal(data, torch.arange(12.0).reshape(2, 2, 3))


def test_unknown_file_types_are_refused_with_a_list_of_known_ones(tmp_path):
    (tmp_path / "a.xlsx").write_text("1,2,3")
    with pytest.raises(ValueError, match=r"expected data as \.npy, \.npz, \.csv, \.tsv, \.txt or"):
        read_data(str(tmp_path / "a.xlsx"), model(Gaussian()))


def test_empty_cells_of_a_table_become_nan(tmp_path):
    (tmp_path / "a.csv").write_text("1,2,3,,5,6\n")
    data = read_data(str(tmp_path / "a.csv"), model(Gaussian()))
    wanted = torch.tensor([[[1.0, 2.0, 3.0], [torch.nan, 5.0, 6.0]]])
    torch.testing.assert_close(data, wanted, equal_nan=True)
    (tmp_path / "a.csv").write_text("1,2\n")
    with pytest.raises(ValueError, match=r"expected 6 columns in .*a.csv.* \(2, 3\) .*, got 2; "):
        read_data(str(tmp_path / "a.csv"), model(Gaussian()))
