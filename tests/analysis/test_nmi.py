import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

import promptvit as pv
from promptvit.analysis.config import Variant
from promptvit.analysis.nmi import mean_nmi, normalised_mutual_information, prompt_nmi, read_curve, record, task_nmi
from promptvit.backbones.source import BackboneSource
from promptvit.backbones.walk import walk
from promptvit.cli.main import main
from promptvit.data.config import DataConfig
from promptvit.data.digits import read_digits
from promptvit.data.transforms import normalise, prepare
from promptvit.errors import ConfigError, DataError, UnknownNameError
from promptvit.preprocessing import Preprocessing
from promptvit.train.config import RunConfig, TrainConfig
from promptvit.train.loop import Listener, fit

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 0}
ROTARY = {"use_rot_pos_emb": True, "global_pool": "token"}
MODELS = {
    "registers, qk-norm": lambda: VisionTransformer(**SMALL, reg_tokens=4, qk_norm=True),
    "no prefix": lambda: VisionTransformer(**SMALL, class_token=False, global_pool="avg"),
    "rotation, registers": lambda: Eva(**SMALL, **ROTARY, num_reg_tokens=2, rope_type="dinov3", rope_rotate_half=True),
    "rotation of each block": lambda: Eva(**SMALL, **ROTARY, rope_type="mixed", attn_type="rope"),
    "grouped keys, qk-norm": lambda: Eva(
        **SMALL, **ROTARY, attn_type="rope", qkv_fused=False, num_kv_heads=(2, 1, 1), qk_norm=True
    ),
    "norm after": lambda: Eva(**SMALL, **ROTARY, use_post_norm=True),
}
VARIANTS = get_args(Variant)


def literal_nmi(shares):
    """The definition, one number after the other, of one map [Q, K]."""
    shares = [[share + 1e-8 for share in row] for row in shares.tolist()]
    shares = [[share / sum(row) for share in row] for row in shares]
    p = 1 / len(shares)
    of_keys = [sum(p * row[k] for row in shares) for k in range(len(shares[0]))]
    information = sum(p * a * math.log(a / of_keys[k]) for row in shares for k, a in enumerate(row))
    entropies = [-sum(share * math.log(share) for share in ps) for ps in ([p] * len(shares), of_keys)]
    return 0.0 if 1 in (len(shares), len(of_keys)) else information / math.sqrt(entropies[0] * entropies[1])


def literal_maps(model, images, inputs, monkeypatch):
    """[B, H, P, M] of each block from queries and keys of timm's own attention, prompts behind the prefix."""
    asked = []
    attend = F.scaled_dot_product_attention

    def listen(q, k, v, *rest, **options):
        asked.append((q, k))
        return attend(q, k, v, *rest, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", listen)
    embedded = model._pos_embed(model.patch_embed(images))
    x, rope = embedded if isinstance(model, Eva) else (embedded, None)
    x, prefix, length, maps = model.norm_pre(x), model.num_prefix_tokens, 0, []
    for index, (block, tokens) in enumerate(zip(model.blocks, inputs, strict=True)):
        if tokens is not None:
            x = torch.cat([x[:, :prefix], tokens.expand(len(images), -1, -1), x[:, prefix + length :]], dim=1)
            length = len(tokens)
        if isinstance(model, Eva):
            block.attn.num_prefix_tokens = prefix + length
            x = block(x, rope=rope[index] if model.rope_mixed else rope)
            block.attn.num_prefix_tokens = prefix
        else:
            x = block(x)
        q, k = asked.pop()
        logits = q[:, :, prefix : prefix + length] @ k[:, :, prefix + length :].mT / math.sqrt(q.shape[-1])
        maps.append(logits.softmax(dim=-1) if length else None)
    return maps


def literal_mean(maps):
    return [None if each is None else np.mean([literal_nmi(one) for one in each.flatten(0, -3)]) for each in maps]


@pytest.fixture
def images():
    return torch.randn(3, 3, 16, 16, dtype=torch.float64)


@pytest.fixture
def make_model(make_small):
    """A float64 model of a timm model, with prompts away from zero."""

    def make(construct, method=None):
        method = method or pv.VPT(length=4)
        backbone = pv.from_timm(make_small(construct), preprocessing=Preprocessing(size=(16, 16)))
        model = pv.tune(backbone, method, 5).double()
        with torch.no_grad():
            for parameter in model.delta.parameters():
                parameter.copy_(torch.randn_like(parameter))
        return model

    return make


@pytest.fixture
def vit(make_model):
    return partial(make_model, MODELS["registers, qk-norm"])


@st.composite
def maps(draw, queries=None):
    seed, sharpness = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.0, 0.1, 1.0, 10.0, 1000.0]))
    shape = queries or draw(st.integers(1, 6)), draw(st.integers(1, 6))
    logits = np.random.default_rng(seed).normal(size=shape)
    return torch.from_numpy(sharpness * logits).softmax(dim=-1)


