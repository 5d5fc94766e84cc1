import dataclasses
import json

import pytest

from promptvit.errors import ConfigError
from promptvit.study.advise import (
    Budget,
    Probe,
    Situation,
    Size,
    advise_on,
    nearest_rows,
    situation_of,
)
from promptvit.study.calibration import Record
from promptvit.study.evidence import scale_cells
from promptvit.study.facts import BackboneFacts, disparity, pretraining

VIT = BackboneFacts(name="vit_base_patch16_224.orig_in21k", family="vit", pretraining="supervised")
MAE = BackboneFacts(name="vit_base_patch16_224.mae", family="vit", pretraining="mae")
SIZES = {
    "prompts": Size(parameters=100_000, bytes=400_000),
    "full": Size(parameters=86_000_000, bytes=344_000_000),
    "lora": Size(parameters=300_000, bytes=1_200_000),
    "linear": Size(parameters=10_000, bytes=40_000),
}


def situation(**changes):
    given = {
        "task": "birds",
        "options": ("--data", "my birds", "--backbone", VIT.name),
        "images": 800,
        "classes": 100,
        "backbone": VIT,
        "fingerprint": "abc",
        "disparity": "low",
        "similarity": "similar",
        "sizes": SIZES,
    }
    return Situation(**{**given, **changes})


def test_few_images_a_class_are_for_prompts():
    advice = advise_on(situation())
    assert (advice.choice, advice.method, advice.probability) == ("prompts", "vpt-deep", 0.9)
    assert advice.confidence == "high"
    assert advice.also == ("lora",)
    assert advice.violated == ()
    json.dumps(advice.to_dict())


def test_between_the_two_it_abstains_and_says_how_to_decide():
    advice = advise_on(situation(images=1200, classes=10, similarity="dissimilar"))
    assert (advice.choice, advice.probability) == ("abstain", pytest.approx(0.48, abs=0.005))
    assert advice.bake_off == "promptvit advise --data 'my birds' --backbone vit_base_patch16_224.orig_in21k --verify"
    assert set(advice.also) == {"vpt-deep", "full"}
    similar = advise_on(situation(images=1200, classes=10))
    assert (similar.choice, similar.probability) == ("prompts", pytest.approx(0.70, abs=0.005))


def test_what_is_unknown_is_the_mean_of_both_cases_and_lowers_confidence():
    near, far, unknown = (
        advise_on(situation(images=8000, similarity=known)) for known in ("similar", "dissimilar", "unknown")
    )
    assert unknown.probability == pytest.approx((near.probability + far.probability) / 2)
    assert advise_on(situation(similarity="unknown")).confidence == "medium"
    assert advise_on(situation(similarity="unknown", disparity="unknown")).confidence == "low"
    assert advise_on(situation(similarity="unknown", disparity="high")).confidence == "high"  # it does not matter there


def test_one_image_a_class_of_a_structured_task_says_nothing():
    advice = advise_on(situation(images=32, classes=16, disparity="high"))
    assert (advice.choice, advice.probability) == ("abstain", 0.5)


@pytest.mark.parametrize("backbone", [MAE, BackboneFacts(name="swin_base", family="swin", pretraining="supervised")])
def test_other_backbones_have_their_own_rows(backbone):
    structured = advise_on(situation(backbone=backbone, disparity="high", similarity="unknown"))
    assert (structured.choice, structured.probability, structured.confidence) == ("full", 0.1, "medium")
    natural = advise_on(situation(backbone=backbone))
    assert (natural.choice, natural.probability) == ("abstain", pytest.approx(12 / 21))
    assert {row.backbone for row in natural.evidence} <= {"vit-mae", "swin-supervised"}
    assert (
        "measured on a ViT-B/16, not on this backbone"
        in advise_on(situation(backbone=dataclasses.replace(VIT, name="vit_tiny_patch16_224"))).violated
    )


