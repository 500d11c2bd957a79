"""Evidence: what was observed is kept bit for bit, what was not cannot be seen."""

import dataclasses

import numpy as np
import pytest
import torch
from problems import seeded

import crosscoding as cc

VALUES = torch.tensor([[1.0, 0.25, -0.0], [0.1, 3.0, 5.0]])
MASK = torch.tensor([[True, False, True], [False, False, True]])


def test_observed_values_are_kept_bit_for_bit():
    evidence = cc.Evidence(VALUES, MASK)
    kept = evidence.values[MASK].view(torch.int32)  # bits, as 0.0 == -0.0
    assert torch.equal(kept, VALUES[MASK].view(torch.int32))


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_unobserved_values_are_replaced_by_zero(junk):
    evidence = cc.Evidence(torch.where(MASK, VALUES, junk), MASK)
    assert torch.equal(evidence.values[~MASK], torch.zeros(3))


def test_the_tensors_that_were_passed_are_neither_changed_nor_shared():
    values, mask = VALUES.clone(), MASK.clone()
    evidence = cc.Evidence(values, mask)
    assert torch.equal(values, VALUES)
    values.fill_(9.0)
    mask.fill_(True)
    assert torch.equal(evidence.values, torch.where(MASK, VALUES, 0.0))
    assert torch.equal(evidence.mask, MASK)


def test_values_that_require_gradients_are_detached():
    assert not cc.Evidence(VALUES.clone().requires_grad_(), MASK).values.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_is_that_of_the_values(dtype):
    assert cc.Evidence(VALUES.to(dtype), MASK).values.dtype == dtype


@pytest.mark.parametrize(
    "mask", [MASK[0], torch.tensor(True), torch.tensor([[True], [False]])], ids=["row", "()", "col"]
)
def test_the_mask_is_broadcast_to_the_values(mask):
    evidence = cc.Evidence(VALUES, mask)
    assert evidence.mask.shape == VALUES.shape
    assert torch.equal(evidence.mask, mask | torch.zeros(2, 3, dtype=torch.bool))


def test_from_nan_reads_nan_as_not_observed():
    evidence = cc.Evidence.from_nan(torch.where(MASK, VALUES, torch.nan))
    assert torch.equal(evidence.mask, MASK)
    assert torch.equal(evidence.values, torch.where(MASK, VALUES, 0.0))


def test_num_observed_counts_the_mask():
    assert cc.Evidence(VALUES, MASK).num_observed.item() == 3


def test_flatten_makes_one_batch_dimension_and_keeps_the_order():
    values = torch.arange(24.0).reshape(2, 3, 4)
    mask = torch.rand(2, 3, 4, generator=seeded(0)) < 0.5
    flat = cc.Evidence(values, mask).flatten(1)
    assert torch.equal(flat.values, torch.where(mask, values, 0.0).reshape(6, 4))
    assert torch.equal(flat.mask, mask.reshape(6, 4))


def test_flatten_of_one_query_has_a_batch_of_one():
    assert cc.Evidence(VALUES, MASK).flatten(2).values.shape == (1, 2, 3)


def test_flatten_of_no_queries_has_an_empty_batch():
    empty = cc.Evidence(torch.zeros(0, 5, 2, 3), torch.zeros(0, 5, 2, 3, dtype=torch.bool))
    assert empty.flatten(2).values.shape == (0, 2, 3)


@pytest.mark.parametrize("index", [1, slice(0, 1), torch.tensor([1, 0, 1])], ids=str)
def test_indexing_selects_entries_of_the_batch(index):
    part = cc.Evidence(VALUES, MASK)[index]
    assert torch.equal(part.mask, MASK[index])
    assert torch.equal(part.values, torch.where(MASK, VALUES, 0.0)[index])


def test_evidence_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        cc.Evidence(VALUES, MASK).values = VALUES


# ---- mistakes --------------------------------------------------------------------------------


