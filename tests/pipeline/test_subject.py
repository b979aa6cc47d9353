"""What a run works on: weights that are had by name reach a cluster's workers through the store."""

import pytest
import torchvision

from pipeline.errors import AlteredError
from pipeline.reprocess import make_schedule_plan
from pipeline.schedule import read_schedule
from pipeline.stage import read_anywhere
from pipeline.store import Store
from pipeline.subject import prepare
from tests import dissect, small
from workers import models
from workers.models import ModelSpec, load
from workers.weights import serialize_weights

CHOSEN = ("model=squeezenet1_1", "model.weights=IMAGENET1K_V1", "layers=[features.3]")


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    """A store with a data set; the network's published weights can be downloaded once."""
    monkeypatch.setattr(models, "_last", {})
    published = load(ModelSpec("squeezenet1_1", seed=3), lambda path: b"").module.state_dict()
    url = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url
    left = [published]

    def download(asked, **_):
        assert asked == url
        if not left:
            raise OSError("no route to host")
        return left.pop()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    source = small.write_source(tmp_path / "source", number=6)
    found = Store(str(tmp_path / "store"))
    words = small.overrides(source)
    from pipeline.ingest import ingest

    ingest(dissect.settings(found.url, *words).data, found)
    return found


def settings(store: Store, *more: str):
    return dissect.settings(store.url, "data=broden", *CHOSEN, *more)


def test_named_weights_are_downloaded_once_and_read_from_the_store_by_a_clusters_workers(store, monkeypatch):
    first = prepare(settings(store, "cluster.address=head:6379"))
    (copy,) = store.list("weights")
    assert first.model.copy == f"store:{copy}"
    monkeypatch.setattr(models, "_last", {})  # another process, without a network
    second = prepare(settings(store, "cluster.address=head:6379"))
    assert second.study == first.study
    loaded = load(second.model, read_anywhere(store))
    assert loaded.weights_sha256 == first.study.weights_sha256


def test_without_a_cluster_elsewhere_nothing_is_copied_and_the_study_is_the_same(store, monkeypatch):
    alone = prepare(settings(store)).study
    assert store.list("weights") == []
    prepare(settings(store, "cluster.address=head:6379"))
    monkeypatch.setattr(models, "_last", {})
    assert prepare(settings(store, "cluster.address=head:6379")).study == alone


def test_a_copy_with_other_weights_is_refused(store, monkeypatch):
    prepare(settings(store, "cluster.address=head:6379"))
    (copy,) = store.list("weights")
    store.write(copy, serialize_weights(load(ModelSpec("squeezenet1_1", seed=4), lambda path: b"").module))
    monkeypatch.setattr(models, "_last", {})
    with pytest.raises(AlteredError, match=r"its weights are others; remove it"):
        prepare(settings(store, "cluster.address=head:6379"))


def test_a_dry_run_of_a_schedule_for_a_cluster_copies_no_weights(store, tmp_path):
    """Though the store has a study of them, made without a cluster, which asks whether its results are there."""
    prepare(settings(store)).study.publish(store)
    path = tmp_path / "nightly.yaml"
    job = "{models: squeezenet1_1, checkpoints: IMAGENET1K_V1, data: broden, layers: features.3}"
    path.write_text(f"store: {store.url}\nsettings: {{cluster.address: 'head:6379'}}\njobs:\n  - {job}\n")
    before = set(store.list(""))
    (step,) = make_schedule_plan(read_schedule(path)).steps
    assert (step.run, step.problem) == (True, None)
    assert set(store.list("")) == before
