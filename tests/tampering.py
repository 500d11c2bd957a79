"""Saved folders changed behind the back of whoever reads them.

Checksums are changed along with the rest, so that what lies deeper must notice.
"""

import json

from safetensors.torch import load_file, save_file

from crosscoding.persistence.folder import checksums


def reseal(folder, change):
    """Change tensors and description of a folder, by a function of the two."""
    tensors = load_file(folder / "tensors.safetensors")
    description = json.loads((folder / "description.json").read_text())
    del description["checksums"]
    change(tensors, description)
    description["checksums"] = checksums(tensors, description)
    save_file(tensors, folder / "tensors.safetensors")
    (folder / "description.json").write_text(json.dumps(description))


def edit_parts(change):
    """A function that does so to the folder it is given; and those below."""
    return lambda folder: reseal(folder, change)


def edit_description(**changes):
    """Other values for fields of the description."""
    return edit_parts(lambda _, description: description.update(changes))


def without_description(key):
    """A field taken out of the description."""
    return edit_parts(lambda _, description: description.pop(key))


def edit_tensor(name, change):
    """Another tensor, by a function of what it was."""
    return edit_parts(lambda tensors, _: tensors.update({name: change(tensors[name]).contiguous()}))


def add_tensor(name, tensor):
    """A tensor more."""
    return edit_parts(lambda tensors, _: tensors.update({name: tensor}))


def without_tensor(name):
    """A tensor taken out."""
    return edit_parts(lambda tensors, _: tensors.pop(name))
