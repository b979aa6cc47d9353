import re

import pytest

from pipeline.compose import CONVENTIONS, compose_settings
from pipeline.errors import SettingsError

ODD_PATHS = [
    "/data/a b,c=d/e",
    "/data/(paren) [bracket] {brace}",
    "/data/${oc.env:HOME}/$x",
    "s3://bucket/prefix?x=1&y=2#z",
    "/data/größe/漢字",
    "/data/'quoted' \"twice\"",
    "C:\\data\\new",
    "~/x%20y;z!",
    "007",
    "true",
    "1e5",
]


@pytest.mark.parametrize("path", ODD_PATHS)
def test_text_is_taken_as_it_stands(path):
    settings = compose_settings([f"store={path}", f"data.root={path}", "data=broden", f"model.weights={path}"])
    assert (settings.store, settings.data.root, settings.model.weights) == (path, path, path)


def test_quotes_around_a_whole_value_are_left_out():
    assert compose_settings(["store='/data/a b'"]).store == "/data/a b"
    assert compose_settings(['store="/data/a b"']).store == "/data/a b"


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("auto", ("auto",)),
        ("features.3", ("features.3",)),
        ("features.*", ("features.*",)),
        ("features.[13]", ("features.[13]",)),
        ("[a,b]", ("a", "b")),
        ("[a, 'b']", ("a", "b")),
        ("a,b", ("a", "b")),
        ("[features.[1,3],b]", ("features.[1,3]", "b")),
        ("[ab].conv[12]", ("[ab].conv[12]",)),
    ],
)
def test_lists(text, layers):
    assert compose_settings([f"layers={text}"]).layers == layers


def test_numbers_booleans_nulls_and_mappings():
    settings = compose_settings(
        [
            "quantile=1e-3",
            "cluster.workers=3",
            "cluster.resources={disk:2,tpu:0.5}",
            "cluster.runtime_env={env_vars:{A:b}}",
            "data=broden",
            "data.limit=null",
            "splits=[val]",
            "model.sha256=null",
            "convention=null",
        ]
    )
    stages = settings.stages_by_name()
    assert stages["thresholds"].quantile == 0.001
    assert stages["detectors"].splits == ("val",)
    assert settings.cluster.workers == 3
    assert settings.cluster.resources == {"disk": 2.0, "tpu": 0.5}
    assert settings.cluster.runtime_env == {"env_vars": {"A": "b"}}
    assert settings.data.limit is settings.model.sha256 is settings.convention is None


def test_a_single_entry_of_a_mapping_can_be_set():
    assert compose_settings(["cluster.resources.disk=2"]).cluster.resources == {"disk": 2.0}


def test_a_bare_name_goes_to_every_stage_that_has_it():
    stages = compose_settings(["mask_order=threshold_first"]).stages_by_name()
    assert stages["tally"].mask_order == stages["exemplars"].mask_order == "threshold_first"
    one = compose_settings(["stage.tally.mask_order=threshold_first"]).stages_by_name()
    assert (one["tally"].mask_order, one["exemplars"].mask_order) == ("threshold_first", "upsample_first")


def test_of_two_values_the_last_counts():
    settings = compose_settings(["model=alexnet", "store=a", "model.weights=random", "model=squeezenet1_1", "store=b"])
    assert (settings.model.name, settings.model.weights, settings.store) == ("squeezenet1_1", "random", "b")


