"""Runs on a small Ray cluster; `make ray` runs them. Elsewhere they are skipped."""

import errno

import pytest
from small_runs import rows, run, table_model, write_csv

from crosscoding.batch import SourceChangedError

ray = pytest.importorskip("ray", reason="needs Ray: run make ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own, of which there are many
]


@pytest.fixture(scope="module")
def cluster():
    ray.init(
        num_cpus=2,
        object_store_memory=200_000_000,
        include_dashboard=False,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


def test_actors_give_the_answers_of_one_process_and_resume(tmp_path, cluster):
    path, vae = write_csv(tmp_path / "rows.csv", rows(40)), table_model()
    done = run(vae, path, tmp_path / "ray", workers=2)
    assert done.complete
    (tmp_path / "ray" / "shards" / "shard-00000002.parquet").unlink()
    resumed = run(vae, path, tmp_path / "ray", workers=1)
    assert resumed.notes == ("shard 2 was removed, so it is answered again",)
    ray.shutdown()
    assert resumed.manifest == done.manifest == run(vae, path, tmp_path / "one").manifest


def test_what_actors_meet_is_reported_by_the_driver(tmp_path):
    from crosscoding.batch.on_ray import _raise_again

    _raise_again("", "0", "")
    with pytest.raises(SourceChangedError, match="it is gone"):
        _raise_again("SourceChangedError", "0", "it is gone")
    with pytest.raises(OSError, match="No space") as caught:
        _raise_again("OSError", str(errno.ENOSPC), "No space left on device")
    assert caught.value.errno == errno.ENOSPC
