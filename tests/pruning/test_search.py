"""Searches on real images, from a run to a smaller one."""

import dataclasses
import json
import shutil
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import yaml

import promptvit as pv
from promptvit.data.load import load_split, load_task
from promptvit.data.transforms import normalise
from promptvit.errors import ConfigError, DeltaError, OutputError, TrainingError
from promptvit.methods.masks import Masks
from promptvit.pruning.config import PruneConfig
from promptvit.pruning.scores import Scores, prune, score_prompts
from promptvit.pruning.search import PruneListener, PruneSearch, accuracy, prune_run
from promptvit.train.config import RunConfig
from promptvit.train.folder import RunFolder
from promptvit.train.loop import Listener, fit, make_method

SMALL = {"tokens": [1, 3], "segments": [8], "budget": 2, "epochs": 1, "tolerance": 100.0}
ONE = {"tokens": [1], "segments": [6], "budget": 1, "epochs": 1}


def comparable(summary):
    """What does not depend on the clock."""
    copy = json.loads(json.dumps(summary))
    for row in (copy["pruning"]["chosen"], *copy["pruning"]["trained"]):
        row.get("trained", {}).pop("seconds", None)
    del copy["command"], copy["pruning"]["seconds"]
    return copy


def content(folder):
    """Every file and its bytes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_config(folder):
    return RunConfig.from_dict(yaml.safe_load((folder / "config.yaml").read_text()))


def only_trained(folder):
    """The folder of the one candidate that was trained."""
    (trained,) = (folder / "trained").iterdir()
    return trained


def masks_of(folder):
    return pv.load(folder / "delta").method.masks


def with_values(run, values):
    """The model of a run with other values of all that it trained."""
    model = pv.load(run / "delta")
    with torch.no_grad():
        for name, tensor in model.trained_tensors().items():
            tensor.copy_(values[name])
    return model


def images_of(run, split="val"):
    """Normalised images and labels of a run's task."""
    config, model = read_config(run), pv.load(run / "delta")
    dataset = load_split(getattr(load_task(config.data), split), model.preprocessing, config.data)
    pixels, labels = dataset.__getitems__(range(len(dataset)))
    return normalise(pixels, model.preprocessing), labels


@pytest.fixture(scope="module")
def search(run, tmp_path_factory):
    """The folder of a finished search, and what it told its listener."""
    folder, told = tmp_path_factory.mktemp("searches") / "small", []
    listener = PruneListener(
        phase=lambda what, steps: told.append((what, steps)),
        step=lambda: told.append("step"),
        training=lambda number, count: Listener(epoch=lambda row: told.append((number, count, row["epoch"]))),
    )
    prune_run(run, folder, PruneConfig(**SMALL), listener=listener, command="promptvit prune")
    return folder, told


# --- what a search leaves ------------------------------------------------------------------------------------------


def test_a_search_leaves_a_whole_folder(search, run):
    folder, told = search
    summary = json.loads((folder / "summary.json").read_text())
    pruning = summary["pruning"]
    assert [(row["tokens"], row["segments"]) for row in pruning["candidates"]] == [
        (0, 8),
        (1, 0),
        (1, 8),
        (3, 0),
        (3, 8),
    ]
    assert pruning["trainings"] == len(pruning["trained"]) == 2
    assert pruning["unpruned"]["result"] == RunFolder(run).read_summary()["result"]
    assert all(RunFolder(folder / row["folder"]).read_summary()["result"]["test"] is None for row in pruning["trained"])
    assert summary["command"] == "promptvit prune"
    assert {path.name for path in folder.iterdir()} == {
        *("prune.json", "scores.safetensors", "candidates.jsonl", "trained", "delta", "config.yaml", "summary.json"),
        "predictions.json",
    }
    assert [each for each in told if isinstance(each, tuple) and isinstance(each[0], str)] == [
        ("reading train images", 30),
        ("scoring prompts", 1),
        ("reading val images", 20),
        ("measuring masks", 6),
        ("evaluating", 1),
    ]
    assert told.count("step") == 30 + 1 + 20 + 6 + 1
    assert [each for each in told if len(each) == 3] == [(1, 2, 1), (2, 2, 1)]


