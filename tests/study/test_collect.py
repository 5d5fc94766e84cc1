import json
from statistics import fmean

import pytest
from tests.search.conftest import write_task

from promptvit.backbones.source import BackboneSource
from promptvit.cli.main import main
from promptvit.data.config import DataConfig
from promptvit.data.load import load_task
from promptvit.errors import DataError
from promptvit.search.plan import StudyPlan
from promptvit.search.protocol import Protocol
from promptvit.search.results import Results
from promptvit.search.row import First, Row
from promptvit.search.study import Study
from promptvit.study.calibration import read_records
from promptvit.study.collect import records_of

FAST = Protocol(
    name="fast", source="for tests", settings={"train.epochs": 1, "train.learning_rate": 0.02}, seeds=(3, 5)
)
SMALL = BackboneSource(image_size=16)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two rows of prompts, full fine-tuning alone and before a linear head; done, on 40 images of four digits."""
    root = tmp_path_factory.mktemp("studies")
    write_task(root / "toys", (0, 1, 2, 3))
    rows = (
        Row(label="short", fields={"name": "vpt-deep", "length": 1}),
        Row(label="long", fields={"name": "vpt-deep", "length": 8}),
        Row(label="all", fields={"name": "full"}),
        Row(label="after", fields={"name": "linear"}, first=First(fields={"name": "full"})),
    )
    plan = StudyPlan(
        name="mine", data=(str(root / "toys"),), rows=rows, protocol=FAST, backbones=(SMALL,), device="cpu"
    )
    with Study(plan, root / "mine") as running:
        running.run()
    return root / "mine"


def test_a_study_is_a_record_of_the_rows_that_stand_for_ways(study):
    (record,) = records_of(study)
    cells = {cell.method: cell for cell in Results.read(study).cells}
    validation = {name: fmean(final.val_top1 for final in cells[name].finals) for name in ("short", "long")}
    better = "long" if validation["long"] > validation["short"] else "short"
    assert record.accuracies == {
        "prompts": pytest.approx(100 * fmean(final.test_top1 for final in cells[better].finals)),
        "full": pytest.approx(100 * fmean(final.test_top1 for final in cells["all"].finals)),
    }
    assert (record.task, record.images, record.classes, record.seeds) == ("toys", 40, 4, (3, 5))
    assert (record.study, record.protocol, record.backbone) == ("mine", "fast", "vit_pico")
    assert len(record.fingerprint) == 64


def test_a_study_without_both_has_none(study, tmp_path):
    values = json.loads((study / "results.json").read_text())
    (full,) = (cell for cell in values["cells"] if cell["method"] == "all")
    seed = full["finals"].pop()
    (tmp_path / "results.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="no task with final runs"):  # one is still to come
        records_of(tmp_path)
    full["finals"].append(seed)
    values["cells"] = [cell for cell in values["cells"] if cell["method"] != "all"]
    (tmp_path / "results.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="no task with final runs of both vpt-deep and full"):
        records_of(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        records_of(tmp_path)


def test_draws_of_a_size_are_one_record(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_task(tmp_path / "toys", (0, 1, 2, 3))
    settings = ["--set", "train.epochs=1", "--set", "train.learning_rate=0.02", "--set", "backbone.image_size=16"]
    arguments = ["study", "scale", "toys", "--methods", "vpt-deep,full", "--sizes", "16,40", "--draws", "2", *settings]
    assert main(arguments) == 0
    assert main(["study", "calibrate", "runs/toys-vit_pico-scale", "--out", "mine.jsonl"]) == 0
    assert "won: " in capsys.readouterr().out
    records = read_records("mine.jsonl")
    cells = Results.read(tmp_path / "runs" / "toys-vit_pico-scale").cells
    taken = [len(load_task(DataConfig(source="toys", images=size)).train) for size in (16, 40)]
    assert [record.images for record in records] == taken
    for record, size in zip(records, (16, 40), strict=True):
        tested = [
            100 * final.test_top1
            for cell in cells
            for final in cell.finals
            if cell.fields["name"] == "full" and cell.settings["data.images"] == size
        ]
        assert len(tested) == 2
        assert record.accuracies["full"] == pytest.approx(fmean(tested))
    assert main(["study", "calibrate", "mine.jsonl", "runs/toys-vit_pico-scale", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["records"]) == 2
    assert main(["study", "calibrate", "toys"]) == 2
    assert "toys does not exist, or is no study" in capsys.readouterr().err
