"""Folders of tensors and JSON: written completely or not at all, with checksums."""

import json
import os
import pathlib

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

import crosscoding as cc
from crosscoding.persistence.folder import fingerprint, prefixed, read_folder, under, write_folder

PARTS = ({"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.tensor([True])}, {"size": [1, 2]})


@pytest.fixture
def saved(tmp_path):
    write_folder(tmp_path / "model", "vae", PARTS)
    return tmp_path / "model"


def test_a_folder_contains_what_was_written(saved):
    tensors, description = read_folder(saved, "vae")
    assert description == {"kind": "vae", "size": [1, 2]}
    assert tensors.keys() == PARTS[0].keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == PARTS[0][name].dtype
        assert torch.equal(tensor, PARTS[0][name])


def test_views_and_shared_tensors_are_written_separately(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    write_folder(tmp_path / "m", "vae", ({"t": base.mT, "row": base[1], "all": base}, {}))
    tensors, _ = read_folder(tmp_path / "m", "vae")
    assert torch.equal(tensors["t"], base.mT)
    assert torch.equal(tensors["row"], base[1])


def test_parent_folders_are_created(tmp_path):
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


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match=r"a new folder or a saved vae at .*got something else"):
        write_folder(tmp_path, "vae", PARTS)
    with pytest.raises(ValueError, match="got something else"):
        write_folder(tmp_path / "thesis.txt", "vae", PARTS)
    assert (tmp_path / "thesis.txt").read_text() == "all of it"


def test_a_path_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write to .*file"):
        write_folder(tmp_path / "file" / "model", "vae", PARTS)


@pytest.mark.parametrize("there", [False, True], ids=["dangling", "of a model"])
def test_a_link_is_followed(tmp_path, there):
    (tmp_path / "link").symlink_to(tmp_path / "below" / "model")
    for _ in range(1 + there):
        write_folder(tmp_path / "link", "vae", PARTS)
    assert (tmp_path / "link").is_symlink()
    assert read_folder(tmp_path / "below" / "model", "vae")[1]["size"] == [1, 2]


def test_links_in_a_circle_are_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "link")
    with pytest.raises(ValueError, match=r"cannot write to .*link"):
        write_folder(tmp_path / "link", "vae", PARTS)


@pytest.mark.parametrize("error", [OSError(28, "No space left"), SafetensorError("No space left")])
def test_a_full_disk_is_named(tmp_path, monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr("crosscoding.persistence.folder.save_file", full)
    with pytest.raises(ValueError, match=r"cannot write to .*model: No space left"):
        write_folder(tmp_path / "model", "vae", PARTS)


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_folder(tmp_path / "model", "vae", PARTS)
    finally:
        os.umask(before)
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o750


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    with pytest.raises(TypeError):
        write_folder(tmp_path / "model", "vae", ({}, {"no JSON": object()}))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_folder_unchanged(saved):
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
def test_an_interrupted_save_leaves_the_old_or_the_new_folder(
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
def test_tensors_in_other_files_are_neither_read_nor_removed(saved, name):
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


def test_prefixes_are_added_to_names_and_removed_again():
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


def test_a_missing_or_extra_tensor_is_named(saved):
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
def test_a_folder_without_checksums_is_refused(tmp_path, kind):
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
def test_invalid_checksums_are_refused(saved, wrong):
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
