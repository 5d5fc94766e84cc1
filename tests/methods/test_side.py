import socket
from urllib.error import URLError
from urllib.request import Request

import pytest
import torch
import torch.nn.functional as F
import torchvision

import promptvit as pv
from promptvit.errors import BackboneError, ConfigError
from promptvit.methods.side import Side, alexnet_features

RANDOM = Side(weights="random")
FILE = "alexnet-owt-7be5be79.pth"


@pytest.fixture
def backbone(make_vit):
    return pv.from_timm(make_vit())


@pytest.fixture
def images():
    return torch.randn(3, 3, 16, 16, dtype=torch.float64)


def test_the_features_are_torchvisions():
    theirs, ours = torchvision.models.alexnet().features, alexnet_features()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 80, 100)
    assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize("mix", [0.0, 1.5])
def test_features_are_the_weighted_average(mix, backbone, images):
    model = pv.tune(backbone, RANDOM, 4).double()
    with torch.no_grad():
        model.delta.mix.fill_(mix)
    larger = F.interpolate(images, size=64, mode="bilinear")
    pooled = F.adaptive_avg_pool2d(model.delta.features(larger), 6)
    side = pooled.flatten(1) @ model.delta.project.weight.T
    share = 1 / (1 + torch.tensor(-mix, dtype=torch.float64).exp())
    expected = share * backbone.model(images) + (1 - share) * side
    torch.testing.assert_close(model.features(images), expected, rtol=0, atol=1e-12)


def test_it_starts_as_the_plain_average(backbone, images):
    model = pv.tune(backbone, RANDOM, 4).double()
    assert model.delta.mix.item() == 0
    side = model.delta.on_features(torch.zeros(3, 24, dtype=torch.float64), images) * 2
    torch.testing.assert_close(model.features(images), (backbone(images) + side) / 2, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(64, 64), (70, 100), (64, 16), (20, 80)])
def test_only_images_that_are_too_small_are_enlarged(size, backbone):
    delta = RANDOM.build(backbone)
    seen = []
    delta.features.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0].shape[2:]))
    assert delta.on_features(torch.zeros(2, 24), torch.randn(2, 3, *size)).shape == (2, 24)
    assert seen == [(max(size[0], 64), max(size[1], 64))]


def test_it_gives_the_blocks_nothing_and_leaves_the_images(backbone, images):
    delta = RANDOM.build(backbone)
    assert delta(backbone, 3) == ()
    assert delta.on_images(images) is images


def test_one_step_changes_the_side_network_and_the_head(backbone, images):
    model = pv.tune(backbone, RANDOM, 3).double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    F.cross_entropy(model(images), torch.arange(3)).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if not name.startswith("backbone.")}
    assert model.trained == frozenset()


def imagenet_file(home):
    """A file as torch.hub caches it, with random features and a classifier that nobody wants."""
    features = {f"features.{name}": tensor for name, tensor in alexnet_features().state_dict().items()}
    (home / "hub" / "checkpoints").mkdir(parents=True)
    torch.save({**features, "classifier.1.bias": torch.zeros(3)}, home / "hub" / "checkpoints" / FILE)
    return features


def test_the_imagenet_weights_are_the_start(backbone, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    expected = imagenet_file(tmp_path)
    delta = pv.tune(backbone, Side(), 3).delta
    for name, tensor in delta.features.state_dict().items():
        assert torch.equal(tensor, expected[f"features.{name}"])


def test_a_saved_model_needs_no_download(make_vit, images, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    imagenet_file(tmp_path)
    backbone = pv.from_timm(make_vit().float())
    model = pv.tune(backbone, Side(), 3).eval()
    model.save(tmp_path / "delta")
    (tmp_path / "hub" / "checkpoints" / FILE).unlink()
    loaded = pv.load(tmp_path / "delta", backbone=backbone)
    assert loaded.method == Side(weights="imagenet") != RANDOM
    assert torch.equal(loaded(images.float()), model(images.float()))


def test_without_a_network_the_error_says_what_to_do(backbone, tmp_path, monkeypatch):
    def urlopen(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", urlopen)
    with pytest.raises(
        BackboneError, match=r"no route to host.*Save https://\S+alexnet\S+ in \S+checkpoints, or start"
    ):
        pv.tune(backbone, Side(), 3)
    assert not list((tmp_path / "hub" / "checkpoints").iterdir())


def test_a_server_that_never_answers_is_left(backbone, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("promptvit.methods.side.SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/{FILE}"
        monkeypatch.setattr("torch.hub.Request", lambda _, headers: Request(url, headers=headers))
        with pytest.raises(BackboneError, match="timed out"):
            pv.tune(backbone, Side(), 3)
    assert socket.getdefaulttimeout() is None


def test_a_damaged_file_is_an_error_that_names_it(backbone, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    imagenet_file(tmp_path)
    (tmp_path / "hub" / "checkpoints" / FILE).write_bytes(b"half a download")
    with pytest.raises(BackboneError, match="AlexNet's weights could not be loaded"):
        pv.tune(backbone, Side(), 3)


def test_other_channels_and_weights_are_refused(make_vit, untyped):
    with pytest.raises(ConfigError, match="AlexNet takes images of 3 channels, not 1"):
        pv.tune(pv.from_timm(make_vit(in_chans=1)), RANDOM, 3)
    with pytest.raises(ConfigError, match="weights='coco': expected imagenet or random"):
        Side(weights="coco")
