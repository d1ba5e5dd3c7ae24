import json

import pytest

from tests.conftest import make_result
from train import report


@pytest.mark.parametrize("name", report.BLOCKS)
def test_readme_holds_the_measured_figures(name):
    assert report.marked(name, report.BLOCKS[name]()) in report.README.read_text(encoding="utf-8")


def test_table_takes_its_figures_from_the_result_files(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert len(report.recipes_table().splitlines()) == 2
    result = json.loads(make_result(tmp_path).read_text())
    row = report.recipes_table().splitlines()[2]
    assert row.startswith("| `ser-base` |  | not measured |")
    assert f"{100 * result['mean']['uar']:.1f} %" in row and "762,328 | 3.1 MB" in row


def test_training_times_are_those_of_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    path = make_result(tmp_path)
    assert not report.recipes_table().endswith("not measured |")
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {"seeds": [seed | {"device": "some GPU"} for seed in result["seeds"]]}))
    assert report.recipes_table().endswith("not measured |")


def test_result_files_say_how_they_were_made():
    for path in report.RESULTS.glob("*.*.json"):
        result = json.loads(path.read_text())
        about = [result[name] for name in ("recipe", "protocol", "corpus") if name in result]
        assert path.name == f"{'.'.join(about)}.json"
        assert result["held_out"] == "test" and result["command"].startswith("python -m train.evaluate")
        assert path.with_suffix(".png").exists()