@given(maps())
def test_it_is_the_definition_and_between_0_and_1(shares):
    value = normalised_mutual_information(shares).item()
    assert 0 <= value <= 1
    assert value == pytest.approx(literal_nmi(shares), abs=1e-10)
    assert normalised_mutual_information(shares.float()).item() == pytest.approx(value, abs=1e-4)


@given(maps(), st.randoms(use_true_random=False))
def test_the_order_of_prompts_and_patches_does_not_matter(shares, random):
    rows, columns = (random.sample(range(n), n) for n in shares.shape)
    other = normalised_mutual_information(shares[rows][:, columns])
    torch.testing.assert_close(other, normalised_mutual_information(shares), rtol=0, atol=1e-12)


@given(maps(queries=1), st.integers(1, 5))
def test_equal_rows_and_single_rows_give_0(row, queries):
    assert normalised_mutual_information(row.expand(queries, -1)).item() == pytest.approx(0, abs=1e-10)
    assert normalised_mutual_information(row).item() == 0
    rounded = normalised_mutual_information(row.float().expand(queries, -1)).item()
    assert rounded == pytest.approx(0, abs=1e-3)  # 1e-7 over the root of an entropy that may be as small


@given(st.permutations(range(5)))
def test_a_permutation_gives_1(order):
    assert normalised_mutual_information(torch.eye(5, dtype=torch.float64)[list(order)]).item() == pytest.approx(1)


