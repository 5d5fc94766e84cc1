"""The papers' figures: means add up again, and rows say why they are not like ours."""

import dataclasses
import statistics

import pytest

from promptvit.data.catalog import FGVC, VTAB
from promptvit.methods import METHODS
from promptvit.search.matching import beside
from promptvit.search.protocols import PROTOCOLS
from promptvit.search.published import GROUP_OF, GROUPS, published
from promptvit.search.results import Cell, Results

CLASSES = {task.name: task.classes for task in (*VTAB, *FGVC)}
COUNTS = {group: sum(own == group for own in GROUP_OF.values()) for group in GROUPS}
VIT = "vit_base_patch16_224.orig_in21k"
DEEP = {"name": "vpt-deep"}
SUPERVISED, SWIN, MOCO = (
    "ViT-B/16, supervised on ImageNet-21k",
    "Swin-B, supervised on ImageNet-21k",
    "ViT-B/16, MoCo-v3",
)
OFF = {  # rows whose tasks do not give the printed mean, and what they give
    ("vpt", SWIN, "VPT-shallow", "structured"): 37.84,
    ("vpt", SWIN, "VPT-deep", "structured"): 53.45,
    ("vpt-or-ft", SUPERVISED, "Full", "specialized"): 83.35,
    ("vpt-or-ft", SWIN, "VPT-deep", "natural"): 82.49,
}
WINS_OFF = {  # printed, and counted in the rounded rows: ties, but for the second
    ("vpt", SUPERVISED, "VPT-shallow", "structured"): (4, 3),
    ("vpt", SWIN, "Linear", "natural"): (5, 4),
    ("vpt", MOCO, "Adapter", "specialized"): (1, 0),
}


def key(row, group):
    return row.paper, row.model.removesuffix(" (the linear-probe file)"), row.label, group


def rows(paper, table=None):
    return [row for row in published() if row.paper == paper and table in (None, row.table)]


def group_values(row, group):
    return [row.values[task] for task, own in GROUP_OF.items() if own == group and task in row.values]


def test_every_row_can_be_read_and_has_figures():
    assert len(published()) == 125
    for row in published():
        assert row.values or row.means
        assert set(row.values) | set(row.shares) <= set(GROUP_OF)
        assert set(row.means) | set(row.wins) <= set(GROUPS)
        assert all(0 < value <= 100 for value in (*row.values.values(), *row.means.values()))
        assert len([task for task in row.values if GROUP_OF[task] != "fgvc"]) in (0, 1, 19)
        if row.protocol:
            PROTOCOLS[row.protocol].change(**row.change)
        for task in GROUP_OF:
            if row.method:
                fields = row.fields(task)
                METHODS[fields["name"]].build(**{n: v for n, v in fields.items() if n != "name"})


@pytest.mark.parametrize("row", published(), ids=lambda row: f"{row.paper}, {row.table}, {row.model}, {row.label}")
def test_tasks_add_up_to_the_printed_means(row):
    for group, printed in row.means.items():
        values = group_values(row, group)
        if len(values) < COUNTS[group]:
            continue
        rounding = 0.06 if row.table == "a figure" else 0.041  # of tasks, and there of the means
        assert statistics.mean(values) == pytest.approx(OFF.get(key(row, group), printed), abs=rounding)


@pytest.mark.parametrize("row", [row for row in published() if row.wins and row.values], ids=lambda row: row.label)
def test_wins_over_full_fine_tuning_are_as_printed(row):
    table = [each for each in published() if (each.paper, each.table, each.model) == (row.paper, row.table, row.model)]
    baseline = "Full, one image a class" if "one image" in row.label else "Full"
    full = next((each for each in table if each.label == baseline), None)
    if full is None:
        full = rows("vpt", "Table 1")[0]  # E2VPT has no row of its own
    for group, printed in row.wins.items():
        tasks = [task for task, own in GROUP_OF.items() if own == group and task in row.values]
        counted = sum(row.values[task] > full.values[task] for task in tasks)
        if len(tasks) == COUNTS[group]:
            assert (printed, counted) == WINS_OFF.get(key(row, group), (printed, printed))