def test_figures_of_the_rows_are_those_of_the_pruned_models(search, run):
    folder, _ = search
    model, (images, labels) = pv.load(run / "delta"), images_of(run)
    scores = Scores(**safetensors.numpy.load((folder / "scores.safetensors").read_bytes()), scope="block")
    samples = torch.utils.data.TensorDataset(*images_of(run, "train"))
    expected = score_prompts(model, samples)
    np.testing.assert_allclose(scores.tokens, expected.tokens, rtol=1e-4)
    np.testing.assert_allclose(scores.segments, expected.segments, rtol=1e-4, atol=1e-9)
    measured = [json.loads(line) for line in (folder / "candidates.jsonl").read_text().splitlines()]
    for number, row in enumerate(measured):
        pruned = (prune(model, scores.masks(row["tokens"], row["segments"])) if number else model).eval()
        with torch.no_grad():
            logits = pruned(images)
        assert row["masked"]["top1"] == pytest.approx((logits.argmax(dim=1) == labels).double().mean().item())
        assert row["masked"]["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
        assert row["kept_tokens"] == 4 - row["tokens"]
        assert row["kept_segments"] == (4 - row["tokens"]) * (16 - row["segments"])
        assert row["prompt_parameters"] == 6 * row["kept_segments"] * 128 // 16
        assert row["trained_parameters"] == row["prompt_parameters"] + 129 * 3
        assert row["delta_bytes"] == pruned.save(folder.parent / "saved").joinpath("delta.safetensors").stat().st_size
    sizes = [row["flops"] for row in measured]
    assert sizes[0] == sizes[1] > sizes[2] == sizes[3] > sizes[4] == sizes[5]  # zeros in prompts save no time
    products, queries = 2, 5 * 17 + 1  # with keys and with values; in the last block one query alone asks
    assert sizes[0] - sizes[2] == products * queries * 2 * 128  # of one prompt
    assert sizes[0] - sizes[4] == 3 * (sizes[0] - sizes[2])


@pytest.mark.parametrize("kind", ["the run itself", "masks alone", "trained"])
def test_the_chosen_one_can_be_used_like_any_run(kind, search, run, tmp_path, monkeypatch):
    folder = shutil.copytree(search[0], tmp_path / "out")
    (folder / "summary.json").unlink()
    number = {"the run itself": 0, "masks alone": 2, "trained": -1}[kind]
    monkeypatch.setattr(PruneSearch, "choose", lambda self, rows: rows[number])
    summary = prune_run(run, folder, PruneConfig(**SMALL), resume=True)
    chosen, loaded = summary["pruning"]["chosen"], pv.load(folder / "delta").eval()
    if kind == "the run itself":
        expected = pv.load(run / "delta")
    elif kind == "trained":
        expected = pv.load(folder / chosen["folder"] / "delta")
    else:
        scores = Scores(**safetensors.numpy.load((folder / "scores.safetensors").read_bytes()), scope="block")
        expected = prune(pv.load(run / "delta"), scores.masks(chosen["tokens"], chosen["segments"]))
    assert loaded.method == expected.method
    assert loaded.trained_parameters() == chosen["trained_parameters"] == summary["cost"]["trained_parameters"]
    images, labels = images_of(folder)
    with torch.no_grad():
        logits = loaded(images)
        assert torch.equal(logits, expected.eval()(images))
    val = summary["result"]["val"]
    assert val["top1"] == pytest.approx((logits.argmax(dim=1) == labels).double().mean().item())
    assert val["top1"] == pytest.approx(accuracy(chosen))
    assert summary["result"]["test"]["images"] == 10
    assert summary["method"] == read_config(folder).method
    assert make_method(read_config(folder)) == loaded.method
    if kind != "the run itself":
        alone = fit(read_config(folder), tmp_path / "alone")  # its config.yaml is that of a run
        assert alone["cost"]["trained_parameters"] == chosen["trained_parameters"]


# --- where training starts again -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rewound(request, tmp_path_factory):
    """The folder of the one training of a search, from a run and where it starts again."""

    @cache
    def make(name, rewind):
        folder = tmp_path_factory.mktemp("searches") / "out"
        epochs = None if rewind == "keep" else 1
        prune_run(request.getfixturevalue(name), folder, PruneConfig(**ONE | {"epochs": epochs}, rewind=rewind))
        return only_trained(folder)

    return make


@pytest.mark.parametrize(
    ("name", "rewind"), [("run", "start"), ("run", "early"), ("run", "keep"), ("composed", "start")]
)
def test_training_starts_from_the_values_of_the_run_bit_for_bit(name, rewind, rewound, request):
    run, trained = request.getfixturevalue(name), rewound(name, rewind)
    path = run / "delta" / "delta.safetensors" if rewind == "keep" else run / "state" / f"{rewind}.safetensors"
    expected = prune(with_values(run, safetensors.torch.load(path.read_bytes())), masks_of(trained)).trained_tensors()
    begun = RunFolder(trained).read_values("start")
    assert begun.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in begun.items())


