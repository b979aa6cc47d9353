from pipeline.ordering import natural


def test_numbers_in_names_are_numbers():
    names = ["features.11", "features.4", "classifier", "2b", "features.4.x", "10a", ""]
    assert sorted(names, key=natural) == ["", "2b", "10a", "classifier", "features.4", "features.4.x", "features.11"]
