"""Reading training data, and refusing archives that are wrong or malicious."""

import io
import os
import pickle
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from crosscoding.zoo.training import data
from crosscoding.zoo.training.data import load_digits, load_pictures, scaled
from crosscoding.zoo.training.recipe import FaceRecipe


def encoded(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_archive(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def pictures(num, side=8):
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (num, side, side, 3), dtype=np.uint8)


def test_a_folder_without_mnist_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"expected MNIST in .*mnist.npz, but there is no such file"
    ):
        load_digits(tmp_path, "test")


def write_mnist(folder, **arrays):
    np.savez_compressed(folder / "mnist.npz", **arrays)


def test_digits_are_black_and_white(tmp_path):
    write_mnist(tmp_path, test_images=np.array([[[0, 127], [128, 255]]], dtype=np.uint8))
    assert load_digits(tmp_path, "test").tolist() == [[[0, 0], [1, 1]]]


class Bomb:
    """A pickle that creates a folder when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def claiming(shape):
    """An array's file whose header promises more than there is."""
    file = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + bytes(100)


DIGITS = {
    "no array": ({"other": np.zeros(3)}, "There is no item named 'test_images.npy'"),
    "floats": ({"test_images": np.zeros((2, 28, 28))}, "uint8 images .* got float64"),
    "flat": ({"test_images": np.zeros((2, 784), np.uint8)}, r"got uint8 of shape \(2, 784\)"),
}


@pytest.mark.parametrize(("arrays", "said"), DIGITS.values(), ids=DIGITS)
def test_arrays_that_are_not_digits_are_refused(tmp_path, arrays, said):
    write_mnist(tmp_path, **arrays)
    with pytest.raises(ValueError, match=said):
        load_digits(tmp_path, "test")


def test_pickled_objects_among_arrays_are_not_opened(tmp_path):
    write_mnist(tmp_path, test_images=np.array([Bomb(tmp_path / "exploded")], dtype=object))
    with pytest.raises(ValueError, match=r"expected MNIST in .*Object arrays cannot be loaded"):
        load_digits(tmp_path, "test")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps({"test_images": 3})])
def test_a_file_that_is_not_an_archive_of_arrays_is_refused(tmp_path, content):
    (tmp_path / "mnist.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"expected MNIST in .*File is not a zip file"):
        load_digits(tmp_path, "test")


@pytest.mark.parametrize("shape", [(10**15, 28, 28), (10**30,), (-1, 28, 28)], ids=str)
def test_an_array_whose_header_promises_too_much_is_refused(tmp_path, shape):
    write_archive(tmp_path / "mnist.npz", {"test_images.npy": claiming(shape)})
    with pytest.raises(ValueError, match=r"expected (MNIST|uint8 images)"):
        load_digits(tmp_path, "test")


def test_an_array_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    write_mnist(tmp_path, test_images=np.zeros((100, 28, 28), np.uint8))
    monkeypatch.setattr(data, "_MOST_ARRAY_BYTES", 1000)
    with pytest.raises(ValueError, match=r"at most 1000 bytes, got 78528 for test_images.npy"):
        load_digits(tmp_path, "test")


def test_pictures_come_in_the_order_of_their_names_channels_first(tmp_path):
    images = pictures(3)
    members = {f"faces/{i}.png": encoded(images[i]) for i in (2, 0, 1)}
    path = write_archive(tmp_path / "some.zip", {"faces/": b"", **members})
    found = load_pictures(path, 8)
    assert found.dtype == torch.uint8
    assert torch.equal(found, torch.from_numpy(images).permute(0, 3, 1, 2))


def test_grey_pictures_get_three_channels(tmp_path):
    path = write_archive(tmp_path / "grey.zip", {"a.png": encoded(pictures(1)[0, ..., 0])})
    found = load_pictures(path, 8)[0]
    assert torch.equal(found[0], found[2])


def test_pixels_are_scaled_to_minus_one_and_one():
    values = scaled(torch.tensor([0, 255], dtype=torch.uint8))
    assert values.tolist() == [-1, 1]
    assert values.dtype == torch.float32


def test_an_archive_that_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"pictures in .*anime_64.zip, but there is no such file"):
        load_pictures(tmp_path / "anime_64.zip", 64)


def test_a_file_that_is_not_an_archive_is_refused(tmp_path):
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(ValueError, match=r"expected a zip archive in .*text.zip"):
        load_pictures(tmp_path / "text.zip", 8)


def test_an_archive_that_is_damaged_is_refused(tmp_path):
    path = write_archive(tmp_path / "cut.zip", {"a.png": encoded(pictures(1)[0])})
    content = bytearray(path.read_bytes())
    content[60] ^= 255  # flips a byte of the picture, so its checksum is wrong
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"expected a zip archive in .*cut.zip: Bad CRC"):
        load_pictures(path, 8)


def test_an_empty_archive_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected 1 to \d+ pictures in .*, got 0"):
        load_pictures(write_archive(tmp_path / "empty.zip", {}), 8)


