"""`promptvit evaluate`: a tuned model on a labelled split."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal

from promptvit.cli.options import add_fields, expand, flatten, make_parser, option_value, parse
from promptvit.cli.runs import OTHERS, load_runs, run_config
from promptvit.data.config import DataConfig
from promptvit.errors import ConfigError
from promptvit.train.config import Device, TrainConfig


def run(arguments: list[str]) -> None:
    """Parse, evaluate, print."""
    expanded = expand(arguments)
    parser = make_parser("evaluate", "Measure a tuned model on the data of its run, or on --data.", "RUN ")
    parser.add_argument("run", metavar="RUN", help="a run's folder, or a delta's")
    parser.add_argument("--with", action="append", default=[], metavar="RUN", help=OTHERS)
    parser.add_argument("--split", type=Literal["val", "test"], default="test", help="which images")
    parser.add_argument("--batch_size", type=int, default=64, help="images at a time")
    parser.add_argument("--device", type=Device, default="auto", help="where to compute")
    parser.add_argument(
        "--keep", action="store_true", help="keep what it says of each image in the run's folder, for promptvit report"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_fields(parser, "data", DataConfig)
    values = parse(parser, expanded)
    folder = Path(values["run"])
    if option_value(expanded, "--data.source") is None:  # the run's own data, with what was typed on top
        own = flatten("--data", run_config(folder).to_dict()["data"])
        values = parse(parser, [*own, *expanded])
    data = DataConfig(**values["data"])

    if values["keep"] and (values["with"] or not (folder / "summary.json").is_file()):
        what = "an ensemble" if values["with"] else f"{folder}, which has no summary.json"
        raise ConfigError(f"--keep with {what}", expected="the folder of one run that is done")

    from promptvit.train.evaluate import measure, predict_task  # after parsing: help and wrong usage need no torch
    from promptvit.train.folder import RunFolder
    from promptvit.train.predictions import Predictions

    model = load_runs(values["run"], values["with"])
    config = TrainConfig(batch_size=values["batch_size"], device=values["device"])
    logits, labels, images = predict_task(model, data, values["split"], config)
    metrics = measure(logits, labels)
    if values["keep"]:
        predictions = Predictions.of(logits, labels, images, source=data.source, split=values["split"])
        RunFolder(folder).write_predictions(predictions)
    if values["json"]:
        print(json.dumps(metrics.to_dict()))
        return
    print(f"{metrics.images} {values['split']} images of {data.source}")
    for field in dataclasses.fields(metrics):
        value = getattr(metrics, field.name)
        if isinstance(value, float):
            print(f"  {field.name:<10} {value:.4f}")
    for name, share in zip(model.classes, metrics.per_class, strict=True):
        print(f"  {name:<24} {'no images' if share is None else f'{100 * share:.1f} %'}")