def test_a_model_or_data_set_without_a_file_goes_by_its_name():
    settings = compose_settings(["model=vgg16", "data=my-set"])
    assert (settings.model.name, settings.data.name) == ("vgg16", "my-set")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("quantil=0.1", ["unknown setting 'quantil'", "did you mean 'quantile'"]),
        ("model.wights=x", ["unknown setting 'model.wights'", "'model.weights'"]),
        ("stage.tally.null_permutation=1", ["'stage.tally.null_permutation'", "'stage.tally.null_permutations'"]),
        ("stage.taly.null_seed=1", ["unknown stage 'taly'", "did you mean 'tally'"]),
        ("tally.null_seed=1", ["unknown setting 'tally.null_seed'", "'stage.tally.null_seed'"]),
        ("model.name.x=1", ["unknown setting 'model.name.x'"]),
        ("++model._target_=os.system", ["unknown setting 'model._target_'"]),
        ("model._target_=os.system", ["unknown setting 'model._target_'"]),
        ("hydra.run.dir=/tmp", ["unknown setting 'hydra.run.dir'"]),
        ("~model.weights", ["'~model.weights' is no setting, must be name=value"]),
        ("quantile", ["'quantile' is no setting, must be name=value"]),
        ("=1", ["'=1' is no setting"]),
        ("cluster=rai", ["cluster is 'rai', must be among ['inline', 'ray']", "'ray'"]),
        ("quantile=0,5", ["stage.thresholds.quantile is '0,5'", "valid number"]),
        ("quantile=2", ["stage.thresholds.quantile is '2'", "less than 1"]),
        (
            "union=any",
            ["stage.detectors.union is 'any'", "must be among ['annotated', 'all', 'under_mask', 'concept']"],
        ),
        ("cluster.workers=0", ["cluster.workers is '0'", "greater than or equal to 1"]),
        ("cluster.resources={a", ["cluster.resources={a cannot be read"]),
        ("cluster.resources={a:x}", ["cluster.resources.a is 'x'"]),
        ("convention=caffe", ["convention is 'caffe'", "'netdissect'"]),
        ("layers=[]", ["layers is []", "at least 1"]),
        ("stages=", ["stages is []", "at least 1"]),
        ("store=", ["store is ''", "at least 1"]),
        ("data.shard_size=7", ["data: shard_size is 7, must be a multiple of batch_size (32)"]),
    ],
)
def test_a_bad_override_is_named_with_its_cure(override, told):
    with pytest.raises(SettingsError) as raised:
        compose_settings([override])
    for part in told:
        assert part in str(raised.value)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_convention_sets_union_mask_order_and_upsampling_together(convention):
    stages = compose_settings([f"convention={convention}"]).stages_by_name()
    sets = CONVENTIONS[convention]
    assert stages["detectors"].union == sets["union"]
    for stage in ("tally", "exemplars"):
        assert (stages[stage].mask_order, stages[stage].upsampling) == (sets["mask_order"], sets["upsampling"])
    others = {"detectors": {"union"}, "tally": {"mask_order", "upsampling"}, "exemplars": {"mask_order", "upsampling"}}
    plain = compose_settings([]).stages_by_name()
    for name, stage in stages.items():
        left = others.get(name, set())
        assert stage.model_dump(exclude=left) == plain[name].model_dump(exclude=left)


def test_conventions_are_those_of_the_published_codes():
    assert CONVENTIONS == {
        "netdissect": {"union": "annotated", "mask_order": "upsample_first", "upsampling": "receptive_field"},
        "netdissect_lite": {"union": "under_mask", "mask_order": "upsample_first", "upsampling": "resize"},
        "net2vec": {"union": "concept", "mask_order": "threshold_first", "upsampling": "resize"},
        "survey": {"union": "all", "mask_order": "threshold_first", "upsampling": "resize"},
    }


def test_without_a_convention_the_defaults_are_the_paper_s_union_and_plain_resizing():
    stages = compose_settings([]).stages_by_name()
    assert (stages["detectors"].union, stages["tally"].mask_order, stages["tally"].upsampling) == (
        "annotated",
        "upsample_first",
        "resize",
    )


def test_a_setting_that_contradicts_the_convention_is_refused():
    message = "convention=net2vec sets union=concept, but union=all was asked for; leave one out"
    with pytest.raises(SettingsError, match=re.escape(message)):
        compose_settings(["convention=net2vec", "union=all"])
    with pytest.raises(SettingsError, match="mask_order=threshold_first, but mask_order=upsample_first"):
        compose_settings(["stage.exemplars.mask_order=upsample_first", "convention=survey"])
    agreeing = compose_settings(["convention=net2vec", "union=concept"]).stages_by_name()
    assert agreeing["detectors"].union == "concept"


def test_the_pilot_reaches_below_a_large_quantile():
    def tail(*overrides: str) -> float:
        return compose_settings(list(overrides)).stages_by_name()["pilot"].tail_quantile

    assert tail() == tail("quantile=0.001") == tail("quantile=0.01") == 0.02
    assert tail("quantile=0.05") == 0.1
    assert 0.9 < tail("quantile=0.9") < 1
    assert tail("quantile=0.05", "tail_quantile=0.03") == 0.03