def test_more_pictures_than_memory_should_hold_are_refused(tmp_path, monkeypatch):
    members = {f"{i}.png": encoded(picture) for i, picture in enumerate(pictures(3))}
    path = write_archive(tmp_path / "many.zip", members)
    monkeypatch.setattr(data, "_MOST_BYTES", 2 * 3 * 8 * 8)
    with pytest.raises(ValueError, match=r"expected 1 to 2 pictures in .*, got 3"):
        load_pictures(path, 8)


def test_pictures_of_another_size_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = write_archive(tmp_path / "large.zip", {"a.png": encoded(pictures(1, side=9)[0])})
    monkeypatch.setattr(Image.Image, "convert", None)  # decoding would fail on this
    with pytest.raises(ValueError, match=r"pictures of 8 x 8 pixels, got 9 x 9 for a.png in"):
        load_pictures(path, 8)


def test_a_member_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(2**21))
    monkeypatch.setattr(zipfile.ZipFile, "open", None)
    with pytest.raises(ValueError, match=r"at most 1048576 bytes, got 2097152 for a.png in"):
        load_pictures(tmp_path / "bomb.zip", 8)


def test_a_member_that_unpacks_to_more_than_it_says_is_unpacked_no_further(tmp_path):
    """A member's size is stated in two fields of the archive, which anybody can forge."""
    path, size = tmp_path / "lying.zip", 2**28 - 12345
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(size))
    true, false = (number.to_bytes(4, "little") for number in (size, 1000))
    assert path.read_bytes().count(true) == 2
    path.write_bytes(path.read_bytes().replace(true, false))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"a.png|Bad CRC"):
        load_pictures(path, 8)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_whose_compression_has_no_size_limit_is_refused(tmp_path, compression):
    with zipfile.ZipFile(tmp_path / "odd.zip", "w", compression) as archive:
        archive.writestr("a.png", encoded(pictures(1)[0]))
    with pytest.raises(ValueError, match=r"stored or deflated, got a\.png in"):
        load_pictures(tmp_path / "odd.zip", 8)


def test_an_archive_that_unpacks_to_too_much_in_all_is_refused(tmp_path, monkeypatch):
    members = {f"{i}.bmp": encoded(picture, "BMP") for i, picture in enumerate(pictures(3))}
    path = write_archive(tmp_path / "many.zip", members)
    monkeypatch.setattr(data, "_MOST_BYTES", 3 * 3 * 8 * 8 + 1)  # plus headers
    with pytest.raises(ValueError, match=r"expected 1 to 3 pictures in .*, got 3"):
        load_pictures(path, 8)


def test_a_picture_that_would_run_a_program_is_refused(tmp_path):
    """PostScript is a programming language; Pillow would run it with Ghostscript."""
    file = io.BytesIO()
    Image.fromarray(pictures(1)[0]).save(file, "EPS")
    path = write_archive(tmp_path / "program.zip", {"a.png": file.getvalue()})
    with pytest.raises(ValueError, match=r"expected a picture, got a\.png in"):
        load_pictures(path, 8)


def test_a_picture_of_a_hundred_thousand_pixels_a_side_is_refused(tmp_path):
    """The size is in its header; decoded, it would take 30 GB."""
    content = bytearray(encoded(pictures(1)[0]))
    content[16:24] = (100_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path = write_archive(tmp_path / "bomb.zip", {"a.png": bytes(content)})
    with pytest.raises(ValueError, match=r"got a\.png in .*decompression bomb"):
        load_pictures(path, 8)


@pytest.mark.parametrize("content", [b"text", encoded(pictures(1)[0])[:-40]])
def test_a_member_that_is_not_a_complete_picture_is_refused(tmp_path, content):
    path = write_archive(tmp_path / "odd.zip", {"a.png": content})
    with pytest.raises(ValueError, match=r"expected a picture, got a.png in .*odd.zip"):
        load_pictures(path, 8)


def test_faces_are_held_out_from_the_end(tmp_path):
    images = pictures(5)
    members = {f"{i}.png": encoded(picture) for i, picture in enumerate(images)}
    write_archive(tmp_path / "anime_64.zip", members)
    recipe = FaceRecipe(latent_dim=2, epochs=1, faces="anime", held_out=2, data_shape=(3, 8, 8))
    known, held_out = recipe.load(tmp_path)
    assert (len(known), len(held_out)) == (3, 2)
    assert torch.equal(held_out[1], torch.from_numpy(images[4]).permute(2, 0, 1))
    greedy = FaceRecipe(latent_dim=2, epochs=1, faces="anime", held_out=5, data_shape=(3, 8, 8))
    with pytest.raises(ValueError, match=r"expected more than 5 pictures in .*, got 5"):
        greedy.load(tmp_path)


@pytest.mark.parametrize("faces", ["anime", "celeba"])
def test_the_real_archives_hold_what_the_cards_say(data_folder, faces):
    with zipfile.ZipFile(data_folder / f"{faces}_64.zip") as archive:
        num = len(archive.namelist())
    recipe = FaceRecipe(latent_dim=2, epochs=1, faces=faces)
    assert recipe.about["data"].startswith(f"{num:,} ")
