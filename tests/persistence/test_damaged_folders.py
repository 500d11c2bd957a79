"""Damaged or malicious folders of tensors and JSON are refused, and no code in them is run."""

import json
import os
import pickle

import pytest
import torch

import crosscoding as cc
from crosscoding.persistence.folder import Folder, read_folder, write_folder

PARTS = ({"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.tensor([True])}, {"size": [1, 2]})


@pytest.fixture
def saved(tmp_path):
    write_folder(tmp_path / "model", "vae", PARTS)
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["tensors.safetensors", "description.json"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(cc.ModelFormatError, match=f"expected a saved vae in .*{name} is missing"):
        read_folder(saved, "vae")


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(cc.ModelFormatError, match="is missing"):
        read_folder(tmp_path / "nowhere", "vae")


def test_another_kind_is_refused(saved):
    with pytest.raises(cc.ModelFormatError, match="expected the description of a posterior"):
        read_folder(saved, "posterior")


@pytest.mark.parametrize("content", ["[]", '"vae"', "{}", "null", '{"kind": 3}'])
def test_json_that_is_not_a_description_is_refused(saved, content):
    (saved / "description.json").write_text(content)
    with pytest.raises(cc.ModelFormatError, match="expected the description of a vae"):
        read_folder(saved, "vae")


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b'{"kind": "vae"', b"\xff\xfe\x00", b"9" * 10_000, b"[" * 100_000),
        b'{"kind": "vae", "a": ' + b"[" * 60 + b"]" * 60 + b"}",
        b'{"kind": "posterior", "kind": "vae"}',
        b'{"kind": "vae", "a": {"b": 1, "b": 2}}',
    ],
    ids=[
        *("empty", "brace", "cut off", "not UTF-8", "a huge number", "nested without end"),
        *("nested too deep", "a name twice", "a name twice further in"),
    ],
)
def test_a_description_that_is_not_json_is_refused(saved, content):
    (saved / "description.json").write_bytes(content)
    with pytest.raises(cc.ModelFormatError, match=r"expected JSON in .*description\.json"):
        read_folder(saved, "vae")


def test_a_description_of_gigabytes_is_not_read(saved):
    with (saved / "description.json").open("r+b") as file:
        file.truncate(2**33)  # sparse: takes no room on the disk
    with pytest.raises(cc.ModelFormatError, match="under 4194304 bytes"):
        read_folder(saved, "vae")


@pytest.mark.parametrize("name", ["tensors.safetensors", "description.json"])
@pytest.mark.parametrize("endless", ["pipe", "device"])
def test_a_file_that_may_never_end_is_not_opened(saved, name, endless):
    (saved / name).unlink()
    if endless == "pipe":
        os.mkfifo(saved / name)
    else:
        (saved / name).symlink_to("/dev/zero")
    with pytest.raises(cc.ModelFormatError, match=f"{name} is not a regular file"):
        read_folder(saved, "vae")


@pytest.mark.parametrize("name", ["tensors.safetensors", "description.json"])
@pytest.mark.parametrize("relative", [True, False])
def test_a_link_to_a_file_elsewhere_is_refused(saved, name, relative):
    elsewhere = saved.parent / "elsewhere"
    (saved / name).rename(elsewhere)
    (saved / name).symlink_to(f"../{elsewhere.name}" if relative else elsewhere)
    with pytest.raises(cc.ModelFormatError, match=rf"{name} in its folder, got a link to .*copy"):
        read_folder(saved, "vae")


def test_a_link_to_the_folder_and_one_that_stays_in_it_are_followed(saved, tmp_path):
    (saved / "tensors.safetensors").rename(saved / "blob")
    (saved / "tensors.safetensors").symlink_to("blob")
    (tmp_path / "link").symlink_to(saved)
    assert read_folder(tmp_path / "link", "vae")[1]["size"] == [1, 2]


def test_shapes_are_known_before_tensors_are_read(saved):
    folder = Folder(saved, "vae")
    assert folder.shapes == {"a": [2, 3], "b.c": [1]}
    assert folder.read()[0].keys() == folder.shapes.keys()


