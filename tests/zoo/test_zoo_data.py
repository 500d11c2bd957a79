"""Reading training data: what comes out, and archives that are not what they should be."""

import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from crosscoding.zoo import data
from crosscoding.zoo.data import load_digits, load_pictures, scaled
from crosscoding.zoo.recipe import FaceRecipe


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
        ValueError, match=r"expected MNIST in .*mnist.npz, and there is no such file"
    ):
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
    with pytest.raises(ValueError, match=r"pictures in .*anime_64.zip, and there is no such file"):
        load_pictures(tmp_path / "anime_64.zip", 64)


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(ValueError, match=r"expected a zip archive in .*text.zip"):
        load_pictures(tmp_path / "text.zip", 8)


def test_an_archive_that_is_damaged_is_refused(tmp_path):
    path = write_archive(tmp_path / "cut.zip", {"a.png": encoded(pictures(1)[0])})
    content = bytearray(path.read_bytes())
    content[60] ^= 255  # a byte of the picture: its checksum is wrong now
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
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    with pytest.raises(ValueError, match=r"at most 1048576 bytes, got 2097152 for a.png in"):
        load_pictures(tmp_path / "bomb.zip", 8)


@pytest.mark.parametrize("content", [b"text", encoded(pictures(1)[0])[:-40]])
def test_a_member_that_is_no_whole_picture_is_refused(tmp_path, content):
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
