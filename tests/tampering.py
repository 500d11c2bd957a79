"""Saved folders changed behind the back of whoever reads them."""

import json

from safetensors.torch import load_file, save_file

from crosscoding.storage import checksums


def reseal(folder, change):
    """Change tensors and description, and their checksums too: what lies deeper must notice."""
    tensors = load_file(folder / "tensors.safetensors")
    description = json.loads((folder / "description.json").read_text())
    del description["checksums"]
    change(tensors, description)
    description["checksums"] = checksums(tensors, description)
    save_file(tensors, folder / "tensors.safetensors")
    (folder / "description.json").write_text(json.dumps(description))
