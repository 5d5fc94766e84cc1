"""The parameter tables of the VPT paper, counted on outlines of the real backbones; nothing is downloaded."""

from functools import cache

import pytest

from promptvit.backbones.source import BackboneSource
from promptvit.counting import count, outline
from promptvit.methods.adapter import Adapter
from promptvit.methods.add import Add
from promptvit.methods.bias import Bias
from promptvit.methods.cls import Cls
from promptvit.methods.full import Full
from promptvit.methods.linear import Linear
from promptvit.methods.mlp import MLP
from promptvit.methods.partial import Partial
from promptvit.methods.pixel import Pixel
from promptvit.methods.side import Side
from promptvit.methods.vpt import VPT

NAMES = {
    "ViT-B": "vit_base_patch16_224.orig_in21k",
    "MAE": "vit_base_patch16_224.mae",
    "ViT-L": "vit_large_patch16_224.orig_in21k",
    "ViT-H": "vit_huge_patch14_224.orig_in21k",
    "Swin-T": "swin_tiny_patch4_window7_224",
    "Swin-S": "swin_small_patch4_window7_224",
    "Swin-B": "swin_base_patch4_window7_224.ms_in22k",
    "Swin-L": "swin_large_patch4_window7_224",
    "ConvNeXt-B": "convnext_base.fb_in22k",
    "ResNet-50": "resnet50.tv_in1k",
}
"""The paper's backbones by timm's names."""
NATURAL, SPECIALIZED = (100, 102, 47, 102, 37, 10, 397), (2, 10, 45, 5)
STRUCTURED = (8, 6, 6, 4, 16, 16, 18, 9)
VTAB, FGVC = (*NATURAL, *SPECIALIZED, *STRUCTURED), (200, 555, 102, 120, 196)
"""Classes of each task, in the paper's order."""


@cache
def backbone(name):
    """Without values."""
    return outline(BackboneSource(name=NAMES[name]))


def body(name):
    """Parameters of a backbone without its head."""
    return sum(p.numel() for p in backbone(name).weights().values())


@cache
def added(name, method):
    """What a method trains beside the linear head, whose size is that of the paper: (D + 1) · C."""
    return count(backbone(name), method, 2).trained - 2 * (backbone(name).info.width + 1)


def heads(name, classes):
    """The linear heads of several tasks."""
    return (backbone(name).info.width + 1) * sum(classes)


def total(name, method, classes):
    """One backbone and all that is stored beside it for each of some tasks; full fine-tuning stores copies alone."""
    shared = 0 if isinstance(method, Full) else body(name)
    return shared + len(classes) * added(name, method) + heads(name, classes)


@pytest.mark.parametrize(
    ("name", "parameters", "width", "blocks", "biases"),
    [
        ("ViT-B", 85_798_656, 768, 12, 102_912),
        ("MAE", 85_798_656, 768, 12, 102_912),
        ("ViT-L", 303_301_632, 1024, 24, 272_384),
        ("ViT-H", 630_764_800, 1280, 32, 453_120),
        ("Swin-B", 86_743_224, 1024, 24, 137_216),
        ("ConvNeXt-B", 87_566_464, 1024, 0, 130_304),
        ("ResNet-50", 23_508_032, 2048, 0, 26_560),
    ],
)
def test_bodies_and_biases(name, parameters, width, blocks, biases):
    assert body(name) == parameters
    assert (backbone(name).info.width, backbone(name).info.depth) == (width, blocks)
    assert added(name, Full()) == parameters
    assert added(name, Bias()) == biases
    assert added(name, Linear()) == 0


def test_the_papers_biases_of_swin_contain_the_position_tables():
    assert added("Swin-B", Bias(position_tables=True)) == 200_760 == 137_216 + 63_544


@pytest.mark.parametrize(
    ("name", "method", "parameters"),
    [
        ("ViT-B", Partial(count=1), 7_089_408),
        ("ViT-B", Partial(count=2), 14_177_280),
        ("ViT-B", Partial(count=4), 28_353_024),
        ("ViT-L", Partial(count=1), 12_598_272),
        ("ViT-L", Partial(count=2), 25_194_496),
        ("ViT-L", Partial(count=4), 50_386_944),
        ("ViT-H", Partial(count=1), 19_680_000),
        ("ViT-H", Partial(count=2), 39_357_440),
        ("ViT-H", Partial(count=4), 78_712_320),
        ("Swin-B", Partial(count=1), 12_603_680),
        ("Swin-B", Partial(count=2), 25_205_312),
        ("Swin-B", Partial(count=4), 33_616_736),
        ("ConvNeXt-B", Partial(count=1), 8_450_048),
        ("ResNet-50", Partial(count=1), 4_462_592),
        ("ResNet-50", Partial(count=1, unit="stage"), 14_964_736),
        ("ResNet-50", Partial(count=2, unit="stage"), 22_063_104),
        ("ResNet-50", Partial(count=3, unit="stage"), 23_282_688),
        ("ViT-B", MLP(layers=2), 592_128),
        ("ViT-B", MLP(layers=3), 1_184_256),
        ("ViT-B", MLP(layers=9), 8 * 592_128),
        ("ViT-L", MLP(layers=2), 1_051_648),
        ("Swin-B", MLP(layers=3), 2_103_296),
        ("ResNet-50", MLP(layers=3), 8_400_896),
        ("ViT-B", Side(), 9_547_585),
        ("Swin-B", Side(), 11_906_881),
        ("ConvNeXt-B", Side(), 11_906_881),
        ("ResNet-50", Side(), 21_344_065),
        ("ViT-B", Adapter(reduction=8), 1_779_840),
        ("ViT-B", Adapter(reduction=64), 230_544),
        ("ViT-B", Adapter(reduction=128), 119_880),
        ("ViT-B", Adapter(reduction=256), 64_548),
        ("ViT-B", Cls(), 768),
        ("ViT-B", Cls(reinit=True), 768),
    ],
    ids=str,
)
def test_baselines(name, method, parameters):
    assert added(name, method) == parameters


