"""Arrays in JSON: both forms, and what is wrong with others in one sentence."""

import base64
import json

import numpy as np
import pytest
import torch

from crosscoding.serve.json_arrays import Packed, array_of, listed, mask_of, packed


def test_nulls_are_missing():
    np.testing.assert_array_equal(
        array_of("values", [[1, None], [2.5, 3]]), [[1, np.nan], [2.5, 3]]
    )


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "bool"])
def test_packed_arrays_are_those_that_were_sent(dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    sent = Packed(base64.b64encode(array.tobytes()).decode(), dtype, [2, 3])
    found = array_of("values", sent)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_what_is_packed_can_be_unpacked():
    tensor = torch.tensor([[0.1, torch.nan]])
    np.testing.assert_array_equal(array_of("x", Packed(**packed(tensor))), tensor.numpy())


def test_lists_hold_no_nan_and_no_infinity():
    tensor = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf])
    assert json.dumps(listed(tensor), allow_nan=False) == "[1.0, null, null, null]"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([[1.0], [1.0, 2.0]], "values: expected nested lists of one shape"),
        ([10**400], "values: expected nested lists of one shape"),
        ([float("inf")], "values: expected finite numbers"),
        (Packed("AAAA", "float32", [2]), "values: expected 8 bytes for float32 of shape"),
        (Packed("!!", "float32", [1]), "values: expected base64"),
        (Packed("", "float16", [0]), "values: expected a dtype among float32"),
        (Packed("", "float32", [-1]), "values: expected a shape of sizes >= 0"),
    ],
)
def test_errors_name_the_field(given, words):
    with pytest.raises(ValueError, match=words):
        array_of("values", given)


def test_masks_are_true_and_false():
    assert mask_of("one_of", [[True, False]]).tolist() == [[True, False]]
    for wrong in ([[1, 0]], [[True], [True, False]]):
        with pytest.raises(ValueError, match="one_of: expected"):
            mask_of("one_of", wrong)
