"""Every benchmark runs and fills its table; how fast is nothing to test on a shared machine."""

import math

import benchmarks
import pytest
from benchmark import main


@pytest.mark.slow
@pytest.mark.parametrize("name", benchmarks.names())
def test_a_benchmark_fills_its_table(name):
    rows = benchmarks.run(name, quick=True)
    assert rows and all(row.keys() == rows[0].keys() for row in rows)
    figures = [value for row in rows for value in row.values() if isinstance(value, float)]
    assert figures and all(math.isfinite(value) for value in figures)


def test_the_table_is_aligned_markdown():
    text = benchmarks.table(
        [{"what": "a", "ms": 1234.5}, {"what": "floor", "ms": None}, {"what": "b", "ms": 0.12345}]
    )
    assert text.splitlines() == [
        "| what  |    ms |",
        "|-------|------:|",
        "| a     | 1,234 |",
        "| floor |       |",
        "| b     | 0.123 |",
    ]


def test_a_wrong_name_or_option_is_one_sentence(capsys):
    assert main(["moon"]) == 1
    assert "no benchmark 'moon'" in capsys.readouterr().err
    assert main(["collect", "size=3"]) == 1
    assert "size=3" in capsys.readouterr().err
