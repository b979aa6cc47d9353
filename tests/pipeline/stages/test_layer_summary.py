import pytest

from tests import dissect, oracle, small
from tests.pipeline.stages.test_detectors import detectors


@pytest.mark.parametrize("union", ["annotated", "concept"])
def test_counts_the_detectors(detected, union):
    for layer in small.LAYERS:
        table = detectors(detected, layer, union=union)
        rows = {
            (r.unit, r.category): oracle.Detector(
                r.unit, r.category, r.concept_id, r.intersection, r.union, r.iou, r.is_detector, r.is_best_overall
            )
            for r in table.itertuples()
        }
        (result,) = [r for r in dissect.results(detected, "detectors") if r.result_id == table["result_id"][0]]
        (summary,) = [
            r for r in dissect.results(detected, "layer_summary") if r.inputs == {"detectors": result.result_id}
        ]
        found = small.open_store(detected).read_table(summary.tables["layer_summary"].path).to_pandas()
        assert (found["num_units"] == table["unit"].nunique()).all()
        names = ["num_detectors", "num_unique_concepts", "num_detectors_within", "num_unique_concepts_within"]
        counted = {row["category"]: oracle.LayerSummary(*(row[name] for name in names)) for _, row in found.iterrows()}
        assert counted == oracle.layer_summary(rows)


def test_lists_every_category_of_the_data_set(store):
    table = dissect.read_table(store, "layer_summary")
    for _, rows in table.groupby("layer"):
        assert rows["category"].tolist() == sorted(["color", "object", "part", "material", "scene", "texture"])
        assert (rows["num_unique_concepts"] <= rows["num_detectors"]).all()
        assert (rows["num_detectors"] <= rows["num_detectors_within"]).all()