class TestFacts:
    """Of the acceptance facts, those on published figures (their numbers in brackets)."""

    def test_means_of_vpt_deep(self):
        deep = next(row for row in rows("vpt", "Table 1") if row.label == "VPT-deep")
        groups = [deep.means[group] for group in GROUPS[:3]]
        tasks = [deep.values[task] for task, group in GROUP_OF.items() if group != "fgvc"]
        assert round(statistics.mean(groups), 2) == 71.96
        assert round(statistics.mean(tasks), 2) == 69.43

    def test_vpt_deep_wins_20_of_24(self):  # [30]
        deep = next(row for row in rows("vpt", "Table 1") if row.label == "VPT-deep")
        full = rows("vpt", "Table 1")[0]
        assert sum(deep.values[task] > full.values[task] for task in GROUP_OF) == 20
        assert list(deep.wins.values()) == [6, 2, 8, 4]

    def test_trained_shares_of_vpt_deep(self):  # [12]
        lengths = next(row for row in rows("vpt", "Table 1") if row.label == "VPT-deep").lengths["length"]
        for task, expected in (("dmlab", (926_214, 86_724_870, 1.0680)), ("sun397", (351_373, 86_150_029, 0.4079))):
            trained = 12 * 768 * lengths[task] + 769 * CLASSES[task]
            total = 85_798_656 + trained
            assert (trained, total, round(100 * trained / total, 4)) == expected

    def test_mean_lengths_and_the_total_of_vpt_deep(self):
        row = next(row for row in rows("vpt", "Table 1") if row.label == "VPT-deep")
        lengths = row.lengths["length"]
        by_group = [statistics.mean(n for task, n in lengths.items() if GROUP_OF[task] == group) for group in GROUPS]
        assert by_group == pytest.approx([12.4, 52.8, 107.5, 73], abs=0.06)
        total = (85_798_656 + 9_216 * sum(lengths.values()) + 769 * sum(CLASSES.values())) / 85_798_656
        assert total == pytest.approx(1.1825, abs=5e-5)
        assert row.total == 1.18

    def test_classes(self):  # [29]
        sums = [sum(CLASSES[task] for task, own in GROUP_OF.items() if own == group) for group in GROUPS]
        assert sums == [795, 62, 83, 1_173]

    def test_shares_of_vpt_or_ft_follow_from_its_lengths(self):
        row = next(row for row in rows("vpt-or-ft", "VTAB-1k") if row.label == "VPT-deep")
        for task, share in row.shares.items():
            trained = 12 * 768 * row.lengths["length"][task] + 769 * CLASSES[task]
            assert 100 * trained / (85_798_656 + trained) == pytest.approx(share, abs=0.0101)

    def test_shares_of_e2vpt_that_its_lengths_cannot_have(self):
        row = next(row for row in rows("e2vpt") if row.shares)
        impossible = []
        for task, share in row.shares.items():
            fields = row.fields(task)
            trained = 12 * 768 * (fields["prompts"]["length"] + fields["kv"]["length"]) + 769 * CLASSES[task]
            total, least = 85_798_656 + trained, 12 * 768 * fields["kv"]["length"] + 769 * CLASSES[task]
            least, most = 100 * least / total, 100 * trained / total
            if not least <= share <= most + 0.005:
                impossible.append(task)
        assert len(impossible) == 15
        assert statistics.mean(row.shares.values()) == pytest.approx(0.391, abs=5e-4)

    def test_means_of_e2vpt_and_spt(self):
        e2vpt = rows("e2vpt")[0]
        assert statistics.mean(e2vpt.values[t] for t, g in GROUP_OF.items() if g != "fgvc") == pytest.approx(
            71.42, abs=0.01
        )
        assert statistics.mean(e2vpt.means[group] for group in GROUPS[:3]) == pytest.approx(73.94, abs=0.005)
        for row, tasks, groups in zip(
            rows("spt", "Table 2"),
            (61.3, 41.0, 37.2, 49.2, 62.6, 67.2, 66.2, 57.9, 61.2, 65.8, 68.3, 70.5),
            (64.3, 45.7, 41.1, 53.8, 65.6, 69.9, 69.6, 62.4, 65.2, 69.1, 71.2, 73.2),
            strict=True,
        ):
            weighted = sum(COUNTS[group] * row.means[group] for group in GROUPS[:3]) / 19
            assert weighted == pytest.approx(tasks, abs=0.051)
            assert statistics.mean(row.means[group] for group in GROUPS[:3]) == pytest.approx(groups, abs=0.051)


def matches(task="svhn", backbone=VIT, method=DEEP, protocol=PROTOCOLS["vpt"], **row):
    """The published rows beside a study of one cell."""
    cell = Cell(task=task, group="", backbone=backbone, method="ours", fields=method, **row)
    return beside(Results(name="s", protocol=protocol.to_dict(), cells=(cell,)), (backbone, "ours"))


def reasons(task="svhn", label=None, **given):
    """Why the closest row, or that of a label, is not like for like."""
    return next(match.reasons for match in matches(task, **given) if label in (None, match.row.label))