@pytest.mark.parametrize(
    ("name", "method", "parameters"),
    [
        ("ViT-B", VPT(length=7, depth="shallow"), 768 * 7),
        ("ViT-B", VPT(length=7), 9_216 * 7),
        ("ViT-B", VPT(length=7, blocks=5), 768 * 5 * 7),
        ("ViT-B", VPT(length=7, blocks=5, after="drop"), 768 * 5 * 7),
        ("ViT-B", VPT(length=7, blocks=5, end="last"), 768 * 5 * 7),
        ("ViT-B", VPT(length=7, shared=True), 768 * 7),
        ("ViT-B", VPT(length=10, project=64), 57_600),
        ("ViT-B", VPT(length=7, fixed=True), 0),
        ("ViT-B", VPT(length=7, weights="bias"), 9_216 * 7 + 102_912),
        ("ViT-B", VPT(length=7, weights="cls"), 9_216 * 7 + 768),
        ("ViT-B", VPT(length=7, weights="cls-reinit"), 9_216 * 7 + 768),
        ("ViT-L", VPT(length=7), 24_576 * 7),
        ("ViT-H", VPT(length=7), 40_960 * 7),
        ("Swin-T", VPT(length=7), 4_416 * 7),
        ("Swin-S", VPT(length=7), 9_024 * 7),
        ("Swin-B", VPT(length=7), 12_032 * 7),
        ("Swin-L", VPT(length=7), 18_048 * 7),
        ("Swin-B", VPT(length=7, depth="shallow"), 128 * 7),
        ("ViT-B", Add(depth="shallow"), 151_296),
        ("ViT-B", Add(depth="deep"), 1_815_552),
        ("ViT-B", Add(depth="shallow", rows="one"), 768),
        ("ViT-B", Add(depth="deep", rows="one"), 9_216),
        ("ViT-B", Pixel(location="prepend", length=7), 768 * 7),
        ("ViT-B", Pixel(location="pad", length=8), 22_272),
        ("ViT-B", Pixel(location="below", length=1), 837_376),
        ("ResNet-50", Pixel(location="below", length=5), 276_096),
        *(
            (name, Pixel(location="pad", length=length), parameters)
            for name in ("ConvNeXt-B", "ResNet-50")
            for length, parameters in zip(
                (1, 3, 5, 7, 9, 11), (2_700, 8_172, 13_740, 19_404, 25_164, 31_020), strict=True
            )
        ),
    ],
    ids=str,
)
def test_prompts(name, method, parameters):
    assert added(name, method) == parameters


@pytest.mark.parametrize(
    ("length", "classes", "trained", "total", "percent"),
    [
        (100, 6, 926_214, 86_724_870, 1.0680),
        (100, 10, 929_290, 86_727_946, 1.0715),
        (5, 397, 351_373, 86_150_029, 0.4079),
    ],
)
def test_the_official_demo_runs(length, classes, trained, total, percent):
    counted = count(backbone("ViT-B"), VPT(length=length), classes)
    assert counted.trained == trained
    assert 100 * counted.trained / counted.tuned_percent == pytest.approx(total, abs=0.5)
    assert counted.tuned_percent == pytest.approx(percent, abs=5e-5)


@pytest.mark.parametrize(
    ("method", "percent"),
    [
        (Full(), 100),
        (Linear(), 0.09),
        (Partial(), 8.35),
        (Side(), 10.09),
        (Bias(), 0.21),
        (Adapter(reduction=8), 2.12),
        (VPT(length=1, depth="shallow"), 0.09),
        (VPT(length=200, depth="shallow"), 0.27),
        (VPT(length=1), 0.10),
        (VPT(length=200), 2.19),
    ],
    ids=str,
)
def test_tuned_percent_of_the_cost_table(method, percent):
    assert count(backbone("ViT-B"), method, 100).tuned_percent == pytest.approx(percent, abs=0.006)