@pytest.mark.parametrize(("name", "rewind"), [("run", "start"), ("run", "fresh"), ("composed", "start")])
def test_start_and_fresh_are_runs_of_the_masked_configuration(name, rewind, rewound, tmp_path):
    trained = rewound(name, rewind)
    alone, summary = fit(read_config(trained), tmp_path / "alone"), RunFolder(trained).read_summary()
    assert (alone["result"]["val"], alone["train_loss"]) == (summary["result"]["val"], summary["train_loss"])
    begun, values = (RunFolder(folder).read_values("start") for folder in (trained, tmp_path / "alone"))
    assert all(torch.equal(tensor, values[key]) for key, tensor in begun.items())


@pytest.mark.parametrize("name", ["run", "composed"])
def test_fresh_has_another_seed_and_other_values(name, rewound):
    start, fresh = rewound(name, "start"), rewound(name, "fresh")
    values, others = (RunFolder(folder).read_values("start") for folder in (start, fresh))
    assert values.keys() == others.keys()
    assert all(not torch.equal(values[key], others[key]) for key in values if key.startswith("delta"))
    assert read_config(fresh).train == dataclasses.replace(read_config(start).train, seed=1)
    assert masks_of(fresh) == masks_of(start)
    if name == "composed":
        assert [read_config(folder).method["prompts"]["seed"] for folder in (start, fresh)] == [0, 1]


def test_training_again_is_as_long_as_before_unless_asked(run, rewound):
    before, shorter, after = read_config(run), *(read_config(rewound("run", rewind)) for rewind in ("start", "keep"))
    rate = RunFolder(run).read_summary()["protocol"]["learning_rate"]
    assert after.train == dataclasses.replace(before.train, learning_rate=rate, keep_epoch=None)
    assert shorter.train == dataclasses.replace(after.train, epochs=1)
    assert (after.data, after.backbone) == (before.data, before.backbone)


def test_a_rate_that_grows_with_the_batch_has_grown_once(composed, rewound):
    trained = rewound("composed", "start")
    runs = [RunFolder(folder).read_summary()["protocol"]["learning_rate"] for folder in (composed, trained)]
    assert runs == [pv.VPT.learning_rate / 2] * 2
    assert read_config(composed).train.rate_batch == 30
    assert read_config(trained).train.rate_batch is None


# --- which candidates ----------------------------------------------------------------------------------------------


def rows(*sizes_and_losses):
    return [
        {"tokens": i, "segments": 0, "prompt_parameters": size, "masked": {"loss": loss, "top1": 0.0}}
        for i, (size, loss) in enumerate(sizes_and_losses)
    ]


@pytest.mark.parametrize("budget", range(1, 7))
def test_a_cheap_search_trains_at_most_its_budget_of_different_sizes(budget):
    config = SimpleNamespace(config=PruneConfig(budget=budget))
    measured = rows((60, 0.1), *((size, 1.0 + size / 100) for size in range(50, 0, -10)))
    chosen = PruneSearch.finalists(config, measured)
    assert 1 <= len(chosen) <= min(budget, 5)
    assert all(row["tokens"] > 0 for row in chosen)
    sizes = [row["prompt_parameters"] for row in chosen]
    assert sizes == sorted(set(sizes), reverse=True)
    if budget > 1:
        assert len(chosen) > 1


