"""Copies of a tuned model are models of their own, for every method on every backbone."""

import copy
import pickle

import torch

import promptvit as pv


def assert_independent(twin, model, images):
    """Equal now, and training the one leaves the other as it is."""
    torch.testing.assert_close(twin.eval()(images), model.eval()(images), rtol=0, atol=0)
    before = model(images)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    assert torch.equal(model(images), before)
    assert not torch.equal(twin(images), before)


def test_a_deep_copy_owns_its_parameters(model, images):
    assert_independent(copy.deepcopy(model), model, images)


def test_a_folded_model_is_copied_and_pickled_too(model, images):
    folded = model.fold()
    expected = folded(images)
    assert not any(buffer.requires_grad for buffer in folded.buffers())
    for twin in (copy.deepcopy(folded), pickle.loads(pickle.dumps(folded))):
        assert torch.equal(twin(images), expected)


def test_it_pickles(model, images):
    twin = pickle.loads(pickle.dumps(model))
    assert (twin.method, twin.classes, twin.preprocessing) == (model.method, model.classes, model.preprocessing)
    assert_independent(twin, model, images)


def test_two_tasks_on_one_backbone_do_not_share_what_is_trained(pair, images, make_tuned):
    first, second = make_tuned(*pair).eval(), make_tuned(*pair).eval()
    trained = {id(p) for p in first.parameters() if p.requires_grad}
    assert not trained & {id(p) for p in second.parameters()}
    before = second(images)
    for model in (first, second):  # nothing that is kept for one serves the other
        torch.testing.assert_close(model.fold()(images), model(images), rtol=1e-11, atol=1e-12)
    with torch.no_grad():
        for parameter in first.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    assert torch.equal(second(images), before)


def test_saving_and_loading_changes_no_bit(pair, images, samples, tmp_path):
    (backbone, method), size = pair, pair[0].preprocessing
    backbone = pv.from_timm(backbone.model.float(), preprocessing=size)
    model = pv.tune(backbone, method, 5, samples=samples)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save(tmp_path)
    loaded = pv.load(tmp_path, backbone=backbone)
    assert loaded.method == method
    assert not loaded.training
    assert torch.equal(loaded(images.float()), model.eval()(images.float()))
