"""docs/promises.md is what the pages and the tests say now."""

import promises
import pytest


def test_the_table_of_promises_is_current_and_names_what_exists():
    assert promises.PAGE.read_text() == promises.table(promises.promises())


@pytest.mark.parametrize(
    "shown",
    [
        "tests/nowhere.py",
        "tests/test_promises.py::test_nothing",
        "make nothing",
        "python scripts/x.py",
        "gjwm study experiment=nowhere",
        "gjwm train train.nothing=1",
    ],
)
def test_what_does_not_exist_is_found(shown):
    assert promises.missing(shown)
    with pytest.raises(ValueError, match=r"\bno .*[^.]\.$"):
        promises.table([promises.Promise("README", "words", [shown])])


def test_a_promise_with_nothing_is_counted():
    page = promises.table([promises.Promise("README", "words", [])])
    assert "1 promises, 1 of them with neither" in page and "nothing that runs by itself" in page
