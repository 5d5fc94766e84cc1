import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from promptvit.errors import ConfigError, DataError
from promptvit.report.markup import VOID
from promptvit.report.run import write_run_report


class Outline(HTMLParser):
    """Raises for elements that are not closed where they should be; keeps headings and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def outline(path) -> Outline:
    parser = Outline()
    parser.feed(path.read_text())
    assert parser.open == []
    return parser


def content(path) -> str:
    return " ".join(" ".join(outline(path).text).split())


def change(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_page_is_whole_and_asks_for_nothing(make_run):
    path = write_run_report(make_run())
    page = outline(path)
    assert path.name == "report.html"
    assert [tag for tag, _ in page.tags if tag in ("header", "nav", "main", "footer")] == [
        "header",
        "nav",
        "main",
        "footer",
    ]
    assert ("html", {"lang": "en"}) in page.tags
    links = [value for _, given in page.tags for name, value in given.items() if name in ("src", "href", "srcset")]
    assert all(link.startswith(("#", "data:image/")) for link in links)
    assert "http" not in re.sub(r"http-equiv", "", path.read_text())
    assert not [given for _, given in page.tags if "style" in given or any(name.startswith("on") for name in given)]


def test_the_policy_lets_nothing_else_run(make_run):
    given = next(given for tag, given in outline(write_run_report(make_run())).tags if "http-equiv" in given)
    parts = [part.split() for part in given["content"].split(";")]
    assert ["default-src", "'none'"] in parts
    assert ["img-src", "data:"] in parts
    assert all("unsafe" not in source for part in parts for source in part)


def test_headings_are_in_order_and_ids_are_unique(make_run):
    tags = outline(write_run_report(make_run())).tags
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [given["id"] for _, given in tags if "id" in given]
    assert len(ids) == len(set(ids))
    assert {given["href"] for tag, given in tags if tag == "a"} <= {f"#{each}" for each in ids}


def test_every_picture_has_a_title_and_its_numbers(make_run):
    page = write_run_report(make_run()).read_text()
    pictures = re.findall(r'<svg role="img"[^>]*><title>([^<]+)</title><desc>([^<]+)</desc>', page)
    assert len(pictures) == page.count("<svg") == 8
    assert page.count("<figure>") == 8
    assert "nan" not in re.sub(r'"[^"]*"|data:\S+', "", page).lower().replace("finan", "")


def test_what_users_name_is_escaped(make_run):
    text = write_run_report(make_run()).read_text()
    assert text.count("<script>") == 1
    assert "<script>alert" not in text
    assert "gone <b>" not in text
    assert "broken &lt;i&gt;.png: truncated" in text
    assert "promptvit train --data &#x27;&lt;b&gt;&amp;&#x27;" in text


def test_the_figures_are_those_of_the_run(make_run):
    folder = make_run()
    summary = json.loads((folder / "summary.json").read_text())
    said = content(write_run_report(folder))
    assert f"{100 * summary['result']['test']['top1']:.1f} % of 30 test images right" in said
    assert "13,450 parameters (1.10 %)" in said
    kept = json.loads((folder / "predictions.json").read_text())
    wrong = sum(a != b for a, b in zip(kept["labels"], kept["predicted"], strict=True))
    assert f"{wrong} of 30 images are wrong" in said
    assert f"All {wrong} wrong test images" in said


def test_the_surest_mistake_comes_first(make_run):
    folder = make_run()
    kept = json.loads((folder / "predictions.json").read_text())
    wrong = [
        each for each in zip(kept["confidence"], kept["labels"], kept["predicted"], strict=True) if each[1] != each[2]
    ]
    said = content(write_run_report(folder)).partition("the model was surest")[2]
    shown = [float(share) for share in re.findall(r"([\d.]+) % is ", said)]
    assert shown == [round(100 * share, 1) for share, *_ in sorted(wrong, reverse=True)]


def test_pictures_are_small_copies(make_run):
    tags = outline(write_run_report(make_run())).tags
    addresses = {given["src"].partition(";")[0] for tag, given in tags if tag == "img"}
    assert addresses == {"data:image/png", "data:image/jpeg"}
    assert all(given["alt"] for tag, given in tags if tag == "img")
    assert max(len(given["src"]) for tag, given in tags if tag == "img") < 8000


def test_images_that_are_gone_are_named(make_run, tmp_path):
    folder = make_run()
    (tmp_path / "images").rename(tmp_path / "moved")
    said = content(write_run_report(folder))
    assert f"images cannot be read at {tmp_path / 'images'}" in said
    assert f"promptvit report {folder} --images FOLDER" in said
    assert "gone <b>.png" in said
    assert "large.jpg" in said
    assert any(tag == "img" for tag, _ in outline(write_run_report(folder, str(tmp_path / "moved"))).tags)


def test_a_run_without_predictions_says_how_to_get_them(make_run):
    folder = make_run(test=False)
    (folder / "predictions.json").unlink()
    said = content(write_run_report(folder))
    assert f"promptvit evaluate {folder} --keep --split val" in said
    assert "Confusions" not in said
    assert "Right validation images by class" in said


@pytest.mark.parametrize(
    "shape",
    [
        {"classes": 2, "epochs": 1, "right": 1.0},
        {"classes": 2, "epochs": 1, "right": 0.0},
        {"classes": 50},
        {"classes": 400, "epochs": 100, "per_class": 1},
    ],
)
def test_every_shape_of_run_has_a_page(make_run, shape):
    folder = make_run(**shape)
    assert content(write_run_report(folder))


def test_no_mistakes(make_run):
    said = content(write_run_report(make_run(classes=2, epochs=1, right=1.0)))
    assert "None: all 12 test images are right." in said
    assert "Area under ROC 0.9000" in said


def test_pairs_take_the_place_of_a_matrix_of_many_classes(make_run):
    said = content(write_run_report(make_run(classes=60, right=0.2)))
    assert "by class and by prediction" not in said
    assert "the first 20 of" in said
    assert "the 40 lowest of 60 classes" in said


def test_the_curves_have_a_reading(make_run):
    said = content(write_run_report(make_run()))
    assert "validation loss has its minimum at epoch 3 of 3 and ends there: it does not overfit." in said
    folder = make_run("trained on")
    protocol = json.loads((folder / "summary.json").read_text())["protocol"] | {"train_on": "train+val"}
    change(folder, "summary.json", protocol=protocol)
    assert "their loss says nothing of overfitting" in content(write_run_report(folder))


def test_nmi_is_drawn_if_it_was_followed(make_run):
    folder = make_run()
    rows = [
        {"epoch": epoch, "variant": "tokens", "blocks": [None, 0.1], "mean": 0.1, "seconds": 1.0} for epoch in (0, 1)
    ]
    (folder / "nmi.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "NMI of prompts and patches (tokens)" in content(write_run_report(folder))


def pruned(root, **chosen):
    row = {"prompt_parameters": 100, "delta_bytes": 4000, "flops": 10**6, "masked": {"top1": 0.5, "loss": 1.0}}
    rows = [{**row, "tokens": 0, "segments": segments, "prompt_parameters": 100 - segments} for segments in (0, 2, 4)]
    trained = [{**rows[1], "trained": {"top1": 0.7}, "folder": "trained/a"}, {**rows[2], "failed": "the loss is <nan>"}]
    search = {"run": "runs/before", "unpruned": rows[0], "candidates": rows[1:], "trained": trained, "trainings": 2}
    search |= {"selection": "validation accuracy", "seconds": 70.0, "chosen": {**trained[0], **chosen}}
    change(root, "summary.json", pruning=search)


def test_a_pruned_run_shows_its_candidates_and_the_curves_of_the_chosen_training(make_run):
    folder = make_run()
    (folder / "trained" / "a").mkdir(parents=True)
    (folder / "metrics.jsonl").rename(folder / "trained" / "a" / "metrics.jsonl")
    pruned(folder)
    said = content(write_run_report(folder))
    assert "100 values in prompts became 98, with 2 trainings in 1 min 10 s" in said
    assert "failed: the loss is <nan>" in said
    assert "Learning rate" in said


def test_masks_without_training_have_no_curves(make_run):
    folder = make_run()
    (folder / "metrics.jsonl").unlink()
    pruned(folder, folder="")
    assert "the curves are those of the run that was pruned" in content(write_run_report(folder))


def test_the_same_files_give_the_same_bytes(make_run):
    folder = make_run()
    first = write_run_report(folder).read_bytes()
    assert write_run_report(folder).read_bytes() == first


def test_no_run_and_damaged_files_are_refused(make_run, tmp_path):
    with pytest.raises(ConfigError, match="holds neither a run that is done nor a study"):
        write_run_report(tmp_path)
    folder = make_run()
    (folder / "predictions.json").write_text('{"source": ')
    with pytest.raises(DataError, match=r"predictions.json is damaged"):
        write_run_report(folder)
    (folder / "predictions.json").write_text("{}")
    with pytest.raises(DataError, match="no predictions"):
        write_run_report(folder)
    (folder / "summary.json").unlink()
    with pytest.raises(ConfigError, match="Finish it: promptvit train --config"):
        write_run_report(folder)


def test_predictions_of_other_classes_are_refused(make_run):
    folder = make_run(classes=2)
    columns = {"images": [0], "labels": [7], "predicted": [0], "confidence": [0.9], "of_label": [0.1]}
    change(folder, "predictions.json", **columns)
    with pytest.raises(DataError, match="classes that the run has not"):
        write_run_report(folder)
