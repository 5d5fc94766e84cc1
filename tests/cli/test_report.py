import json

import pytest

from promptvit.cli.main import main


@pytest.fixture(scope="module")
def folder(images, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "run"
    options = ["--method", "linear", "--train.epochs", "1", "--train.device", "cpu", "--backbone.image_size", "16"]
    assert main(["train", "--data", str(images), "--out", str(root), *options]) == 0
    return root


def test_a_run_becomes_a_page(folder, capsys):
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert "<!doctype html>" in (folder / "report.html").read_text()
    assert main(["report", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"reports": [str(folder / "report.html")]}


def test_predictions_can_be_kept_later(folder, capsys):
    before = (folder / "predictions.json").read_bytes()
    (folder / "predictions.json").unlink()
    assert main(["evaluate", str(folder), "--split", "val"]) == 0
    assert not (folder / "predictions.json").exists()
    assert main(["evaluate", str(folder), "--split", "val", "--keep"]) == 0
    assert (folder / "predictions.json").read_bytes() == before


def test_predictions_of_no_single_run_are_not_kept(folder, capsys):
    assert main(["evaluate", str(folder), "--with", str(folder), "--split", "val", "--keep"]) == 2
    assert main(["evaluate", str(folder / "delta"), "--data", "digits", "--split", "val", "--keep"]) == 2
    told = capsys.readouterr().err
    assert "--keep with an ensemble" in told
    assert "which has no summary.json" in told


def test_a_folder_of_neither_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "holds neither a run that is done nor a study" in capsys.readouterr().err