def test_safetensors_cut_off_anywhere_are_refused(saved):
    path = saved / "tensors.safetensors"
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(cc.ModelFormatError, match="expected safetensors in"):
            read_folder(saved, "vae")


@pytest.mark.parametrize("size", [0, 1, 4, 7, 8, 20])
def test_safetensors_with_an_incomplete_header_are_reported_as_cut_off(saved, size):
    path = saved / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    said = rf"in .*tensors\.safetensors, got a file of {size} bytes that ends within its header"
    with pytest.raises(cc.ModelFormatError, match=said):
        read_folder(saved, "vae")


@pytest.mark.parametrize(
    ("size", "said"), [(0, "it is empty"), (1, "Expecting .* line 1 column 2"), (-3, "Expecting")]
)
def test_a_description_that_was_cut_off_is_named_with_the_place(saved, size, said):
    path = saved / "description.json"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(cc.ModelFormatError, match=rf"JSON in .*description\.json: {said}"):
        read_folder(saved, "vae")


def header(content: object, data: bytes = b"") -> bytes:
    text = json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_a_header_that_says_it_is_large_is_not_read(saved):
    with (saved / "tensors.safetensors").open("wb") as file:
        file.write((2**30).to_bytes(8, "little") + b"{")
        file.truncate(2**33)  # sparse: takes no room on the disk
    with pytest.raises(cc.ModelFormatError, match=r"header under 4194304 bytes, got .* 1073741824"):
        read_folder(saved, "vae")


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 8 + b"{}",
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**40]}}, b"\0" * 8),
        header({"a": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 8]}}, b"\0" * 8),
        header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 8]}}, b"\0" * 8),
        header({"a": {"dtype": "object", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8),
        header([]),
    ],
    ids=["length", "offsets", "size", "negative", "dtype", "list"],
)
def test_safetensors_with_a_false_header_are_refused(saved, content):
    (saved / "tensors.safetensors").write_bytes(content)
    with pytest.raises(cc.ModelFormatError, match="expected safetensors in"):
        read_folder(saved, "vae")


class Bomb:
    """A pickle that makes a folder when it is opened."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


WRITERS = {
    "pickle": lambda bomb, path: path.write_bytes(pickle.dumps(bomb)),
    "torch": lambda bomb, path: torch.save({"a": bomb}, path),
    "torch of old": lambda bomb, path: torch.save(
        {"a": bomb}, path, _use_new_zipfile_serialization=False
    ),
}
every_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
WAY_OUT = r"looks like a pickle.*torch\.load\(path, weights_only=True\).*safetensors.*save_file"


@pytest.mark.parametrize("name", ["tensors.safetensors", "description.json"])
@every_writer
def test_a_pickle_is_refused_and_not_run(saved, name, write):
    write(Bomb(saved / "exploded"), saved / name)
    with pytest.raises(cc.ModelFormatError):
        read_folder(saved, "vae")
    assert not (saved / "exploded").exists()


@every_writer
def test_a_pickle_in_place_of_tensors_is_named_with_advice(saved, write):
    write(torch.zeros(1), saved / "tensors.safetensors")
    with pytest.raises(cc.ModelFormatError, match=WAY_OUT):
        read_folder(saved, "vae")


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "pytorch_model.bin", "last.ckpt", "x"])
@every_writer
def test_a_pickle_under_any_name_is_refused_with_advice(tmp_path, name, write):
    write(Bomb(tmp_path / "exploded"), tmp_path / name)
    with pytest.raises(cc.ModelFormatError, match=f"it is a file; {name} {WAY_OUT}"):
        read_folder(tmp_path / name, "vae")
    with pytest.raises(cc.ModelFormatError, match=f"json is missing; {name} {WAY_OUT}"):
        read_folder(tmp_path, "vae")
    assert not (tmp_path / "exploded").exists()


def test_a_file_that_is_not_a_pickle_is_refused_without_advice(saved):
    with pytest.raises(cc.ModelFormatError, match=r"tensors\.safetensors, but it is a file$"):
        read_folder(saved / "tensors.safetensors", "vae")