def test_of_each_size_the_one_that_does_best_as_it_is():
    measured = rows((99, 0.0), (90, 0.5), (80, 0.4), (50, 1.0), (49, 0.9), (10, 3.0), (11, 2.0), (12, 2.5))
    chosen = PruneSearch.finalists(SimpleNamespace(config=PruneConfig(budget=3)), measured)
    assert [row["prompt_parameters"] for row in chosen] == [50, 49, 11]
    grid = PruneSearch.finalists(SimpleNamespace(config=PruneConfig(search="grid")), measured)
    assert grid == measured[1:]
    same = rows((9, 0.0), (5, 0.7), (5, 0.6))
    assert PruneSearch.finalists(SimpleNamespace(config=PruneConfig(budget=1)), same) == [same[2]]
    assert PruneSearch.finalists(SimpleNamespace(config=PruneConfig(budget=2)), same) == same[1:]  # enough for all


@pytest.mark.parametrize(
    ("tolerance", "accuracies", "chosen"),
    [
        (0.0, [0.9, 0.9, 0.8, 0.5], 1),  # as good, and smaller
        (0.0, [0.9, 0.8, 0.8, 0.5], 0),  # nothing is as good as no pruning
        (0.0, [0.9, 0.91, 0.95, 0.95], 3),
        (10.0, [0.9, 0.9, 0.85, 0.5], 2),
        (100.0, [0.9, 0.9, 0.85, 0.0], 3),
    ],
)
def test_the_smallest_of_those_that_are_good_enough(tolerance, accuracies, chosen):
    measured = rows(*((size, 0.0) for size in (40, 30, 20, 10)))
    for row, top1 in zip(measured, accuracies, strict=True):
        row["trained" if row["tokens"] else "masked"] = {"top1": top1}
    search = SimpleNamespace(config=PruneConfig(tolerance=tolerance))
    assert PruneSearch.choose(search, measured) is measured[chosen]
    assert PruneSearch.choose(search, measured[::-1]) is measured[chosen]


def test_of_equally_small_ones_the_better():
    measured = rows((9, 0.0), (5, 0.0), (5, 0.0))
    for row, top1 in zip(measured, (0.5, 0.6, 0.7), strict=True):
        row["trained"] = {"top1": top1}
    assert PruneSearch.choose(SimpleNamespace(config=PruneConfig(tolerance=50.0)), measured) is measured[2]


def test_no_other_is_as_good_and_smaller(run, rewound):
    """The run itself is a candidate, and so is every mask without training."""
    summary = RunFolder(rewound("run", "start").parents[1]).read_summary()
    pruning, chosen = summary["pruning"], summary["pruning"]["chosen"]
    rows = [pruning["unpruned"], *pruning["candidates"], *pruning["trained"]]
    assert accuracy(chosen) == max(map(accuracy, rows)) >= RunFolder(run).read_summary()["result"]["val"]["top1"]
    best = [row["prompt_parameters"] for row in rows if accuracy(row) == accuracy(chosen)]
    assert chosen["prompt_parameters"] == min(best)


def test_a_grid_trains_every_candidate(run, tmp_path):
    config = PruneConfig(search="grid", tokens=range(2), segments=[4], epochs=1, budget=1)
    summary = prune_run(run, tmp_path / "out", config)
    trained = [(row["tokens"], row["segments"]) for row in summary["pruning"]["trained"]]
    assert trained == [(0, 4), (1, 0), (1, 4)]
    assert prune_run(run, tmp_path / "out", config, resume=True) == summary