def test_values_that_are_not_a_tensor_are_refused():
    with pytest.raises(
        TypeError, match=r"values to be a torch\.Tensor or a NumPy array, got list.*as_tensor"
    ):
        cc.Evidence([1.0], MASK)


def test_a_mask_that_is_not_a_tensor_is_refused():
    with pytest.raises(TypeError, match=r"mask to be a torch\.Tensor or a NumPy array, got list"):
        cc.Evidence(VALUES, [True])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_values_that_are_not_floating_point_are_refused_and_not_cast(dtype):
    with pytest.raises(TypeError, match=r"floating-point dtype, got .*values\.float\(\)"):
        cc.Evidence(torch.ones(2, 3, dtype=dtype), MASK)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_mask_that_is_not_boolean_is_refused_and_not_cast(dtype):
    with pytest.raises(TypeError, match=r"boolean mask \(True = observed\), got"):
        cc.Evidence(VALUES, MASK.to(dtype))


@pytest.mark.parametrize("shape", [(2, 2), (3, 2), (5, 2, 3)])
def test_a_mask_that_does_not_broadcast_is_refused(shape):
    with pytest.raises(ValueError, match=r"broadcasts to the values' shape \(2, 3\), got"):
        cc.Evidence(VALUES, torch.ones(shape, dtype=torch.bool))


def test_a_mask_on_another_device_is_refused():
    with pytest.raises(ValueError, match=r"on one device, got cpu and meta"):
        cc.Evidence(VALUES, MASK.to("meta"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_observed_value_that_is_not_finite_is_refused_and_located(bad):
    values = VALUES.clone()
    values[1, 2] = bad
    with pytest.raises(cc.NonFiniteError, match=r"1 NaN or infinite, first at index \(1, 2\)"):
        cc.Evidence(values, MASK)


def test_from_nan_refuses_infinity():
    with pytest.raises(cc.NonFiniteError, match="finite observed values"):
        cc.Evidence.from_nan(torch.tensor([torch.nan, torch.inf]))


def test_from_nan_refuses_anything_but_a_tensor():
    with pytest.raises(
        TypeError, match=r"values to be a torch\.Tensor or a NumPy array, got float"
    ):
        cc.Evidence.from_nan(1.0)


# ---- arrays of NumPy -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_keep_their_dtype_and_are_not_shared(dtype):
    values, mask = VALUES.numpy().astype(dtype), MASK.numpy().copy()
    evidence = cc.Evidence(values, mask)
    assert evidence.values.dtype == getattr(torch, dtype)
    assert torch.equal(evidence.values, torch.where(MASK, VALUES, 0.0).to(evidence.values))
    values[:], mask[:] = 9.0, True
    assert torch.equal(evidence.mask, MASK)
    assert (evidence.values != 9.0).all()


def test_from_nan_takes_an_array():
    array = torch.where(MASK, VALUES, torch.nan).numpy()
    assert torch.equal(cc.Evidence.from_nan(array).mask, MASK)


def test_read_only_and_reversed_arrays_are_accepted():
    array = VALUES.numpy().copy()
    array.flags.writeable = False
    turned = cc.Evidence(array[::-1, ::-1], np.array(True))
    assert torch.equal(turned.values, VALUES.flip(0, 1))


def test_an_array_of_float64_is_refused_by_a_model_in_float32_with_advice():
    vae = cc.VAE(torch.nn.Linear(2, 3), 2, cc.likelihoods.Gaussian(0.1))
    with pytest.raises(ValueError, match=r'float32, got torch.float64.*\.astype\("float32"\)'):
        cc.condition(vae, cc.Evidence.from_nan(np.array([0.5, np.nan, 1.0])))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([1, 2, 3]), r"floating-point dtype, got torch\.int64"),
        (np.array([1.0, None]), "a dtype that torch has, got an array of object"),
        (np.array(["1.0"]), "a dtype that torch has, got an array of <U3"),
        (
            np.array([1.0, None]),
            r'\.astype\("float32"\), or a pandas object with \.to_numpy\("float',
        ),
        (
            np.array([1.0], np.longdouble),
            r'an array of float128; convert it with \.astype\("float32',
        ),
        (np.ma.masked_array([1.0, 2.0], [True, False]), "got a masked array; pass array.data"),
    ],
)
def test_arrays_of_unsuitable_dtypes_are_refused(array, message):
    with pytest.raises(TypeError, match=message):
        cc.Evidence(array, np.array(True))


