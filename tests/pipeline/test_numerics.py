"""How the network runs is part of the study; how its images are decoded is not."""

import pytest

from pipeline import subject
from pipeline.errors import SettingsError
from pipeline.settings import Cluster
from pipeline.study import Study, list_studies
from pipeline.subject import decode_threads, resolve_device
from tests import dissect, small
from workers import models

LAYERS = ("features.4",)
TABLES = ("thresholds", "tally", "areas", "detectors", "exemplars")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return small.write_source(tmp_path_factory.mktemp("numerics") / "source")


@pytest.fixture(scope="module")
def done(tmp_path_factory, source):
    store = tmp_path_factory.mktemp("numerics-store")
    dissect.ingest_and_run(store, *small.overrides(source, layers=LAYERS))
    return store


@pytest.mark.parametrize("setting", ["cluster.precision=bfloat16", "cluster.memory_format=channels_last"])
def test_another_way_to_run_the_network_is_another_study(tmp_path, source, done, setting):
    dissect.ingest_and_run(tmp_path, *small.overrides(source, setting, layers=LAYERS))
    (numerics,) = dissect.read_table(tmp_path, "studies")["numerics"]
    assert setting.partition("=")[2] in numerics
    ids = [{result.study_id for result in dissect.results(store, "record")} for store in (done, tmp_path)]
    assert not ids[0] & ids[1]
    found, expected = (dissect.read_table(store, "thresholds")["threshold"].to_numpy() for store in (tmp_path, done))
    assert abs(found - expected).max() < 0.05 * abs(expected).max()
    assert (found != expected).any()  # the last bits at least


def test_float32_is_what_it_is_by_default(done):
    (numerics,) = dissect.read_table(done, "studies")["numerics"]
    assert '"precision": "float32"' in numerics
    assert '"memory_format": "contiguous"' in numerics


@pytest.mark.parametrize("setting", ["cluster.decode_threads=3", "cluster.window=1"])
def test_tables_do_not_depend_on_how_images_are_fed(tmp_path, source, done, setting):
    outcome = dissect.ingest_and_run(tmp_path, *small.overrides(source, setting, layers=LAYERS))
    assert {result.study_id for result in dissect.results(done, "record")} == {outcome.study_id}
    small.same_tables(done, tmp_path, *TABLES)


@pytest.mark.parametrize("weights", ["random", "file"])
def test_a_run_loads_its_network_once(tmp_path, source, done, weights, monkeypatch):
    calls, load = [], models.load

    def counted(spec, read):
        calls.append(spec)
        return load(spec, read)

    for module in (models, subject):
        monkeypatch.setattr(module, "load", counted)
    monkeypatch.setattr(models, "_last", {})
    given = [] if weights == "random" else [f"model.weights={small.write_weights(tmp_path / 'own.safetensors', {})}"]
    dissect.ingest_and_run(tmp_path / "store", *small.overrides(source, *given, layers=LAYERS))
    assert len(calls) == 1


def test_tf32_needs_a_gpu():
    with pytest.raises(SettingsError, match="tf32, which only GPUs have"):
        resolve_device(Cluster(precision="tf32", device="cpu"))


def test_decoding_takes_the_cores_that_computing_leaves():
    assert decode_threads(Cluster(decode_threads=5), "cpu") == 5
    assert decode_threads(Cluster(executor="ray", cpus_per_worker=4, threads=1), "cpu") == 3
    assert decode_threads(Cluster(executor="ray", cpus_per_worker=1, threads=1), "cpu") == 1
    assert decode_threads(Cluster(executor="ray", cpus_per_worker=4, threads=1), "cuda") == 4
    assert decode_threads(Cluster(executor="ray", cpus_per_worker=64), "cuda") == 8


def test_a_study_from_before_there_was_a_choice_keeps_its_id(done):
    """Its numerics name neither precision nor memory format."""
    (study,) = list_studies(small.open_store(done)).values()
    old = study.model_dump()
    for name in ("precision", "memory_format"):
        del old["numerics"][name]
    assert Study.model_validate(old).study_id == study.study_id
    changed = {**old, "numerics": {**old["numerics"], "precision": "bfloat16"}}
    assert Study.model_validate(changed).study_id != study.study_id
