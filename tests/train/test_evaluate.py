import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, log_loss, roc_auc_score, top_k_accuracy_score

import promptvit as pv
from promptvit.errors import DataError
from promptvit.train.config import TrainConfig
from promptvit.train.evaluate import evaluate_task, measure


def test_measure_agrees_with_scikit_learn():
    logits, labels = torch.randn(200, 7), torch.randint(0, 7, (200,))
    metrics = measure(logits, labels)
    shares = logits.double().softmax(dim=1).numpy()
    assert metrics.images == 200
    assert metrics.loss == pytest.approx(log_loss(labels, shares, labels=range(7)))
    assert metrics.top1 == pytest.approx(top_k_accuracy_score(labels, shares, k=1, labels=range(7)))
    assert metrics.top5 == pytest.approx(top_k_accuracy_score(labels, shares, k=5, labels=range(7)))
    assert metrics.balanced == pytest.approx(balanced_accuracy_score(labels, logits.argmax(dim=1)))
    assert metrics.auroc is None


def test_two_classes_have_an_auroc():
    logits, labels = torch.randn(100, 2), torch.randint(0, 2, (100,))
    metrics = measure(logits, labels)
    assert metrics.auroc == pytest.approx(roc_auc_score(labels, logits.softmax(dim=1)[:, 1]))
    assert metrics.top5 == 1.0


def test_a_class_without_images_does_not_count():
    logits = torch.tensor([[9.0, 0.0], [0.0, 9.0]])
    metrics = measure(logits, torch.tensor([0, 0]))
    assert metrics.per_class == (0.5, None)
    assert metrics.balanced == 0.5
    assert metrics.auroc is None


def test_evaluating_counts_every_image_once_and_keeps_the_mode(digits_folder):
    model = pv.tune(pv.load_backbone(), pv.VPT(length=2, dropout=0.5), ["0", "1", "2"])
    data = pv.DataConfig(source=str(digits_folder))
    results = [
        evaluate_task(model.train(), data, "test", TrainConfig(batch_size=size, device="cpu")) for size in (7, 64)
    ]
    assert model.training
    assert {metrics.images for metrics in results} == {20}
    assert results[0].top1 == results[1].top1
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-5)


def test_other_classes_are_refused(digits_folder):
    model = pv.tune(pv.load_backbone(), pv.Linear(), ["a", "b", "c"])
    with pytest.raises(DataError, match="classes 0, 1, 2; expected those of the model: a, b, c"):
        evaluate_task(model, pv.DataConfig(source=str(digits_folder)), "test", TrainConfig(device="cpu"))
