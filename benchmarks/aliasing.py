"""What the first stride does to the first layers: `minialexnet` against `minizfnet`, trained here on the same data.

    python -m benchmarks.aliasing STORE [SETTING...]

Zeiler & Fergus 2014, section 4.1 and Figure 6. Prints a line a seed, network and layer.
"""

import sys

from pipeline.compose import compose_settings
from pipeline.executor import make_executor
from pipeline.ingest import ingest
from pipeline.results import list_results, read_result_table
from pipeline.run import run
from pipeline.store import Store
from schemas import DIAGNOSIS_LAYERS
from workers.nn.spectrum import noise_share

SEEDS = (0, 1, 2)
NETWORKS = ("minialexnet", "minizfnet")
LAYERS = ("features.1", "features.4")


def compare(url: str, words: list[str]) -> None:
    """Ingest, train, dissect and diagnose what is missing, and print what was found."""
    store = Store(url)
    for seed in SEEDS:
        for network in NETWORKS:
            settings = compose_settings(
                [f"store={url}", "data=mini", "cluster=inline", f"model={network}", f"model.seed={seed}",
                 f"layers=[{','.join(LAYERS)}]", "stages=[diagnosis]", "null_permutations=0", *words]
            )  # fmt: skip
            ingest(settings.data, store)
            with make_executor(settings.cluster) as executor:
                outcome = run(settings, executor)
            ids = {*outcome.computed, *outcome.found}
            for result in list_results(store, outcome.study_id):
                if result.stage == "diagnosis" and result.result_id in ids:
                    (row,) = read_result_table(store, result, DIAGNOSIS_LAYERS).to_pylist()
                    stride = row["first_stride"]
                    print(
                        f"{network:12}{seed:2} {result.layer:11} about Nyquist {row['aliasing']:.2f}, images "
                        f"{row['aliasing_images']:.2f}, noise {noise_share(stride):.2f}; above it {row['above_nyquist']:.2f}; of "
                        f"{row['num_units']} units aliased {row['num_aliased']}, dead {row['num_dead']}, double "
                        f"{row['num_duplicates']}",
                        flush=True,
                    )


if __name__ == "__main__":
    compare(sys.argv[1], sys.argv[2:])
