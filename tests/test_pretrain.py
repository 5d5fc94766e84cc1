"""`scripts/pretrain_pico.py`: what it hides, what it keeps, and that a killed run ends as an unbroken one."""

import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from scripts import pretrain_pico as pretrain

from promptvit.backbones.load import load_backbone

CPU = torch.device("cpu")
RECIPE = pretrain.Recipe(objective="masked", epochs=2, batch_size=8, learning_rate=1e-3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """16 training, 3 validation and 4 test images of noise in an npz file."""
    random = np.random.default_rng(0)
    encoded = []
    for pixels in random.integers(0, 256, (23, 32, 32, 3), dtype=np.uint8):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG")
        encoded.append(buffer.getvalue())
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(
        path,
        data=np.frombuffer(b"".join(encoded), np.uint8),
        offsets=np.cumsum([0, *map(len, encoded)]),
        labels=random.integers(0, 100, 23),
        split=np.repeat([2, 1, 0], [4, 3, 16]),
    )
    return path


@pytest.fixture(scope="module")
def images(data):
    return pretrain.read(data, "train")


@pytest.fixture
def noise():
    return torch.rand(4, 3, 32, 32) * 2 - 1


@pytest.fixture
def masked():
    return pretrain.Masked().eval()


def test_images_are_read_by_their_split(data, images):
    test = pretrain.read(data, "test")
    assert (images.pixels.shape, test.pixels.shape) == ((16, 3, 32, 32), (4, 3, 32, 32))
    assert (images.pixels.dtype, len(images.labels), len(test.labels)) == (torch.uint8, 16, 4)
    with np.load(data) as file:
        for own, index in ((images, 7), (test, 0)):
            content = file["data"][file["offsets"][index] : file["offsets"][index + 1]].tobytes()
            expected = np.asarray(Image.open(io.BytesIO(content)))
            assert np.array_equal(own.pixels[0].permute(1, 2, 0), expected)
            assert own.labels[0] == file["labels"][index]
    assert pretrain.scaled(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


def test_an_augmented_image_is_a_part_of_it(noise):
    generator = torch.Generator().manual_seed(0)
    parts = pretrain.augmented(noise, generator, smallest=0.3)
    assert parts.shape == noise.shape
    assert (parts.amin() >= noise.amin(), parts.amax() <= noise.amax()) == (True, True)
    assert not torch.allclose(parts, noise, atol=0.1)
    whole = pretrain.augmented(noise.repeat(8, 1, 1, 1), generator, smallest=1)
    own = (whole - noise.repeat(8, 1, 1, 1)).flatten(1).abs().amax(dim=1) < 1e-4
    mirrored = (whole.flip(3) - noise.repeat(8, 1, 1, 1)).flatten(1).abs().amax(dim=1) < 1e-4
    assert (own ^ mirrored).all()
    assert 8 < own.sum() < 24


def test_the_encoder_does_not_see_hidden_patches(masked, noise):
    order = torch.rand(4, 64).argsort(dim=1)
    seen, unseen = order[:, : masked.visible], order[:, masked.visible :]
    hidden = torch.zeros(4, 64).scatter(1, unseen, 1.0).reshape(4, 1, 8, 8)
    hidden = hidden.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3).bool()
    rows = masked.encode(noise, seen)
    assert rows.shape == (4, 17, 128)
    assert torch.equal(masked.encode(noise.where(~hidden, torch.randn_like(noise)), seen), rows)
    assert not torch.allclose(masked.encode(noise.where(hidden, torch.randn_like(noise)), seen), rows)


def test_the_encoder_with_every_patch_is_the_kept_model(masked, noise):
    every = torch.arange(64).expand(4, -1)
    torch.testing.assert_close(masked.encode(noise, every), masked.encoder.forward_features(noise))


def test_the_masked_loss_is_that_of_hidden_patches_in_their_own_scale(masked, noise):
    for parameter in masked.paint[1].parameters():
        torch.nn.init.zeros_(parameter)
    grey = noise.clone()
    order = torch.rand(4, 64, generator=torch.Generator().manual_seed(5)).argsort(dim=1)
    for image, patches in zip(grey, order[:, masked.visible :], strict=True):
        for patch in patches.tolist():
            row, column = 4 * (patch // 8), 4 * (patch % 8)
            image[:, row : row + 4, column : column + 4] = 0.5
    losses = [
        masked(pixels, torch.zeros(4), torch.Generator().manual_seed(5)).item() for pixels in (grey, noise, 9 * noise)
    ]
    assert losses == pytest.approx([0, 1, 1], abs=1e-3)


def test_what_is_painted_stands_where_it_was_hidden(masked, noise):
    rows = masked.encode(noise, torch.arange(16).expand(4, -1))
    order = torch.arange(64).expand(4, -1)
    other = torch.cat([order[:, :16], order[:, 16:].flip(1)], dim=1)
    painted, again = masked.decode(rows, order), masked.decode(rows, other)
    assert painted.shape == (4, 64, 48)
    torch.testing.assert_close(again[:, 16:].flip(1), painted[:, 16:])


def test_a_killed_run_ends_as_an_unbroken_one(images, tmp_path):
    whole = pretrain.Pretraining(RECIPE, images, tmp_path / "whole", CPU)
    whole.epoch()
    assert whole.epoch()["epoch"] == 2
    killed = pretrain.Pretraining(RECIPE, images, tmp_path / "killed", CPU)
    killed.epoch()
    killed.update(torch.arange(8), torch.Generator())  # it dies within the second
    torch.rand(1)
    again = pretrain.Pretraining(RECIPE, images, tmp_path / "killed", CPU)
    again.take_up()
    assert [row["loss"] for row in again.rows] == [whole.rows[0]["loss"]]
    assert again.epoch()["loss"] == whole.rows[1]["loss"]
    weights = again.objective.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in whole.objective.state_dict().items())
    for changed in (replace(RECIPE, epochs=3), replace(RECIPE, objective="supervised")):
        other = pretrain.Pretraining(changed, images, tmp_path / "killed", CPU)
        with pytest.raises(SystemExit, match=r"was begun as .* choose another --out"):
            other.take_up()


def test_a_run_that_cannot_learn_says_so(images, tmp_path):
    with pytest.raises(SystemExit, match="16 images, fewer than a batch of 17"):
        pretrain.Pretraining(replace(RECIPE, batch_size=17), images, tmp_path, CPU)
    run = pretrain.Pretraining(replace(RECIPE, learning_rate=float("inf")), images, tmp_path, CPU)
    with pytest.raises(SystemExit, match=r"the loss is nan in epoch 1: try a lower --learning-rate"):
        run.epoch()
    assert not run.state.exists()


def test_the_learning_rate_rises_and_falls(images, tmp_path):
    run = pretrain.Pretraining(replace(RECIPE, epochs=50), images, tmp_path, CPU)  # 100 steps, 5 of them warm-up
    rates = [run.rate(step) for step in range(101)]
    assert rates[:5] == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert (rates[5], rates[-1]) == pytest.approx((1e-3, 0))


def test_a_linear_probe_reads_what_is_there():
    labels, others = torch.arange(100).repeat(3), torch.arange(100)
    centres = torch.randn(100, 64)
    train, test = centres[labels] + 0.1 * torch.randn(300, 64), centres + 0.1 * torch.randn(100, 64)
    assert pretrain.linear_probe(train, labels, test, others) == 100
    assert pretrain.linear_probe(1000 * train + 5, labels, 1000 * test + 5, others) == 100
    assert pretrain.linear_probe(train, labels, test, others.roll(1)) == 0


@pytest.mark.parametrize(
    ("objective", "architecture", "head"),
    [("supervised", "vit", "head"), ("masked", "vit", None), ("supervised", "swin", "head.fc")],
)
def test_a_run_writes_weights_that_load_and_a_card(objective, architecture, head, data, tmp_path, monkeypatch, capsys):
    arguments = [objective, "--data", data, "--out", tmp_path, "--epochs", 2, "--batch-size", 8, "--threads", 1]
    arguments += ["--architecture", architecture]
    monkeypatch.setattr(sys, "argv", ["pretrain_pico", *map(str, arguments), "--device", "cpu"])
    measured, accuracies = {}, pretrain.accuracies
    monkeypatch.setattr(
        pretrain,
        "accuracies",
        lambda encoder, *rest: measured.update(encoder.state_dict()) or accuracies(encoder, *rest),
    )
    pretrain.main()
    assert capsys.readouterr().out.count('{"epoch"') == 2
    weights = safetensors.torch.load_file(tmp_path / "weights.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert all(torch.equal(measured[name], tensor.float()) for name, tensor in weights.items())
    sources = [load_backbone(str(tmp_path))]
    if architecture == "vit":
        sources.append(load_backbone("vit_pico", checkpoint=tmp_path / "weights.safetensors"))
    for backbone in sources:
        assert backbone.preprocessing == load_backbone("vit_pico").preprocessing
        kept = backbone.model.state_dict()
        assert kept.keys() == weights.keys() - {f"{head}.weight", f"{head}.bias"}
        assert all(torch.equal(tensor, measured[name]) for name, tensor in kept.items())
    card = json.loads((tmp_path / "card.json").read_text())
    assert ("top1" in card) == (objective == "supervised")
    assert card["recipe"] == {**card["recipe"], "objective": objective, "epochs": 2, "batch_size": 8, "seed": 0}
    assert card["machine"]["threads"] == 1
    assert ("linear_probe_cls" in card) == (architecture == "vit")
    assert {"loss", "hours", "commit", "linear_probe_mean"} <= card.keys()


def test_a_masked_autoencoder_is_a_vit(data, tmp_path, monkeypatch, capsys):
    arguments = ["masked", "--architecture", "swin", "--data", str(data), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["pretrain_pico", *arguments])
    with pytest.raises(SystemExit):
        pretrain.main()
    assert "a masked autoencoder is a vit" in capsys.readouterr().err