@pytest.mark.parametrize(
    ("fields", "sets"),
    [
        ({"scope": "all"}, 1),
        ({"scope": "block"}, 6),
        ({"scope": "first"}, 1),
        ({"compat_zero": True, "scope": "all"}, 1),
        ({"layout": "interleaved", "gate": "values", "score": "compat_signed"}, 6),
        ({"cascade": True}, 6),
        ({"cascade": True, "scope": "first", "compat_zero": True}, 1),
    ],
    ids=str,
)
def test_what_is_pruned_is_what_was_asked_for(fields, sets, run, tmp_path):
    search = PruneSearch(run, tmp_path, PruneConfig(**ONE, **fields), PruneListener(), None)
    candidates, of_first = list(search.candidates()), fields.get("scope") == "first"
    for candidate in candidates:
        masks = search.masks(candidate)
        assert len(masks.tokens) == sets
        assert all(len(gone) == candidate.tokens for gone in masks.tokens)
        assert all(len(gone) in (0, candidate.segments) for prompts in masks.segments for gone in prompts)
        for name in ("scope", "layout", "compat_zero"):
            assert getattr(masks, name) == fields.get(name, getattr(PruneConfig(), name))
    row = search.measure(candidates[3])
    assert row["kept_tokens"] == pytest.approx(4 - 1 / 6 if of_first else 3)
    assert row["kept_segments"] == pytest.approx((5 * 64 + 30) / 6 if of_first else 30)
    assert (tmp_path / "scores-tokens1.safetensors").exists() == bool(fields.get("cascade"))


def test_a_cascade_scores_segments_among_the_prompts_that_are_left(run, tmp_path):
    config = PruneConfig(**ONE | {"tokens": [2]}, cascade=True)
    search = PruneSearch(run, tmp_path / "out", config, PruneListener(), None)
    candidates = list(search.candidates())
    plain, cascaded = search.masks(candidates[2]), search.masks(candidates[3])
    assert plain.tokens == cascaded.tokens
    samples = torch.utils.data.TensorDataset(*images_of(run, "train"))
    model = pv.load(run / "delta")
    among = score_prompts(prune(model, plain), samples)
    scores = score_prompts(model, samples)
    assert cascaded == dataclasses.replace(scores, segments=among.segments).masks(2, 6)
    assert cascaded != scores.masks(2, 6)


# --- stopped and resumed -------------------------------------------------------------------------------------------


class StopError(Exception):
    pass


class Told:
    """What searches told, across stops; `stop` raises where it returns true."""

    def __init__(self, stop=lambda what: False):
        self.stop, self.steps, self.epochs, self.now = stop, {}, [], ""

    def listener(self):
        return PruneListener(phase=self.phase, step=self.step, training=self.training)

    def phase(self, what, steps):
        self.now = what
        self.tell((what, 0))

    def step(self):
        self.steps[self.now] = self.steps.get(self.now, 0) + 1
        self.tell((self.now, self.steps[self.now]))

    def training(self, number, count):
        def epoch(row):
            self.epochs.append((number, row["epoch"]))
            self.tell(("training", *self.epochs[-1]))

        return Listener(epoch=epoch)

    def tell(self, what):
        if self.stop(what):
            raise StopError(what)


STOPS = [
    ("reading train images", 15),
    ("scoring prompts", 0),
    ("scoring prompts", 1),
    ("reading val images", 0),
    ("measuring masks", 2),
    ("measuring masks", 6),
    ("training", 1, 1),
    ("training", 2, 1),
]


def test_a_search_that_was_stopped_goes_on_to_the_same_result(search, run, tmp_path):
    """Stopped at every place, one after the other; and the run is left as it is."""
    before = content(run)
    whole, folder, told = json.loads((search[0] / "summary.json").read_text()), tmp_path / "out", Told()
    for place in STOPS:
        told.stop = lambda what, place=place: what == place
        with pytest.raises(StopError):
            prune_run(run, folder, PruneConfig(**SMALL), resume=True, listener=told.listener())
        assert not (folder / "summary.json").exists()
        for what in ("reading train images", "reading val images"):
            told.steps.pop(what, None)
    told.stop = lambda what: False
    summary = prune_run(run, folder, PruneConfig(**SMALL), resume=True, listener=told.listener())
    assert comparable(summary) == comparable(whole)
    assert told.epochs == [(1, 1), (2, 1)]
    assert told.steps["scoring prompts"] == 1
    assert told.steps["measuring masks"] == 6
    assert content(run) == before


