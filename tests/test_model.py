import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import promptvit as pv
from promptvit.data.digits import read_digits
from promptvit.data.transforms import normalise, prepare
from promptvit.errors import BrokenImageError, ConfigError, DataError


@pytest.fixture(scope="module")
def backbone():
    return pv.load_backbone()


@pytest.fixture
def model(backbone):
    return pv.tune(backbone, pv.VPT(length=3), ("ant", "bee", "cat"))


@pytest.fixture
def array():
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def test_shapes_and_names(backbone):
    model = pv.tune(backbone, pv.VPT(), 4)
    assert model.classes == ("0", "1", "2", "3")
    images = torch.rand(5, 3, 32, 32)
    assert (model.features(images).shape, model(images).shape) == ((5, 128), (5, 4))
    assert torch.equal(model(images), model.head(model.features(images)))
    assert model.training
    assert pv.tune(backbone, pv.VPT(), ["no", "yes"]).classes == ("no", "yes")


@pytest.mark.parametrize("classes", [1, 0, [], ["one"], ["same", "same", "other"]])
def test_fewer_than_two_different_classes_are_refused(classes, backbone):
    with pytest.raises(ConfigError, match="expected at least two different classes"):
        pv.tune(backbone, pv.VPT(), classes)


def test_the_backbone_is_shared_unless_it_is_trained(backbone):
    assert pv.tune(backbone, pv.VPT(), 2).backbone is backbone
    full = pv.tune(backbone, pv.Full(), 2)
    assert full.backbone is not backbone
    assert not {id(p) for p in full.parameters()} & {id(p) for p in backbone.parameters()}


@pytest.mark.parametrize("method", [pv.Full(), pv.Adapter(), pv.Pixel(location="pad", length=2)], ids=str)
def test_the_backbone_of_a_task_is_not_tuned_again(method, backbone):
    model = pv.tune(backbone, method, 2)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    with pytest.raises(ConfigError, match="the backbone of a tuned model; expected a pretrained one"):
        pv.tune(model.backbone, pv.VPT(), 2)
    pv.tune(backbone, pv.Bias(), 2)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained


def test_the_start_depends_on_the_seed_alone(backbone):
    def start(seed):
        torch.manual_seed(seed)
        return torch.cat([tensor.flatten() for tensor in pv.tune(backbone, pv.VPT(), 3).trained_tensors().values()])

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))


def test_the_head_starts_as_in_the_papers_or_at_zero(backbone):
    starts = ("paper", "truncated", "zeros")
    paper, truncated, zeros = (pv.tune(backbone, pv.Linear(), 50, head=start).head for start in starts)
    assert paper.weight.std().item() == pytest.approx((2 / 50) ** 0.5, rel=0.05)
    assert paper.bias.unique().item() == pytest.approx(-4.59512, abs=1e-5)
    assert truncated.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not truncated.bias.any()
    assert not zeros.weight.any()
    assert not zeros.bias.any()


def test_predict_takes_a_path_a_picture_an_array_and_lists(model, array, tmp_path):
    picture, path = Image.fromarray(array), tmp_path / "a.png"
    picture.save(path)
    images = normalise(prepare(array, model.preprocessing)[None], model.preprocessing)
    probabilities, labels = model.eval()(images).softmax(dim=-1)[0].sort(descending=True)
    expected = model.predict(array)[0]
    assert expected.labels == tuple(labels.tolist())
    assert expected.probabilities == pytest.approx(probabilities.tolist(), abs=1e-5)
    assert expected.names == tuple(model.classes[label] for label in labels)
    assert expected.name == expected.names[0]
    assert sum(expected.probabilities) == pytest.approx(1, abs=1e-5)
    for given in (picture, path, str(path), [array], (path,)):
        (prediction,) = model.predict(given)
        assert prediction.labels == expected.labels
        assert prediction.probabilities == pytest.approx(expected.probabilities, abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_predict_keeps_the_order_in_batches_of_any_size(batch_size, model, array):
    pictures = [array, array[::-1].copy(), 255 - array]
    whole = model.predict(pictures)
    parts = model.predict(pictures, batch_size=batch_size, top=2)
    assert [p.labels[:2] for p in whole] == [p.labels for p in parts]
    assert [len(p.names) for p in parts] == [2, 2, 2]
    assert model.predict([]) == []


@pytest.mark.parametrize("mode", [True, False])
def test_predict_leaves_the_mode_and_the_gradients_alone(mode, model, array):
    model.train(mode)
    model.predict(array)
    assert (model.training, model.delta.training, model.backbone.training) == (mode, mode, False)
    assert all(p.grad is None for p in model.parameters())
    assert model.delta.prompts[0].requires_grad


@pytest.mark.parametrize("mode", [True, False])
def test_a_failed_prediction_leaves_the_mode_alone(mode, model, tmp_path):
    model.train(mode)
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(BrokenImageError, match=r"broken\.png cannot be decoded"):
        model.predict(tmp_path / "broken.png")
    with pytest.raises(DataError, match="an image array of float64"):
        model.predict(np.zeros((4, 4, 3)))
    assert model.training == mode


def test_the_folded_model_follows_the_head_and_keeps_the_prompts(model):
    images = torch.rand(2, 3, 32, 32)
    folded = model.fold()
    assert not model.training
    torch.testing.assert_close(folded(images), model(images), rtol=0, atol=1e-5)
    assert folded.head is model.head
    assert folded.backbone is model.backbone


def digits(model, split):
    pixels = torch.stack([prepare(image, model.preprocessing) for image in split.images])
    return normalise(pixels, model.preprocessing), torch.from_numpy(np.asarray(split.labels))


def test_a_plain_loop_trains_it(backbone):
    model = pv.tune(backbone, pv.VPT(length=5), read_digits().classes)
    images, labels = digits(model, read_digits().train)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for batch in range(10):
        part = slice(64 * batch, 64 * batch + 64)
        loss = nn.functional.cross_entropy(model(images[part]), labels[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < 0.7 * losses[0]