def test_the_classes_of_the_tasks():
    assert [sum(classes) for classes in (NATURAL, SPECIALIZED, STRUCTURED)] == [795, 62, 83]
    assert (sum(VTAB), sum(FGVC)) == (940, 1_173)
    assert heads("ViT-B", VTAB + FGVC) == 1_624_897
    assert heads("Swin-B", VTAB) == 963_500


@pytest.mark.parametrize(
    ("method", "parameters", "ratio", "printed"),
    [
        (Linear(), 87_423_553, 1.0189, 1.02),
        (Full(), 2_060_792_641, 24.0189, 24.02),
        (Partial(), 257_569_345, 3.0020, 3.00),
        (MLP(layers=3), 115_845_697, 1.3502, 1.35),
        (Side(), 316_565_593, 3.6896, 3.69),
        (Bias(), 89_893_441, 1.0477, 1.05),
        (Adapter(reduction=64), None, 1.0834, None),
        (Adapter(reduction=8), None, 1.5168, None),
    ],
    ids=str,
)
def test_24_tasks_on_vit_base(method, parameters, ratio, printed):
    check_total("ViT-B", method, VTAB + FGVC, parameters, ratio, printed)


@pytest.mark.parametrize(
    ("method", "parameters", "ratio", "printed"),
    [
        (Linear(), 87_706_724, 1.0111, 1.01),
        (Full(), 1_649_084_756, 19.0111, 19.01),
        (Partial(), 327_176_644, 3.7718, 3.77),
        (MLP(layers=3), 127_669_348, 1.4718, 1.47),
        (Bias(position_tables=True), 91_521_164, 1.0551, 1.06),
        (Bias(), 90_313_828, 1.0412, None),
        (VPT(length=10), None, 1.0375, None),
        (VPT(length=50), None, 1.1429, None),
    ],
    ids=str,
)
def test_19_tasks_on_swin_base(method, parameters, ratio, printed):
    check_total("Swin-B", method, VTAB, parameters, ratio, printed)


def check_total(name, method, classes, parameters, ratio, printed):
    """`ratio` computed to four digits, `printed` as the paper has it; None where it has none."""
    all_tasks = total(name, method, classes)
    assert parameters in (all_tasks, None)
    assert all_tasks / body(name) == pytest.approx(ratio, abs=5.001e-5)
    assert printed is None or all_tasks / body(name) == pytest.approx(printed, abs=0.0051)


BEST = {
    "natural": (NATURAL, (10, 10, 10, 1, 1, 50, 5), 0.234),
    "specialized": (SPECIALIZED, (100, 100, 10, 1), 0.575),
    "structured": (STRUCTURED, (50, 200, 100, 50, 10, 50, 200, 200), 1.144),
    "fgvc": (FGVC, (10, 50, 5, 100, 200), 0.979),
    "vtab": (VTAB, (10, 10, 10, 1, 1, 50, 5, 100, 100, 10, 1, 50, 200, 100, 50, 10, 50, 200, 200), 0.689),
}
"""Classes and best lengths of VPT-deep by task, and the mean of their tuned percentages."""


@pytest.mark.parametrize("group", BEST)
def test_mean_tuned_percent_of_vpt_deep_at_the_best_lengths(group):
    assert mean_percent(*BEST[group][:2]) == pytest.approx(BEST[group][2], abs=5.001e-4)


def test_24_tasks_of_vpt_deep_at_the_best_lengths():
    (classes, lengths, _), (more, longer, _) = BEST["vtab"], BEST["fgvc"]
    assert (sum(lengths), sum(longer)) == (1_158, 365)
    assert mean_percent(classes + more, lengths + longer) == pytest.approx(0.750, abs=5.001e-4)
    all_tasks = body("ViT-B") + heads("ViT-B", classes + more) + added("ViT-B", VPT(length=1)) * (1_158 + 365)
    assert all_tasks == 101_459_521
    assert all_tasks / body("ViT-B") == pytest.approx(1.1825, abs=5.001e-5)


def test_24_tasks_of_vpt_shallow_lie_where_the_paper_says():
    """The lengths on FGVC are not known: from 1 to 200 for each of the five."""
    vtab = sum((100, 5, 1, 200, 50, 200, 1, 5, 50, 50, 10, 100, 200, 100, 100, 100, 100, 200, 200))
    one = added("ViT-B", VPT(length=1, depth="shallow"))
    stored = body("ViT-B") + heads("ViT-B", VTAB + FGVC)
    least, most = ((stored + one * (vtab + 5 * length)) / body("ViT-B") for length in (1, 200))
    assert least == pytest.approx(1.035, abs=5.1e-4)
    assert most == pytest.approx(1.044, abs=5.1e-4)


def mean_percent(classes, lengths):
    """Of all parameters, one model per task."""
    tasks = zip(classes, lengths, strict=True)
    percents = [count(backbone("ViT-B"), VPT(length=length), each).tuned_percent for each, length in tasks]
    return sum(percents) / len(percents)