@pytest.mark.slow
def test_a_training_that_was_stopped_goes_on_from_its_last_epoch(composed, tmp_path):
    """Prompts from tokens, key-value prompts, pruning and a stop together."""
    config, told = PruneConfig(**SMALL | {"epochs": 2}), Told(lambda what: what == ("training", 2, 1))
    whole = prune_run(composed, tmp_path / "whole", config)
    with pytest.raises(StopError):
        prune_run(composed, tmp_path / "out", config, listener=told.listener())
    told.stop = lambda what: False
    summary = prune_run(composed, tmp_path / "out", config, resume=True, listener=told.listener())
    assert comparable(summary) == comparable(whole)
    assert told.epochs == [(1, 1), (1, 2), (2, 1), (2, 2)]
    loaded, (images, _) = pv.load(tmp_path / "out" / "delta").eval(), images_of(composed)
    assert loaded.delta.kv is not None
    trained = pv.load(tmp_path / "out" / summary["pruning"]["trained"][-1]["folder"] / "delta").eval()
    assert trained.method.masks is not None
    saved = pv.load(trained.save(tmp_path / "copy")).eval()
    with torch.no_grad():
        assert torch.equal(saved(images), trained(images))


def test_a_training_that_fails_is_told_and_not_repeated(search, run, tmp_path):
    folder = shutil.copytree(search[0], tmp_path / "out")
    whole = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").unlink()
    failed = whole["pruning"]["trained"][0]
    shutil.rmtree(folder / failed["folder"])

    def fail(row):
        raise TrainingError("the loss is nan")

    listener = PruneListener(training=lambda number, count: Listener(epoch=fail))
    pruning = prune_run(run, folder, PruneConfig(**SMALL), resume=True, listener=listener)["pruning"]
    assert [row.get("failed") for row in pruning["trained"]] == ["the loss is nan", None]
    assert pruning["chosen"] not in pruning["trained"][:1]
    (folder / "summary.json").unlink()
    assert prune_run(run, folder, PruneConfig(**SMALL), resume=True)["pruning"] == pruning