def test_what_nobody_has_measured_lowers_confidence():
    small = dataclasses.replace(VIT, name="vit_pico", parameters=1_200_000)
    advice = advise_on(situation(backbone=small))
    assert (advice.choice, advice.confidence) == ("prompts", "low")
    assert "this one has 1.2" in advice.violated[0]
    assert advise_on(situation(images=200)).confidence == "medium"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "dense"}, "dense tasks were not measured"),
        ({"kind": "video"}, "video tasks were not measured"),
        ({"backbone": BackboneFacts(name="resnet50", family="resnet", pretraining="supervised")}, "on a resnet"),
        ({"backbone": BackboneFacts(name="dinov2", family="vit", pretraining="other")}, "how dinov2 was pretrained"),
        ({"backbone": BackboneFacts(name="vit", family="vit", pretraining="random")}, "random weights"),
        ({"images": 1, "classes": 2}, "1 training images of 2 classes"),
        ({"classes": 1}, "800 training images of 1 classes"),
        ({"distinct": 0.01}, "only 1% of the images differ"),
    ],
)
def test_outside_of_the_evidence_it_abstains_and_says_why(changes, reason):
    advice = advise_on(situation(**changes))
    assert (advice.choice, advice.probability, advice.confidence) == ("abstain", None, "low")
    assert reason in advice.reasons[0]
    assert advice.needs
    assert advice.bake_off


def test_a_probe_that_is_always_right_leaves_nothing_to_win():
    perfect = Probe(accuracy=0.995, low=0.985, high=0.999)
    assert advise_on(situation(probe=perfect)).choice == "linear"
    assert advise_on(situation(probe=dataclasses.replace(perfect, low=0.97))).choice == "prompts"


def test_a_budget_leaves_what_fits():
    many = {"images": 10_000, "classes": 10}
    assert advise_on(situation(**many)).choice == "full"
    tight = Budget(parameters=1_000_000)
    assert advise_on(situation(**many), tight).choice == "lora"
    middling = {"images": 3000, "classes": 10}  # prompts with a probability of about 0.47
    assert advise_on(situation(**middling), tight).choice == "prompts"
    assert advise_on(situation(**many), Budget(parameters=200_000)).choice == "prompts"
    assert advise_on(situation(**many), Budget(bytes=50_000)).choice == "linear"
    none = advise_on(situation(**many), Budget(bytes=50))
    assert (none.choice, none.also) == ("abstain", ())
    with pytest.raises(ConfigError, match="parameters=-4: expected at least 1; bytes=0"):
        Budget(parameters=-4, bytes=0)


def record(**changes):
    given = {
        "task": "one",
        "backbone": VIT.name,
        "fingerprint": "abc",
        "images": 800,
        "classes": 8,
        "disparity": "low",
        "similarity": "similar",
        "logit": 0.8,
        "accuracies": {"prompts": 80.0, "full": 85.0, "lora": 84.0, "linear": 70.0},
        "seeds": (0,),
        "protocol": "quick",
    }
    return Record(**{**given, **changes})


def test_ones_own_studies_move_the_probability_of_their_backbone_alone():
    given = situation(images=1000, classes=10)
    plain = advise_on(given)
    own = [record(task=str(number)) for number in range(6)]
    moved = advise_on(given, own=own)
    assert moved.probability < plain.probability - 0.2
    assert moved.evidence[: len(own)][0] in own
    assert any("prompts won 0 of your 6 studies" in reason for reason in moved.reasons)
    others = advise_on(given, own=[dataclasses.replace(each, fingerprint="other") for each in own])
    assert others == plain
    against = [record(task=str(number), accuracies={"prompts": 90.0, "full": 85.0}) for number in range(50)]
    assert advise_on(situation(images=9000, classes=10), own=against).probability <= 0.9


