from hypothesis import given
from hypothesis import strategies as st

from pipeline.passes import GIB, SECONDS_PER_BYTE, Estimate, choose

DEEP = Estimate("deep", bytes=int(0.1 * GIB), seconds=100.0)
EARLY = Estimate("early", bytes=200 * GIB, seconds=10.0)


def passes(estimates, asked="auto", limit=1e15):
    return {name: choice.passes for name, choice in choose(estimates, asked, limit).items()}


def test_cheap_maps_are_kept_and_dear_ones_made_again():
    assert passes([EARLY, DEEP]) == {"early": "two", "deep": "one"}
    assert passes([DEEP]) == {"deep": "one"}


def test_layers_before_one_that_needs_a_second_pass_share_it():
    small = Estimate("small", bytes=GIB // 4, seconds=5.0)
    assert passes([small]) == {"small": "one"}
    assert passes([small, EARLY]) == {"small": "two", "early": "two"}


def test_a_setting_settles_it():
    for asked in ("one", "two"):
        assert passes([EARLY, DEEP], asked) == {"early": asked, "deep": asked}
        assert asked in choose([DEEP], asked, 0)["deep"].reason


def test_what_does_not_fit_is_not_kept():
    assert passes([DEEP], limit=DEEP.bytes) == {"deep": "one"}
    assert passes([DEEP], limit=DEEP.bytes - 1) == {"deep": "two"}
    assert passes([EARLY, DEEP], limit=0) == {"early": "two", "deep": "two"}


def test_the_reason_names_both_costs():
    reason = choose([DEEP], "auto", 1e15)["deep"].reason
    assert "0.1 GiB" in reason
    assert "100 s" in reason
    assert "at most 0.05 GiB" in choose([DEEP], "auto", 0.05 * GIB)["deep"].reason


LAYERS = st.lists(st.tuples(st.integers(0, 10**12), st.floats(0.1, 1e4)), min_size=1, max_size=6)


@given(LAYERS, st.integers(0, 10**12))
def test_no_other_choice_that_fits_costs_less(layers, limit):
    """Against all subsets of layers that are made again."""
    estimates = [Estimate(str(place), size, seconds) for place, (size, seconds) in enumerate(layers)]

    def cost(again: set[str]) -> tuple[bool, float]:
        kept = sum(one.bytes for one in estimates if one.layer not in again)
        seconds = max([one.seconds for one in estimates if one.layer in again], default=0.0)
        return kept > limit, seconds + kept * SECONDS_PER_BYTE

    subsets = [{one.layer for one in estimates if mask >> int(one.layer) & 1} for mask in range(2 ** len(estimates))]
    chosen = {name for name, kind in passes(estimates, limit=limit).items() if kind == "two"}
    too_much, seconds = cost(chosen)
    best = min(map(cost, subsets))
    assert not too_much
    assert seconds <= best[1] * (1 + 1e-12)