def test_a_finished_search_is_only_read(search, run):
    folder, _ = search
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    summary = prune_run(run, folder, PruneConfig(**SMALL), resume=True)
    assert summary == json.loads((folder / "summary.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


# --- refusals ------------------------------------------------------------------------------------------------------


def test_a_folder_with_a_search_or_anything_else_is_left_alone(search, run):
    folder, _ = search
    before = content(folder)
    with pytest.raises(OutputError, match=r"holds a search already.*--resume"):
        prune_run(run, folder, PruneConfig(**SMALL))
    assert content(folder) == before
    for resume in (False, True):
        before = content(run)
        with pytest.raises(OutputError, match=r"is in use; expected a new or empty folder"):
            prune_run(run, run, PruneConfig(**SMALL), resume=resume)
        assert content(run) == before


def test_other_settings_are_refused(search, run):
    folder, _ = search
    before = content(folder)
    with pytest.raises(ConfigError, match=r"budget, tolerance differ from .*prune.json; expected the same settings"):
        prune_run(run, folder, PruneConfig(**SMALL | {"budget": 1, "tolerance": 1.0}), resume=True)
    assert content(folder) == before


def test_the_search_of_another_run_is_refused(search, composed, run, tmp_path):
    folder, _ = search
    before = content(folder)
    with pytest.raises(DeltaError, match=r"the scores and masks in .* belong to another run"):
        prune_run(composed, folder, PruneConfig(**SMALL), resume=True)
    moved = shutil.copytree(run, tmp_path / "moved")
    assert prune_run(moved, folder, PruneConfig(**SMALL), resume=True)["pruning"]["run"] == str(run)
    assert content(folder) == before


def test_a_run_that_is_not_done_is_refused(run, tmp_path):
    unfinished = shutil.copytree(run, tmp_path / "run")
    (unfinished / "summary.json").unlink()
    with pytest.raises(ConfigError, match=r"holds no run that is done.*promptvit train --config .* --resume"):
        prune_run(unfinished, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"nowhere holds no run that is done; expected the folder of a finished"):
        prune_run(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("when", ["start", "early"])
def test_values_that_are_missing_or_damaged_are_said_before_anything_else(when, run, tmp_path):
    copied, config = shutil.copytree(run, tmp_path / "run"), PruneConfig(**ONE, rewind=when)
    path = copied / "state" / f"{when}.safetensors"
    path.write_bytes(b"half")
    with pytest.raises(DeltaError, match="cannot be read"):
        prune_run(copied, tmp_path / "out", config)
    path.unlink()
    with pytest.raises(DeltaError, match=f"has kept no values of {when}.*[Tt]rain it"):
        prune_run(copied, tmp_path / "out", config)
    assert not (tmp_path / "out").exists()
    PruneSearch(
        copied, tmp_path / "out", PruneConfig(**ONE, rewind="keep"), PruneListener(), None
    )  # needs none of them


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ({"name": "linear"}, "the method linear has no visual prompts; expected vpt, spt or e2vpt"),
        ({"name": "kv"}, "the method e2vpt has no visual prompts"),
        ({"name": "vpt-bias", "length": 2}, "it trains weights of the backbone, which would change with every pruning"),
        (
            {"name": "e2vpt", "prompts": {"length": 2}, "masks": {"length": 2, "tokens": [[0]]}},
            "it is pruned already; prune the run that it comes from",
        ),
    ],
    ids=["linear", "kv", "vpt-bias", "pruned"],
)
def test_runs_that_cannot_be_pruned_are_refused(method, reason, make_untrained, tmp_path):
    with pytest.raises(ConfigError, match=reason):
        prune_run(make_untrained(method), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_without_unseen_validation_images_is_refused(run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run")
    config = yaml.safe_load((copied / "config.yaml").read_text())
    config["data"]["train_on"] = "train+val"
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match="was trained on its validation images"):
        prune_run(copied, tmp_path / "out")


def test_a_pruned_run_is_not_pruned_again(search, tmp_path):
    with pytest.raises(ConfigError, match="it is pruned already"):
        prune_run(search[0], tmp_path / "out")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"tokens": [4], "segments": []}, "prompts: 4 of 4 pruned: 1 are always kept"),
        ({"tokens": [], "segments": []}, "nothing to try: 4 prompts per block, of which 1 are kept"),
        ({"keep_tokens": 4, "keep_segments": 16}, "nothing to try: 4 prompts per block, of which 4 are kept"),
        ({"parts": 5}, "5 segments of prompts of width 128; expected a divisor"),
    ],
    ids=str,
)
def test_what_does_not_fit_the_run_is_said_before_anything_else(fields, reason, run, tmp_path):
    with pytest.raises(ConfigError, match=reason):
        prune_run(run, tmp_path / "out", PruneConfig(**fields))
    assert not (tmp_path / "out").exists()


def test_projected_prompts_lose_whole_prompts_alone(make_untrained, tmp_path):
    run = make_untrained({"name": "vpt-deep", "length": 2, "project": 8})
    for fields, reason in (
        ({}, "segments of projected prompts: a projection mixes them"),
        ({"segments": [0], "compat_zero": True}, "compat_zero with projected prompts"),
    ):
        with pytest.raises(ConfigError, match=reason):
            prune_run(run, tmp_path / "out", PruneConfig(tokens=[1], rewind="keep", **fields))
        assert not (tmp_path / "out").exists()
    search = PruneSearch(run, tmp_path, PruneConfig(tokens=[1], segments=[0], rewind="keep"), PruneListener(), None)
    masks = [search.masks(candidate) for candidate in search.candidates()]
    assert [each.prunes_segments for each in masks] == [False, False]
    assert all(len(gone) == 1 for gone in masks[1].tokens)


def test_masks_in_the_files_are_plain_lists(search):
    folder = search[0]
    description = json.loads((folder / "delta" / "delta.json").read_text())
    assert Masks(**description["method"]["config"]["masks"]) == masks_of(folder)