def test_where_nothing_is_published_five_studies_of_ones_own_decide():
    clip = situation(backbone=dataclasses.replace(VIT, pretraining="other"))
    own = [record(task=str(number), logit=0.0) for number in range(5)]
    few = advise_on(clip, own=own[:4])
    assert (few.choice, few.probability) == ("abstain", None)
    assert few.reasons[0].endswith("and of 5 studies of your own on it there are 4")
    found = advise_on(clip, own=own)
    assert found.choice == "full"
    assert found.probability == pytest.approx(0.1, abs=0.1)
    assert all(row in own for row in found.evidence)
    assert "your own studies alone" in found.violated[0]
    wins = [dataclasses.replace(each, accuracies={"prompts": 90.0, "full": 85.0}) for each in own]
    assert advise_on(clip, own=wins).probability == pytest.approx(1 - found.probability)


def test_what_wins_most_of_ones_own_studies_is_the_answer():
    wins = {"prompts": 80.0, "full": 85.0, "lora": 88.0, "linear": 70.0}
    own = [record(task=str(number), accuracies=wins) for number in range(5)]
    assert advise_on(situation(), own=own).choice == "lora"
    assert advise_on(situation(), own=own[:4]).choice != "lora"


def test_abstention_and_confidence_on_the_published_cells():
    advice = [(advise_on(situation_of(cell)), cell) for cell in scale_cells()]
    decided = [(each, cell) for each, cell in advice if each.choice != "abstain"]
    assert len(decided) == 58
    assert sum((each.choice == "prompts") == cell.prompts_win for each, cell in decided) == 53
    sure = [(each, cell) for each, cell in decided if each.confidence == "high"]
    assert len(sure) == 38
    assert sum((each.choice == "prompts") == cell.prompts_win for each, cell in sure) == 37
    probabilities = [each.probability for each, _ in advice]
    assert min(probabilities) == 0.1
    assert max(probabilities) == 0.9
    brier = sum((each.probability - cell.prompts_win) ** 2 for each, cell in advice) / len(advice)
    assert brier == pytest.approx(0.098, abs=0.0005)


def test_rows_are_those_of_the_same_kind_nearest_in_images_a_class():
    rows = nearest_rows(situation(images=800, classes=100))
    assert {row.group for row in rows} == {"natural"}
    assert len(rows) == 8
    assert abs(rows[0].per_class - 8) <= min(abs(row.per_class - 8) for row in rows) + 1
    assert {row.group for row in nearest_rows(situation(disparity="high", similarity="unknown"))} == {"structured"}


@pytest.mark.parametrize(
    ("kind", "classes", "known"),
    [
        ("auto", ("cat", "dog"), "low"),
        ("auto", ("0.0 deg", "22.5 deg"), "high"),
        ("auto", ("0", "1", "2"), "unknown"),
        ("auto", ("near_object", "far_object"), "high"),
        ("count", ("cat", "dog"), "high"),
        ("classes", ("0.0 deg", "22.5 deg"), "low"),
    ],
)
def test_names_of_classes_tell_the_kind_of_task(kind, classes, known):
    assert disparity(kind, classes)[0] == known


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("vit_base_patch16_224.orig_in21k", "supervised"),
        ("vit_pico_mae", "mae"),
        ("mocov3_vit_base", "moco-v3"),
        ("vit_base_patch14_dinov2.lvd142m", "other"),
        ("vit_base_patch16_clip_224.openai", "other"),
        ("vit_base_patch16_radio_v3.c_radio", "other"),
        ("vit_base_patch14_reg1_tipsv2.webli", "other"),
        ("vit_pe_core_base_patch16_224.fb", "other"),
        ("vit_intern300m_patch14_448.ogvl_dist", "other"),
        ("vit_base_patch16_224.sam_in1k", "supervised"),  # the optimiser of that name
        ("/home/sam/dino/vit", "supervised"),
    ],
)
def test_names_of_backbones_tell_their_pretraining(name, kind):
    assert pretraining(name) == kind


def test_the_file_with_the_weights_tells_too():
    assert pretraining("vit_base_patch16_224", checkpoint="/sam/mae_pretrain_vit_base.pth") == "mae"
    assert pretraining("vit_base_patch16_224", has_weights=False) == "random"
