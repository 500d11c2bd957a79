"""Changes to saved folders, with checksums made to match, so that deeper checks must notice."""

import json

from safetensors.torch import load_file, save_file

from crosscoding.persistence.folder import checksums


def reseal(folder, change):
    """Change the tensors and the description of a folder by a function of the two."""
    tensors = load_file(folder / "tensors.safetensors")
    description = json.loads((folder / "description.json").read_text())
    del description["checksums"]
    change(tensors, description)
    description["checksums"] = checksums(tensors, description)
    save_file(tensors, folder / "tensors.safetensors")
    (folder / "description.json").write_text(json.dumps(description))


def edit_parts(change):
    """A function that reseals the folder it is given with this change, as those below do."""
    return lambda folder: reseal(folder, change)


def edit_description(**changes):
    """Set fields of the description."""
    return edit_parts(lambda _, description: description.update(changes))


def without_description(key):
    """Remove a field of the description."""
    return edit_parts(lambda _, description: description.pop(key))


def edit_tensor(name, change):
    """Change a tensor by a function of it."""
    return edit_parts(lambda tensors, _: tensors.update({name: change(tensors[name]).contiguous()}))


def add_tensor(name, tensor):
    """Add a tensor."""
    return edit_parts(lambda tensors, _: tensors.update({name: tensor}))


def without_tensor(name):
    """Remove a tensor."""
    return edit_parts(lambda tensors, _: tensors.pop(name))
