"""Folders of tensors and JSON: whole or not at all, and nothing in them is ever run."""

import json
import os
import pathlib
import pickle

import pytest
import torch
from safetensors.torch import save_file

import crosscoding as cc
from crosscoding.storage import Folder, fingerprint, prefixed, read_folder, under, write_folder

PARTS = ({"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.tensor([True])}, {"size": [1, 2]})


@pytest.fixture
def saved(tmp_path):
    write_folder(tmp_path / "model", "vae", PARTS)
    return tmp_path / "model"


def test_a_folder_holds_what_was_written(saved):
    tensors, description = read_folder(saved, "vae")
    assert description == {"kind": "vae", "size": [1, 2]}
    assert tensors.keys() == PARTS[0].keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == PARTS[0][name].dtype
        assert torch.equal(tensor, PARTS[0][name])


def test_views_and_shared_tensors_are_written_apart(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    write_folder(tmp_path / "m", "vae", ({"t": base.mT, "row": base[1], "all": base}, {}))
    tensors, _ = read_folder(tmp_path / "m", "vae")
    assert torch.equal(tensors["t"], base.mT)
    assert torch.equal(tensors["row"], base[1])


def test_parents_are_made(tmp_path):
    write_folder(tmp_path / "not" / "yet" / "there", "vae", PARTS)
    assert read_folder(tmp_path / "not" / "yet" / "there", "vae")[1]["size"] == [1, 2]


def test_the_same_kind_is_overwritten(saved):
    write_folder(saved, "vae", ({"z": torch.zeros(1)}, {}))
    assert read_folder(saved, "vae")[0].keys() == {"z"}


def test_another_kind_is_not_overwritten(saved):
    """A posterior saved by mistake over a model would take the model's place."""
    with pytest.raises(ValueError, match=r"a saved posterior at .*model, got"):
        write_folder(saved, "posterior", PARTS)
    assert read_folder(saved, "vae")[1]["size"] == [1, 2]


def test_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match=r"a new folder or a saved vae at .*got something else"):
        write_folder(tmp_path, "vae", PARTS)
    with pytest.raises(ValueError, match="got something else"):
        write_folder(tmp_path / "thesis.txt", "vae", PARTS)
    assert (tmp_path / "thesis.txt").read_text() == "all of it"


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write to .*file"):
        write_folder(tmp_path / "file" / "model", "vae", PARTS)


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path):
    with pytest.raises(TypeError):
        write_folder(tmp_path / "model", "vae", ({}, {"no JSON": object()}))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_leaves_the_old_as_it_was(saved):
    with pytest.raises(TypeError):
        write_folder(saved, "vae", ({}, {"no JSON": object()}))
    assert read_folder(saved, "vae")[1]["size"] == [1, 2]
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


class Interrupted(BaseException):
    """As where the process ends."""


def interrupt(monkeypatch, module, name, call):
    """Raise in place of a call of a function, by its number, and of all that follow."""
    function, calls = getattr(module, name), []

    def counted(*args, **kwargs):
        calls.append(args)
        if len(calls) > call:
            raise Interrupted
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, counted)


NEW = ({"a": torch.ones(4)}, {"size": [3]})
STEPS = {
    "before the tensors": (os, "replace", 0, PARTS),
    "between tensors and description": (os, "replace", 1, PARTS),
    "before the old tensors are removed": (pathlib.Path, "unlink", 0, NEW),
}


@pytest.mark.parametrize("again", [False, True], ids=["first", "second"])
@pytest.mark.parametrize(("module", "name", "call", "wanted"), STEPS.values(), ids=STEPS)
def test_a_save_that_is_interrupted_leaves_the_old_or_the_new(
    saved, monkeypatch, module, name, call, wanted, again
):
    for _ in range(again):  # from one name of the tensors' file to the other and back
        write_folder(saved, "vae", PARTS)
    with monkeypatch.context() as patched:
        interrupt(patched, module, name, call)
        with pytest.raises(Interrupted):
            write_folder(saved, "vae", NEW)
    tensors, description = read_folder(saved, "vae")
    assert description == {"kind": "vae", **wanted[1]}
    torch.testing.assert_close(tensors, wanted[0])
    write_folder(saved, "vae", NEW)  # and what was left behind is in nobody's way
    assert read_folder(saved, "vae")[1]["size"] == [3]
    assert len(list(saved.iterdir())) == 2


def test_other_files_in_the_folder_stay(saved):
    (saved / "README.md").write_text("faces")
    for _ in range(2):
        write_folder(saved, "vae", NEW)
    assert (saved / "README.md").read_text() == "faces"


@pytest.mark.parametrize("name", ["../elsewhere", "README.md", 3, [], None])
def test_tensors_by_another_name_are_not_read_and_not_removed(saved, name):
    (saved.parent / "elsewhere").write_text("all of it")
    path = saved / "description.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tensors_file": name}))
    with pytest.raises(
        cc.ModelFormatError, match=r"expected tensors.safetensors or tensors-2\.saf"
    ):
        read_folder(saved, "vae")
    write_folder(saved, "vae", NEW)
    assert (saved.parent / "elsewhere").read_text() == "all of it"
    assert read_folder(saved, "vae")[1]["size"] == [3]