def test_the_message_on_a_mask_of_objects_says_to_make_it_boolean():
    with pytest.raises(
        TypeError, match=r'got an array of object; convert it with \.astype\("bool"\)'
    ):
        cc.Evidence(VALUES, np.array([True, False, True], dtype=object))
    with pytest.raises(TypeError, match=r"boolean mask .*got torch\.int64; .* mask > 0"):
        cc.Evidence(VALUES, np.array([1, 0, 1]))


@pytest.mark.parametrize("dtype", [">f4", "<f4", ">f8"])
def test_an_array_in_another_byte_order_is_accepted(dtype):
    evidence = cc.Evidence(VALUES.numpy().astype(dtype), MASK.numpy())
    wanted = torch.float64 if "8" in dtype else torch.float32
    assert torch.equal(evidence.values, torch.where(MASK, VALUES, 0.0).to(wanted))


def test_arrays_without_dimensions_are_accepted():
    assert cc.Evidence(np.array(0.5), np.array(True)).values.shape == ()


def test_the_message_on_pandas_objects_says_how_to_make_an_array():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1.0, None], "b": [2, 3]}).convert_dtypes()
    said = r"got DataFrame; .*\.to_numpy\(\"float32\", na_value=np\.nan\)"
    with pytest.raises(TypeError, match=said):
        cc.Evidence.from_nan(frame)
    evidence = cc.Evidence.from_nan(frame.to_numpy("float32", na_value=np.nan))
    assert evidence.mask.tolist() == [[True, True], [False, True]]
    with pytest.raises(TypeError, match=r"mask to be .* got Series; .*\.to_numpy\(bool\)"):
        cc.Evidence(VALUES[0], pandas.Series([True, False, True], dtype="boolean"))


@pytest.mark.filterwarnings("ignore:.*(prototype|beta)")
def test_tensors_that_are_not_plain_are_refused():
    for values in (VALUES.to_sparse(), VALUES.to_sparse_csr()):
        with pytest.raises(TypeError, match=r"values as a dense tensor, got a sparse.*to_dense"):
            cc.Evidence.from_nan(values)
    with pytest.raises(TypeError, match="mask as a dense tensor"):
        cc.Evidence(VALUES, MASK.to_sparse())
    with pytest.raises(TypeError, match="without a mask of its own"):
        cc.Evidence(torch.masked.masked_tensor(VALUES, MASK), MASK)
    with pytest.raises(ValueError, match="meta device, which holds none"):
        cc.Evidence(VALUES.to("meta"), MASK.to("meta"))


def test_parameters_and_tensor_subclasses_become_plain_tensors():
    class Picture(torch.Tensor):
        pass

    for values in (torch.nn.Parameter(VALUES.clone()), VALUES.as_subclass(Picture)):
        kept = cc.Evidence(values, MASK).values
        assert type(kept) is torch.Tensor
        assert not kept.requires_grad


# ---- masks -----------------------------------------------------------------------------------


def test_its_repr_is_short_and_prints_no_tensors():
    evidence = cc.Evidence(torch.zeros(2, 4), torch.tensor([True, False, False, False]))
    assert repr(evidence) == "Evidence(shape=(2, 4), 25.0% observed)"
    assert repr(evidence[:0]) == "Evidence(shape=(0, 4), 0.0% observed)"


def test_parts_of_evidence_are_not_checked_again(monkeypatch):
    evidence = cc.Evidence(VALUES, MASK)
    monkeypatch.setattr("crosscoding.evidence.as_tensor", None)  # the first step of every check
    assert torch.equal(evidence[1:].mask, MASK[1:])
    assert evidence.flatten(1).values.shape == (2, 3)
