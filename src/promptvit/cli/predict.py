"""`promptvit predict`: the classes of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from promptvit.cli.options import make_parser, parse
from promptvit.cli.runs import OTHERS, load_runs
from promptvit.errors import DataError
from promptvit.train.config import Device

if TYPE_CHECKING:
    from promptvit.model import Prediction


def run(arguments: list[str]) -> None:
    """Parse, predict, print."""
    parser = make_parser("predict", "Classify images with a tuned model.", "RUN IMAGE... ")
    parser.add_argument("run", metavar="RUN", help="a run's folder, or a delta's")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--with", action="append", default=[], metavar="RUN", help=OTHERS)
    parser.add_argument("--top", type=int, default=3, help="classes per image")
    parser.add_argument("--batch_size", type=int, default=64, help="images at a time")
    parser.add_argument("--device", type=Device, default="auto", help="where to compute")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    values = parse(parser, arguments)

    from promptvit.train.config import TrainConfig  # after parsing: help and wrong usage need no torch
    from promptvit.train.device import make_accelerator

    paths = image_files([Path(image) for image in values["images"]])
    device = make_accelerator(TrainConfig(device=values["device"])).device
    model = load_runs(values["run"], values["with"]).to(device)
    predictions = model.predict(paths, top=values["top"], batch_size=values["batch_size"])
    if values["json"]:
        print(json.dumps(as_json(paths, predictions), ensure_ascii=False))
        return
    width = max(len(str(path)) for path in paths)
    for path, prediction in zip(paths, predictions, strict=True):
        classes = zip(prediction.names, prediction.probabilities, strict=True)
        print(f"{path!s:<{width}}  " + "  ".join(f"{name} {100 * share:.1f} %" for name, share in classes))


def as_json(paths: list[Path], predictions: list[Prediction]) -> dict:
    """One object: for each image its classes, most probable first."""
    return {
        "predictions": [
            {
                "image": str(path),
                "classes": [
                    {"name": name, "label": label, "probability": share}
                    for name, label, share in zip(p.names, p.labels, p.probabilities, strict=True)
                ],
            }
            for path, p in zip(paths, predictions, strict=True)
        ]
    }


def image_files(paths: list[Path]) -> list[Path]:
    """The files among `paths`, and all image files below the folders; raises DataError for what is not there."""
    from promptvit.data.folder import image_paths

    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist", expected="an image file, or a folder of them", where="predict")
        found += image_paths(path) if path.is_dir() else [path]
    if not found:
        raise DataError(f"no images in {', '.join(map(str, paths))}", where="predict")
    return found