def test_names_are_put_under_a_prefix_and_taken_out_again():
    tensors = {"a": torch.zeros(1), "b.a": torch.ones(1)}
    both = prefixed(tensors, "x") | {"xy.a": torch.ones(2), "x": torch.ones(3)}
    assert under(both, "x").keys() == {"a", "b.a"}
    assert under(both, "x")["b.a"] is tensors["b.a"]


# ---- checksums ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors["a"].add_(1e-6),
        lambda tensors: tensors.update(a=tensors["a"].reshape(3, 2)),
        lambda tensors: tensors.update(a=tensors["a"].view(torch.int32)),
    ],
    ids=["values", "shape", "dtype"],
)
def test_a_tensor_that_was_changed_is_named(saved, change):
    tensors = dict(PARTS[0], a=PARTS[0]["a"].clone())
    change(tensors)
    save_file(tensors, saved / "tensors.safetensors")
    with pytest.raises(cc.ModelFormatError, match="as it was saved: tensor 'a' is damaged"):
        read_folder(saved, "vae")


def test_a_tensor_that_is_missing_or_left_over_is_named(saved):
    for tensors in ({"a": PARTS[0]["a"]}, PARTS[0] | {"new": torch.zeros(1)}):
        save_file(tensors, saved / "tensors.safetensors")
        with pytest.raises(cc.ModelFormatError, match=r"'(b\.c|new)' is missing or left over"):
            read_folder(saved, "vae")


def test_a_description_that_was_changed_is_refused(saved):
    path = saved / "description.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"size": [2, 1]}))
    with pytest.raises(cc.ModelFormatError, match=r"description\.json as it was saved: it was"):
        read_folder(saved, "vae")


@pytest.mark.parametrize("kind", ["vae", "posterior"])
def test_what_has_no_checksums_is_refused(tmp_path, kind):
    write_folder(tmp_path / "saved", kind, PARTS)
    path = tmp_path / "saved" / "description.json"
    description = json.loads(path.read_text())
    del description["checksums"]
    path.write_text(json.dumps(description))
    with pytest.raises(cc.ModelFormatError, match=r"expected checksums in .*json, got none"):
        read_folder(tmp_path / "saved", kind)


@pytest.mark.parametrize(
    "wrong", [3, [], {}, {"tensors": 3}, {"tensors": {}}, {"tensors": {"a": 1}}]
)
def test_checksums_that_are_none_are_refused(saved, wrong):
    path = saved / "description.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"checksums": wrong}))
    with pytest.raises(cc.ModelFormatError):
        read_folder(saved, "vae")


def test_fingerprints_are_of_names_dtypes_shapes_values_and_description():
    a, same = torch.arange(6.0), torch.arange(6.0)
    others = [
        ({"b": a}, {}),
        ({"a": a.reshape(2, 3)}, {}),
        ({"a": a.view(torch.int32)}, {}),
        ({"a": -a}, {}),
        ({"a": a}, {"b": 1}),
    ]
    assert fingerprint({"a": a}, {}) == fingerprint({"a": same}, {})
    assert len({fingerprint(*parts) for parts in [({"a": a}, {}), *others]}) == 6


# ---- damaged and hostile ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tensors.safetensors", "description.json"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(cc.ModelFormatError, match=f"expected a saved vae in .*{name} is missing"):
        read_folder(saved, "vae")


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(cc.ModelFormatError, match="is missing"):
        read_folder(tmp_path / "nowhere", "vae")


def test_another_kind_is_refused(saved):
    with pytest.raises(cc.ModelFormatError, match="expected the description of a posterior"):
        read_folder(saved, "posterior")


@pytest.mark.parametrize("content", ["[]", '"vae"', "{}", "null", '{"kind": 3}'])
def test_json_that_is_no_description_is_refused(saved, content):
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
def test_what_is_no_json_is_refused(saved, content):
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
def test_what_might_never_end_is_not_opened(saved, name, endless):
    (saved / name).unlink()
    if endless == "pipe":
        os.mkfifo(saved / name)
    else:
        (saved / name).symlink_to("/dev/zero")
    with pytest.raises(cc.ModelFormatError, match=f"{name} is no plain file"):
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
def test_safetensors_without_a_whole_header_are_said_to_be_cut_off(saved, size):
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
def test_a_pickle_in_place_of_tensors_is_named_with_a_way_out(saved, write):
    write(torch.zeros(1), saved / "tensors.safetensors")
    with pytest.raises(cc.ModelFormatError, match=WAY_OUT):
        read_folder(saved, "vae")


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "pytorch_model.bin", "last.ckpt", "x"])
@every_writer
def test_a_pickle_under_any_name_is_refused_with_a_way_out(tmp_path, name, write):
    write(Bomb(tmp_path / "exploded"), tmp_path / name)
    with pytest.raises(cc.ModelFormatError, match=f"it is a file; {name} {WAY_OUT}"):
        read_folder(tmp_path / name, "vae")
    with pytest.raises(cc.ModelFormatError, match=f"json is missing; {name} {WAY_OUT}"):
        read_folder(tmp_path, "vae")
    assert not (tmp_path / "exploded").exists()


def test_a_file_that_is_no_pickle_is_refused_without(saved):
    with pytest.raises(cc.ModelFormatError, match=r"tensors\.safetensors, and it is a file$"):
        read_folder(saved / "tensors.safetensors", "vae")