class TestBeside:
    def test_the_same_backbone_method_and_protocol(self):
        closest, *others = matches()
        assert (closest.row.table, closest.row.values["svhn"], closest.reasons) == ("Table 1", 78.1, ())
        assert all(match.reasons for match in others)

    def test_a_name_is_what_it_stands_for(self):
        assert reasons(method={"name": "vpt", "depth": "deep"}) == ()
        assert all(
            match.row.method["name"] == "mixed"
            for match in matches(method={"name": "mixed"}, protocol=PROTOCOLS["vpt-or-ft"])
        )

    def test_fgvc_has_its_own_protocol(self):
        assert reasons("cub") == ()
        assert "data.geometry squash (published: crop)" in reasons(
            "cub", protocol=dataclasses.replace(PROTOCOLS["vpt"], fgvc=None)
        )

    def test_another_backbone(self):
        assert reasons(backbone="vit_pico")[0].startswith("another backbone: ")
        assert reasons(backbone=f"{VIT}:avg")[0] == "pool avg (published: none)"

    def test_a_dead_adapter(self):
        assert reasons("cub", method={"name": "adapter"}) == ("compat_zero_init false (published: true)",)
        assert reasons("cub", method={"name": "adapter", "compat_zero_init": True}) == ()

    def test_a_fixed_length(self):
        assert reasons(method={"name": "vpt-deep", "length": 50}) == ()
        assert "length 10 (published: 50)" in reasons(method={"name": "vpt-deep", "length": 10})
        fixed = reasons("cub", method={"name": "vpt-shallow", "length": 5})
        assert "length fixed at 5 (published: searched)" in fixed

    def test_normalisation(self):
        changed = PROTOCOLS["vpt"].change(settings={"data.normalisation": "checkpoint"})
        assert reasons(protocol=changed) == ("published with ImageNet's statistics, here the checkpoint's statistics",)

    def test_a_changed_protocol(self):
        changed = PROTOCOLS["vpt"].change(
            settings={"train.epochs": 10}, grid={"train.learning_rate": (1.0,)}, seeds=(0,)
        )
        assert reasons(protocol=changed) == (
            "train.epochs 10 (published: 100)",
            "24 points searched (published: 240)",
            "seeds: 1 (published: 5)",
        )

    def test_many_differences_are_counted(self):
        found = reasons(protocol=PROTOCOLS["quick"])
        assert len(found) == 6
        assert found[0] == "length 10 (published: 50)"
        assert found[-1].endswith("more differences of the protocol")

    def test_the_best_epoch_on_test(self):
        mae = {"backbone": "vit_base_patch16_224.mae:avg-pretrained", "method": {"name": "spt-deep", "pooling": "all"}}
        assert reasons("cub", label="SPT-deep", protocol=PROTOCOLS["spt"], **mae) == (
            "the last epoch (published: the best epoch on test images)",
        )
        peeking = PROTOCOLS["spt"].change(epoch="best-test")
        assert reasons("cub", label="SPT-deep", protocol=peeking, **mae) == ()

    def test_a_leak_and_pruning_are_never_alike(self):
        swin = {
            "backbone": "swin_base_patch4_window7_224.ms_in22k",
            "method": {"name": "vpt-shallow", "pooling": "all"},
        }
        assert reasons(**swin) == ("the official code mixes the prompts of different images of a batch",)
        assert "72 trainings" in reasons(method={"name": "e2vpt"}, protocol=PROTOCOLS["e2vpt"])[0]

    def test_a_protocol_without_the_method(self):
        assert "no recipe for spt-deep" in reasons("cub", method={"name": "spt-deep"}, label="SPT-deep")[-1]
        assert reasons(method={"name": "lora"}) == ("none of our protocols describes how it was trained",)

    def test_what_comes_first_is_another_method(self):
        protocol = PROTOCOLS["vpt-or-ft"]
        (match,) = (each for each in matches(protocol=protocol, first={"name": "full"}) if not each.is_elsewhere)
        assert match.row.label == "Full, then VPT-deep"
        assert match.reasons[0].startswith("the settings of its full fine-tuning are searched")
        assert all(not each.row.first for each in matches(protocol=protocol))
        anew = reasons(label="Full, then VPT-deep", protocol=protocol, first={"name": "full", "head": "anew"})
        kept = reasons(label="Full, then VPT-deep", protocol=protocol, first={"name": "full", "head": "keep"})
        assert set(anew) - set(kept) == {"a new head after what is tuned first (published: not said)"}

    def test_settings_and_a_grid_of_the_row(self):
        full, protocol = {"name": "full"}, PROTOCOLS["vpt-or-ft"]
        assert reasons(label="Full", method=full, protocol=protocol) == ()
        pulled = reasons(label="Full", method=full, protocol=protocol, grid={"train.start_decay": [1.0, 10.0]})
        assert pulled == ("16 points searched (published: 8)",)
        fixed = reasons(label="Full", method=full, protocol=protocol, settings={"train.epochs": 10})
        assert fixed == ("train.epochs 10 (published: 100)",)

    def test_both_files_of_moco_hold_one_encoder(self):
        assert reasons(backbone="moco_v3_vit_base", label="VPT-deep") == ()

    def test_no_row_for_an_unknown_task(self):
        assert matches("sprites", method={"name": "full"}) == ()


def test_reasons_of_a_row_name_the_tasks_that_they_hold_for():
    cells = tuple(
        Cell(task=task, group="natural", backbone=VIT, method="deep", fields={"name": "vpt-deep", "length": 50})
        for task in ("svhn", "cifar")
    )
    results = Results(name="s", protocol=PROTOCOLS["vpt"].to_dict(), cells=cells)
    closest = beside(results, (VIT, "deep"))[0]
    assert closest.row.table == "Table 1"
    assert closest.reasons == ("length 50 (published: 10) on cifar",)
