"""TVAE synthesizers of SDV: dates, ids, booleans, missing values, rounding, and what is refused."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from tvae_tables import log_prob_by_prior_draws, table

from crosscoding.adapters import from_sdv

pytest.importorskip("sdv", reason="needs the extra `sdv`")
from rdt.transformers import FloatFormatter, GaussianNormalizer
from sdv.cag import Inequality
from sdv.metadata import Metadata
from sdv.single_table import CTGANSynthesizer, TVAESynthesizer

pytestmark = pytest.mark.filterwarnings("ignore")  # SDV's own


def rows(num: int = 400) -> pd.DataFrame:
    df = table(num)
    joined = pd.Timestamp("2015-01-01") + pd.to_timedelta(df["age"] * 40 // 1, unit="D")
    income = (df["age"] * 100).where(np.arange(num) % 7 > 0)
    return df.assign(joined=joined, income=income, id=[f"id-{i:05}" for i in range(num)])


def metadata_of(df: pd.DataFrame) -> Metadata:
    metadata = Metadata.detect_from_dataframes({"people": df})
    if "id" in df.columns:
        metadata.update_column("id", sdtype="id")
        metadata.set_primary_key("id")
    return metadata


def fitted(df: pd.DataFrame, change=None, epochs: int = 10) -> TVAESynthesizer:
    settings = {"epochs": epochs, "embedding_dim": 6, "batch_size": 100, "enable_gpu": False}
    synthesizer = TVAESynthesizer(metadata_of(df), **settings)
    if change is not None:
        synthesizer.auto_assign_transformers({"people": df})
        synthesizer.update_transformers(change)
    with torch.random.fork_rng():
        synthesizer.fit({"people": df})
    return synthesizer


@pytest.fixture(scope="module")
def synthesizer():
    return fitted(rows())


@pytest.fixture(scope="module")
def vae(synthesizer):
    return from_sdv(synthesizer)


def test_the_table_is_that_of_the_user_without_ids(vae):
    columns = {column.name: column for column in vae.table.columns}
    assert {name: column.kind for name, column in columns.items()} == {
        "age": "number", "kind": "class", "gain": "number", "member": "class", "joined": "date",
        "income": "number",
    }  # fmt: skip
    steps = [columns[name].step for name in ("age", "gain", "joined")]
    assert steps == [pytest.approx(0.1), 1, 86400]


def test_rows_have_the_dtypes_and_the_rounding_of_the_synthesizers(synthesizer, vae):
    theirs = synthesizer.sample(50)["people"]
    ours = vae.sample(50, seed=0)
    assert ours["gain"].dtype == theirs["gain"].dtype
    assert ours["age"].dtype == theirs["age"].dtype
    assert ours["member"].dtype == theirs["member"].dtype
    assert ours["joined"].dtype.kind == "M"
    assert (ours["age"] == ours["age"].round(1)).all()
    assert (ours["joined"] == ours["joined"].dt.normalize()).all()


def test_dates_are_encoded_as_by_the_synthesizer(synthesizer, vae):
    """The mixture's means, as dates, are where SDV's own reverse transformation puts them."""
    encoder = synthesizer.get_transformers()["joined"]
    column = vae.table["joined"]
    tvae = synthesizer._model
    infos = {i.column_name: i for i in tvae.transformer._column_transform_info_list}
    mixture = infos["joined"].transform._bgm_transformer
    number = float(mixture.means_[0, 0])
    theirs = pd.Timestamp(
        encoder.reverse_transform(pd.DataFrame({"joined": [number]}))["joined"].iloc[0]
    )
    encoded = encoder.transform(pd.DataFrame({"joined": [theirs]}))["joined"].iloc[0]
    weights = mixture.weights_[infos["joined"].transform.valid_component_indicator]
    means = mixture.means_[infos["joined"].transform.valid_component_indicator, 0]
    centre = (weights * means).sum() / weights.sum()
    in_tensors = column.to_tensor(np.array([theirs.timestamp()]))[0]
    unit = column.scale / 1e-9 if abs(encoded) > 1e16 else column.scale / 1e-6
    assert in_tensors == pytest.approx((encoded - centre) / unit, abs=1e-6)


def test_log_prob_is_the_mean_over_draws_from_the_prior(vae):
    df = rows()[["joined", "member"]].iloc[:3]
    found = vae.log_prob(df, seed=0)
    evidence = vae.table.evidence(df, dtype=vae.dtype)
    expected = log_prob_by_prior_draws(vae, evidence) - np.log(vae.table["joined"].scale)
    assert ((found.log_prob - expected).abs() < 0.05 + 5 * found.error).all()


def test_conditions_on_dates_and_booleans(vae):
    given = {"joined": ("2018-01-01", "2019-12-31"), "member": True}
    found = vae.sample(1500, given, seed=0)
    assert found["member"].all()
    assert found["joined"].between("2018-01-01", "2019-12-31").all()
    draws = vae.table.from_tensors(vae.sample_prior(60_000, seed=1).numpy())
    exact = draws[draws["member"] & draws["joined"].between("2018-01-01", "2019-12-31")]
    assert len(exact) > 1000
    assert scipy.stats.ks_2samp(found["age"], exact["age"]).statistic < 0.08


def test_remaining_columns(vae):
    known = pd.DataFrame({"member": [True, False, True], "gain": [0, 900, 0]})
    found = vae.sample_remaining(known, seed=0)
    assert found[["member", "gain"]].equals(known)
    assert set(found.columns) == set(vae.table.names)


def test_where_a_number_is_missing_may_be_a_column_of_its_own():
    is_null = FloatFormatter(missing_value_generation="from_column")
    vae = from_sdv(fitted(rows(200), {"income": is_null}, epochs=2))
    assert set(vae.table["income.is_null"].categories) == {0.0, 1.0}
    found = vae.sample(20, {"income.is_null": 0.0}, seed=0)
    assert not found["income"].isna().any()


def test_text_dates_become_datetimes():
    df = rows(200).drop(columns=["id", "income"])
    df["joined"] = df["joined"].dt.strftime("%d/%m/%Y")
    metadata = metadata_of(df)
    metadata.update_column("joined", sdtype="datetime", datetime_format="%d/%m/%Y")
    settings = {"epochs": 1, "embedding_dim": 4, "enable_gpu": False}
    synthesizer = TVAESynthesizer(metadata, **settings)
    synthesizer.fit({"people": df})
    found = from_sdv(synthesizer).sample(100, seed=0)["joined"]
    assert found.between("2010-01-01", "2035-01-01").all()


def test_what_cannot_be_served_is_said():
    df = rows(120)
    with pytest.raises(TypeError, match=r"got the path 'people\.pkl'"):
        from_sdv("people.pkl")
    with pytest.raises(TypeError, match="got CTGANSynthesizer"):
        from_sdv(CTGANSynthesizer(metadata_of(df)))
    with pytest.raises(ValueError, match="call its fit first"):
        from_sdv(TVAESynthesizer(metadata_of(df)))
    with pytest.raises(ValueError, match=r"column 'age': .* got GaussianNormalizer"):
        from_sdv(fitted(df, {"age": GaussianNormalizer()}, epochs=1))
    older = df.assign(income=df["age"] + 5.0)
    constrained = TVAESynthesizer(metadata_of(older), epochs=1, enable_gpu=False)
    constrained.add_constraints([Inequality("age", "income")])
    with torch.random.fork_rng():
        constrained.fit({"people": older})
    with pytest.raises(ValueError, match="without constraints"):
        from_sdv(constrained)
