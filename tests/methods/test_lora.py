import copy
import pickle
import sys

import pytest
import torch
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from torch import nn

import promptvit as pv
from promptvit.errors import ConfigError
from promptvit.methods.lora import LoRA


@pytest.fixture
def images():
    return torch.randn(3, 3, 16, 16, dtype=torch.float64)


def tuned(model, method):
    """A float64 task whose updates are away from zero."""
    task = pv.tune(pv.from_timm(model), method, 4).double().eval()
    with torch.no_grad():
        for parameter in task.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    return task


def merged(task, model):
    """timm's own model with W + alpha / rank · B A in place of W."""
    twin, weights, method = copy.deepcopy(model), task.trained_tensors(), task.method
    for name in [n.removesuffix(".lora_A.default.weight") for n in weights if n.endswith("lora_A.default.weight")]:
        a, b = (weights[f"{name}.lora_{part}.default.weight"] for part in "AB")
        with torch.no_grad():
            twin.get_submodule(name.removeprefix("backbone.")).weight.add_(method.alpha / method.rank * b @ a)
    return twin.eval()


def eva(**fields):
    small = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 0}
    return Eva(**small, use_rot_pos_emb=True, **fields)


def swin():
    size = {"img_size": 16, "patch_size": 2, "embed_dim": 12, "num_classes": 0}
    return SwinTransformer(**size, depths=(2, 1), num_heads=(2, 4), window_size=2)


METHODS = [LoRA(rank=3), LoRA(rank=2, alpha=5.0, targets=["proj", "mlp.fc1", "blocks.1.attn.qkv"])]


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("arguments", [{}, {"reg_tokens": 4, "global_pool": "avg"}, {"qk_norm": True}], ids=str)
def test_features_are_timms_own_with_the_updated_weights(arguments, method, make_vit, images):
    model = make_vit(**arguments)
    task = tuned(model, method)
    expected = merged(task, model)(images)
    assert (expected - model(images)).abs().max() > 1e-2
    torch.testing.assert_close(task.features(images), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(task.fold()(images), task.head(expected), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("construct", "method"),
    [
        (lambda: eva(qkv_fused=False), LoRA(rank=3)),
        (lambda: eva(qkv_bias=False), LoRA(rank=3)),
        (lambda: eva(), LoRA(rank=3, targets=["proj", "fc1", "fc2"])),
        (swin, LoRA(rank=3)),
    ],
)
def test_other_families_too(construct, method, make_small, images):
    model = make_small(construct)
    task = tuned(model, method)
    torch.testing.assert_close(task.features(images), merged(task, model)(images), rtol=0, atol=1e-10)


def test_it_starts_as_the_frozen_model_and_leaves_that_alone(make_vit, images):
    model = make_vit()
    before, modules = copy.deepcopy(model.state_dict()), dict(model.named_modules())
    backbone = pv.from_timm(model)
    task = pv.tune(backbone, LoRA(), 4).double()
    torch.testing.assert_close(task.features(images), backbone(images), rtol=0, atol=1e-12)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        task(images).square().sum().backward()
        optimizer.step()
    assert (task.features(images) - backbone(images)).abs().max() > 1e-3
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    theirs = {id(p) for p in model.parameters()}
    assert {id(p) for p in task.backbone.parameters() if not p.requires_grad} == theirs


def test_only_the_updates_and_the_head_are_trained(make_vit):
    task = pv.tune(pv.from_timm(make_vit()), LoRA(rank=3), 4)
    assert len(task.trained) == 3 * 2
    assert all(name.endswith((".qkv.lora_A.default.weight", ".qkv.lora_B.default.weight")) for name in task.trained)
    assert task.trained_parameters() == 3 * 3 * (24 + 72) + 4 * 25


def test_the_number_of_parameters_of_vit_b():
    with torch.device("meta"):
        backbone = pv.load_backbone("vit_base_patch16_224", pretrained=False)
        assert pv.tune(backbone, LoRA(), 10).trained_parameters() == 12 * 8 * (768 + 2304) + 7690


def test_dropout_of_the_update_follows_the_mode_and_nothing_else_does(make_vit, images):
    task = tuned(make_vit(pos_drop_rate=0.5, proj_drop_rate=0.5), LoRA(dropout=0.5))
    task.train()
    in_train_mode = {name.rpartition(".qkv.")[2] for name, m in task.backbone.named_modules() if m.training}
    assert in_train_mode == {"lora_dropout", "lora_dropout.default"}
    assert not torch.equal(task(images), task(images))
    assert torch.equal(task.eval()(images), task(images))
    without = tuned(make_vit(pos_drop_rate=0.5), LoRA()).train()
    assert torch.equal(without(images), without(images))


def test_copies_are_models_of_their_own(make_vit, images):
    task = tuned(make_vit(), LoRA(dropout=0.1))
    expected = task(images)
    for twin in (copy.deepcopy(task), pickle.loads(pickle.dumps(task))):
        assert torch.equal(twin(images), expected)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(1.0)
        assert torch.equal(task(images), expected)


def test_checkpointing_changes_no_gradient(make_vit, images):
    task = tuned(make_vit(), LoRA())
    trained = [p for p in task.parameters() if p.requires_grad]
    expected = torch.autograd.grad(task(images).square().sum(), trained)
    task.backbone.set_checkpointing(True)
    for mine, theirs in zip(torch.autograd.grad(task(images).square().sum(), trained), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_bfloat16_autocast_trains_in_float32(make_vit, images):
    task = pv.tune(pv.from_timm(make_vit().float()), LoRA(), 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nn.functional.cross_entropy(task(images.float()), torch.arange(3))
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in task.parameters() if p.requires_grad)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_saving_and_loading_changes_no_bit(method, make_vit, images, tmp_path):
    task = tuned(make_vit(), method)
    backbone = pv.from_timm(make_vit())
    loaded = pv.load(task.save(tmp_path), backbone=backbone).double()
    assert loaded.method == method
    torch.testing.assert_close(loaded(images), task(images), rtol=0, atol=1e-5)  # the head is loaded in float32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "rank=0: expected at least 1"),
        ({"alpha": 0.0}, "alpha=0.0: expected a value above 0"),
        ({"dropout": 1.0}, r"dropout=1.0: expected a probability in \[0, 1\)"),
        ({"targets": "qkv"}, "targets='qkv': expected a list of names"),
        ({"targets": [""]}, r"targets=\[''\]: expected a list of names"),
        ({"targets": []}, r"targets=\(\): expected at least one name"),
        ({"rank": 0, "alpha": -1.0}, "rank=0.*; alpha=-1.0"),
    ],
)
def test_fields_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        LoRA(**fields)