@pytest.mark.parametrize("error", [0.1, 0.25, 0.5])
def test_two_prompts_that_err_alike(error):
    shares = torch.tensor([[1 - error, error], [error, 1 - error]], dtype=torch.float64)
    entropy = -error * math.log(error) - (1 - error) * math.log(1 - error)
    expected = 1 - entropy / math.log(2)
    assert normalised_mutual_information(shares).item() == pytest.approx(expected, abs=1e-7)
    if error == 0.1:
        assert expected == pytest.approx(0.53100, abs=5e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keys_without_entropy_give_0(dtype):
    assert normalised_mutual_information(torch.ones(3, 1, dtype=dtype)).item() == 0
    all_on_one = torch.tensor([[1.0, 0, 0]] * 7, dtype=dtype)
    assert normalised_mutual_information(all_on_one).item() == pytest.approx(0, abs=1e-6)


def test_maps_are_measured_one_by_one():
    shares = torch.randn(2, 3, 4, 5).softmax(dim=-1)
    together = normalised_mutual_information(shares)
    assert together.shape == (2, 3)
    assert together[1, 2] == normalised_mutual_information(shares[1, 2])


@pytest.mark.parametrize(
    "method", [pv.VPT(length=4), pv.VPT(length=4, depth="shallow")], ids=lambda method: method.depth
)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_attention_is_that_of_timms_own_queries_and_keys(name, method, make_model, images, monkeypatch):
    model = make_model(MODELS[name], method)
    inputs = [given.tokens for given in model.delta(model.backbone, 3)]
    expected = literal_mean(literal_maps(model.backbone.model, images, inputs, monkeypatch))
    assert prompt_nmi(model, [images]) == pytest.approx(expected, abs=1e-10)
    assert min(expected) > 1e-3


@pytest.mark.parametrize("name", ["registers, qk-norm", "swin"])
@torch.no_grad()
def test_tokens_are_prompts_and_patches_as_they_enter(name, make_model, images):
    model = make_model(swin if name == "swin" else MODELS[name])
    prefix, expected = model.backbone.info.prefix, []
    for rows in list(walk(model.backbone, images, model.delta(model.backbone, 3)))[:-1]:
        logits = rows.prompts @ rows.image[:, prefix:].mT / math.sqrt(rows.image.shape[-1])
        expected.append(np.mean([literal_nmi(one) for one in logits.softmax(dim=-1)]))
    assert prompt_nmi(model, [images], "tokens") == pytest.approx(expected, abs=1e-10)


def swin():
    """Two stages of different widths, shifted windows, three blocks."""
    size = {"img_size": 16, "patch_size": 2, "embed_dim": 12, "num_classes": 0}
    return SwinTransformer(**size, depths=(2, 1), num_heads=(2, 4), window_size=2, drop_path_rate=0)


@torch.no_grad()
def test_clustering_asks_whether_prompts_stand_in_the_middle_of_clusters(make_model):
    model = make_model(MODELS["no prefix"], pv.VPT(length=4, blocks=1, after="drop"))
    model.backbone.model.pos_embed.zero_()
    kinds = torch.randn(4, 3, 4, 4, dtype=torch.float64)  # patches of four kinds, and all of a kind equal
    pixels = kinds[torch.arange(16) % 4].view(4, 4, 3, 4, 4).permute(2, 0, 3, 1, 4).reshape(1, 3, 16, 16)
    patches = model.backbone.embed(pixels)[0][0]
    model.delta.prompts[0].copy_(patches[:4])
    assert prompt_nmi(model, [pixels], "clustering") == [pytest.approx(1), None, None]
    model.delta.prompts[0][:, 2:] += 1e6  # far away: the first two share the patches, one to one or three to one
    entropies = [math.log(2), math.log(4) - 0.75 * math.log(3)]
    halves = [pytest.approx(entropy / math.sqrt(entropy * math.log(4))) for entropy in entropies]
    assert prompt_nmi(model, [pixels], "clustering")[0] in halves
    model.delta.prompts[0].copy_(patches.mean(dim=0).expand(4, -1))  # all patches nearest to the same one
    assert prompt_nmi(model, [pixels], "clustering") == [0, None, None]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_single_prompt_gives_0(variant, vit, images):
    assert prompt_nmi(vit(pv.VPT(length=1)), [images], variant) == [0, 0, 0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_the_mean_over_images_however_they_come(variant, vit, images):
    model = vit()
    expected = prompt_nmi(model, [images], variant)
    assert len(set(expected)) == 3
    assert prompt_nmi(model, iter([images[:1], images[1:]]), variant) == pytest.approx(expected, abs=1e-6)
    each = [prompt_nmi(model, [image], variant) for image in images.split(1)]
    assert np.mean(each, axis=0) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("method", "known"),
    [
        (pv.VPT(length=4, blocks=2, end="last"), [False, True, True]),
        (pv.VPT(length=4, blocks=1, after="drop"), [True, False, False]),
        (pv.VPT(length=4, blocks=1, after="keep"), [True, True, True]),
    ],
    ids=str,
)
def test_blocks_without_prompts_have_none(method, known, vit, images):
    blocks = prompt_nmi(vit(method), [images])
    assert [value is not None for value in blocks] == known
    assert mean_nmi(blocks) == pytest.approx(np.mean([value for value in blocks if value is not None]))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("training", [True, False])
def test_mode_and_random_state_are_left_alone(variant, training, vit, images):
    model = vit(pv.VPT(length=4, dropout=0.5)).train(training)
    modes = {name: module.training for name, module in model.named_modules()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    once, again = (prompt_nmi(model, [images], variant) for _ in range(2))
    assert once == again
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_mode_is_restored_after_an_error(vit):
    model = vit().train()
    with pytest.raises(ConfigError):
        prompt_nmi(model, [torch.zeros(1, 3, 8, 8, dtype=torch.float64)])
    assert model.training


def test_what_has_no_nmi_is_refused(vit, make_model, images, untyped):
    for method in (pv.Linear(), pv.Full(), pv.Add()):
        with pytest.raises(ConfigError, match=f"the method {method.kind} puts no prompts beside the patches"):
            prompt_nmi(vit(method), [images])
    with pytest.raises(ConfigError, match=r"on a swin backbone.* Use the variant tokens"):
        prompt_nmi(make_model(swin), [images])
    with pytest.raises(UnknownNameError, match=r"unknown variant 'atention'\. Did you mean attention"):
        prompt_nmi(vit(), [images], "atention")
    for nothing in ([], [images[:0]]):
        with pytest.raises(DataError, match="no images"):
            prompt_nmi(vit(), nothing)


@pytest.mark.parametrize("variant", ["attention", "tokens"])
@torch.no_grad()
def test_patch_tokens_as_prompts_tell_more_of_patches_than_a_uniform_start(variant):
    """The sign of the SPT paper's figure, with the bundled weights: prompts copied from other images of the task."""
    backbone = pv.load_backbone()
    task = read_digits()
    seen, others = (
        normalise(
            torch.stack([prepare(image, backbone.preprocessing) for image in split.images[:64]]), backbone.preprocessing
        )
        for split in (task.val, task.train)
    )
    samples = list(zip(others, task.train.labels.tolist(), strict=False))
    uniform, copied = (
        mean_nmi(prompt_nmi(pv.tune(backbone, method, 10, samples=samples), [seen], variant))
        for method in (pv.VPT(length=10), pv.SPT(length=10))
    )
    assert copied > uniform


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits 0 and 1 as an image folder: 40 to train on, 20 to validate."""
    root = tmp_path_factory.mktemp("digits")
    task = read_digits()
    for name, split, count in (("train", task.train, 40), ("val", task.val, 20)):
        for i in [i for i, label in enumerate(split.labels) if label < 2][:count]:
            path = root / name / str(split.labels[i]) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(split.images[i]).save(path)
    return root


def make_config(folder, method="vpt-deep", *, tensorboard=False, **more):
    return RunConfig(
        data=DataConfig(source=str(folder), **more),
        backbone=BackboneSource(name="vit_pico", image_size=16),
        method={"name": method, **({"length": 3} if method == "vpt-deep" else {})},
        train=TrainConfig(epochs=2, batch_size=16, device="cpu", tensorboard=tensorboard),
    )


def test_a_run_is_followed_from_its_start_to_its_end(folder, tmp_path):
    config = make_config(folder)
    plain = fit(config, tmp_path / "plain")
    summary = fit(config, tmp_path / "run", listener=Listener(watch=partial(record, images=12)))
    assert summary["result"] == plain["result"]
    rows = read_curve(tmp_path / "run")
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert {row["variant"] for row in rows} == {"attention"}
    assert all(row["mean"] == pytest.approx(np.mean(row["blocks"])) and row["seconds"] > 0 for row in rows)
    assert len({row["mean"] for row in rows}) == 3
    tuned = pv.load(tmp_path / "run" / "delta")
    assert task_nmi(tuned, config.data, images=12) == pytest.approx(rows[-1]["blocks"], rel=1e-5)
    assert task_nmi(tuned, config.data, images=20) != pytest.approx(rows[-1]["blocks"], rel=1e-5)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """A run that nothing interrupted."""
    root = tmp_path_factory.mktemp("runs") / "whole"
    fit(make_config(folder), root, listener=Listener(watch=record))
    return root


def test_images_that_are_decoded_anew_give_the_same(folder, whole, tmp_path):
    fit(make_config(folder, cache_gib=0.0, workers=0), tmp_path / "run", listener=Listener(watch=record))
    assert figures(tmp_path / "run") == figures(whole)


def figures(run):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in read_curve(run)]


@pytest.mark.parametrize("moment", ["before the first step", "before the row", "behind the row", "behind the epoch"])
def test_a_resumed_run_has_each_epoch_once(moment, folder, whole, tmp_path):
    config = make_config(folder)

    def watch(epoch, run):
        stop = epoch == (0 if moment == "before the first step" else 1)
        if stop and moment == "before the row":
            raise KeyboardInterrupt
        record(epoch, run)
        if stop and moment != "behind the epoch":
            raise KeyboardInterrupt

    def stop(row):
        if moment == "behind the epoch" and row["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(config, tmp_path / "run", listener=Listener(watch=watch, epoch=stop))
    fit(config, tmp_path / "run", resume=True, listener=Listener(watch=record))
    assert figures(tmp_path / "run") == figures(whole)


@pytest.mark.slow
def test_a_killed_run_has_each_epoch_once(folder, tmp_path):
    options = ["--train.epochs", "2", "--train.batch_size", "1", "--train.device", "cpu", "--backbone.image_size", "16"]
    command = ["train", "--data", str(folder), "--method.length", "3", *options]
    assert main([*command, "--nmi", "tokens", "--out", str(tmp_path / "whole")]) == 0
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "promptvit.cli", *command, "--nmi", "tokens", "--out", killed],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as here: two threads round otherwise
    )
    while len(read_curve(killed)) < 2:
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "summary.json").exists()
    assert main([*command, "--out", str(killed), "--resume"]) == 0  # it knows what it follows
    assert figures(killed) == figures(tmp_path / "whole")


def test_a_run_without_prompts_is_refused_before_anything_is_written(folder, tmp_path):
    config = make_config(folder, "linear", tensorboard=True)
    with pytest.raises(ConfigError, match="the method linear puts no prompts"):
        fit(config, tmp_path / "run", listener=Listener(watch=record))
    assert not (tmp_path / "run").exists()


def test_images_that_are_skipped_are_never_chosen(folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    paths = sorted((broken / "val").rglob("*.png"))
    for path in paths[::4]:
        path.write_bytes(b"no image")
    config = make_config(broken, broken="skip")
    fit(config, tmp_path / "run", listener=Listener(watch=partial(record, images=8)))
    last = read_curve(tmp_path / "run")[-1]
    assert task_nmi(pv.load(tmp_path / "run" / "delta"), config.data, images=8) == pytest.approx(
        last["blocks"], rel=1e-5
    )


def test_a_curve_that_is_none_is_refused(tmp_path):
    assert read_curve(tmp_path) == []
    for content in ("{", "{}", "3", json.dumps({"epoch": 0, "variant": "tokens"})):
        (tmp_path / "nmi.jsonl").write_text(content + "\n")
        with pytest.raises(DataError, match=r"nmi.jsonl cannot be read"):
            read_curve(tmp_path)
