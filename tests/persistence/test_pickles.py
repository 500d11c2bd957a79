"""Pickles are recognised by content, whatever their names; other archives pass."""

import os
import pickle
import zipfile

import pytest
import torch

from crosscoding.errors import ModelFormatError
from crosscoding.persistence.pickles import refuse_pickle, way_out


def archive(path, name):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(name, b"")


TENSORS = {"a": torch.ones(3)}
PICKLES = {
    "pickle": lambda path: path.write_bytes(pickle.dumps(TENSORS)),
    "pickle of protocol 2": lambda path: path.write_bytes(pickle.dumps(TENSORS, 2)),
    "torch": lambda path: torch.save(TENSORS, path),
    "torch of old": lambda path: torch.save(TENSORS, path, _use_new_zipfile_serialization=False),
    "torch, cut off": lambda path: (
        torch.save(TENSORS, path),
        path.write_bytes(path.read_bytes()[:-30]),
    ),
    "script": lambda path: torch.jit.script(torch.nn.Linear(2, 3)).save(path),
}
OTHERS = {
    "nothing": lambda path: None,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("P"),
    "archive": lambda path: archive(path, "face.png"),
    "archive of arrays": lambda path: archive(path, "data.npy"),
    "folder": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of scripts
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "model"])
@pytest.mark.parametrize("write", PICKLES.values(), ids=PICKLES)
def test_a_pickle_is_recognised_by_its_content(tmp_path, write, name):
    write(tmp_path / name)
    said = rf"^expected no pickle, but {name} looks like a pickle.* if you trust it, convert it$"
    with pytest.raises(ModelFormatError, match=said):
        refuse_pickle(tmp_path / name, "convert it")
    assert "weights_only=True" in way_out(tmp_path / name)


@pytest.mark.parametrize("write", OTHERS.values(), ids=OTHERS)
def test_other_files_than_pickles_pass(tmp_path, write):
    write(tmp_path / "model.pt")
    refuse_pickle(tmp_path / "model.pt", "convert it")
    assert way_out(tmp_path / "model.pt") == ""


def test_an_exported_program_is_more_than_a_pickle(tmp_path):
    """It holds some, and has a door of its own."""
    program = torch.export.export(torch.nn.Linear(2, 3).eval(), (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "program.pt2")
    refuse_pickle(tmp_path / "program.pt2", "convert it")