def test_a_target_that_is_none_is_answered_with_the_layers_there_are(make_vit):
    backbone = pv.from_timm(make_vit(num_classes=5))
    for target in ("qvk", "head", "norm1", "kv"):
        with pytest.raises(ConfigError, match=f"no linear layer is called {target}; expected .* qkv, proj, fc1, fc2"):
            pv.tune(backbone, LoRA(targets=["proj", target]), 3)


def test_a_layer_whose_weight_is_read_and_never_called_is_refused(make_small):
    backbone = pv.from_timm(make_small(eva))
    for targets in (None, ["attn.qkv"]):
        with pytest.raises(ConfigError, match=r"blocks.0.attn.qkv has its biases apart.*targets=\[proj, fc1, fc2\]"):
            pv.tune(backbone, LoRA(targets=targets), 3)


def test_a_convnet_has_to_be_told_which_layers(make_small):
    small = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), "patch_size": 2, "num_classes": 0}
    backbone = pv.load_backbone("resnet10t", pretrained=False)
    with pytest.raises(ConfigError, match="it has no attention; name linear layers with `targets`"):
        pv.tune(backbone, LoRA(), 3)
    with pytest.raises(ConfigError, match="no linear layer is called conv1; expected targets among -"):
        pv.tune(backbone, LoRA(targets=["conv1"]), 3)
    model, images = make_small(lambda: ConvNeXt(**small)), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    task = tuned(model, LoRA(rank=2, targets=["fc2"]))
    torch.testing.assert_close(task.features(images), merged(task, model)(images), rtol=0, atol=1e-10)


def test_without_peft_the_error_says_what_to_install(make_vit, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"LoRA needs PEFT .*pip install 'promptvit\[lora\]'"):
        pv.tune(pv.from_timm(make_vit()), LoRA(), 3)


COMPILED = """
import torch, promptvit as pv
from promptvit.methods.lora import LoRA
from timm.models.vision_transformer import VisionTransformer

torch.manual_seed(0)
images = torch.randn(2, 3, 16, 16)
vit = VisionTransformer(16, 4, embed_dim=24, depth=1, num_heads=2, num_classes=0)
for method in (LoRA(), LoRA(dropout=0.5)):
    torch.compiler.reset()
    model = pv.tune(pv.from_timm(vit), method, 3)
    logits = torch.compile(model, fullgraph=True, backend="aot_eager")(images)
    logits.sum().backward()
    if not method.dropout:
        torch.testing.assert_close(logits, model(images), rtol=0, atol=1e-4)
print("done")
"""


@pytest.mark.slow
def test_it_compiles_whole(run_python):
    assert run_python(COMPILED) == "done"
