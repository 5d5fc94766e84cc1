"""What training touches, for every method on every backbone."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.profiler import ProfilerActivity, profile

import promptvit as pv
from promptvit.methods import METHODS


def step(model, images):
    """One SGD step over all parameters, whether they have a gradient or not."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    nn.functional.cross_entropy(model(images), torch.arange(len(images))).backward()
    optimizer.step()


def trained_names(model):
    """What is trained, by the names of the whole model: all but the backbone's weights, unless they are named."""
    fixed = model.method == METHODS["vpt-fixed"].build()
    parts = {f"{part}.{n}" for part in ("delta", "head")[fixed:] for n, _ in getattr(model, part).named_parameters()}
    return parts | {f"backbone.model.{name}" for name in model.trained if name in model.backbone.weights()}


def test_the_trained_tensors_get_gradients_all_of_them_and_no_others(model, images):
    nn.functional.cross_entropy(model(images), torch.arange(3)).backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    expected = trained_names(model)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == expected
    unread = {name for name in expected if name.endswith("k_norm.bias")}  # shifts all logits of a softmax alike
    assert expected - unread <= with_gradient <= expected
    saved = {name for name in model.trained_tensors() if name not in dict(model.named_buffers())}
    assert {name.replace("backbone.model.", "backbone.") for name in expected} <= saved


def test_one_step_changes_the_trained_tensors_alone(model, images, pair):
    theirs = {name: p.detach().clone() for name, p in pair[0].model.state_dict().items()}
    before = {name: p.detach().clone() for name, p in model.state_dict().items()}
    step(model, images)
    changed = {name for name, p in model.state_dict().items() if not torch.equal(p, before[name])}
    buffers = {f"backbone.model.{name}" for name in model.trained} | {
        f"head.{n}" for n, _ in model.head.named_buffers()
    }
    assert trained_names(model) <= changed <= trained_names(model) | buffers
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in pair[0].model.state_dict().items())


def test_train_mode_leaves_a_frozen_backbone_in_eval_mode(model):
    for mode in (True, False, True):
        model.train(mode)
        for name, module in model.backbone.model.named_modules():
            trained = any(f"{name}.{inner}" in model.trained for inner, _ in module.named_parameters(recurse=False))
            if isinstance(module, BatchNorm) and trained and module.weight.requires_grad:
                assert module.training == mode
            elif not any(part in name for part in ("lora",)):
                assert module.training == (mode and model.method.backbone_trains), name
        assert model.training == model.delta.training == model.head.training == mode


def test_full_trains_a_copy_with_the_models_own_dropout(make_vit, images):
    backbone = pv.from_timm(make_vit(pos_drop_rate=0.5))
    model = pv.tune(backbone, pv.Full(), 3).double()
    assert not torch.equal(model(images), model(images))
    assert torch.equal(model.eval()(images), model(images))
    before = copy.deepcopy(backbone.model.state_dict())
    step(model.train(), images)
    assert model.backbone.model is not backbone.model
    assert not any(p.requires_grad for p in backbone.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())
    frozen = pv.tune(backbone, pv.VPT(), 3).double()
    assert torch.equal(frozen(images), frozen(images))


@pytest.mark.parametrize("depth", ["shallow", "deep"])
def test_dropout_is_drawn_for_every_image(depth, plain, images, make_tuned):
    model = make_tuned(plain, pv.VPT(length=6, depth=depth, dropout=0.5))
    twins = images[:1].repeat(2, 1, 1, 1)
    first, second = model.train()(twins)
    assert (first - second).abs().max() > 1e-3
    first, second = model.eval()(twins)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-12)


def test_gradients_are_equal_under_checkpointing(model, images):
    def gradients():
        logits = model.eval()(images)  # batch norms would count the batch twice
        trained = [p for p in model.parameters() if p.requires_grad]
        return logits.detach(), torch.autograd.grad(logits.square().sum(), trained, allow_unused=True)

    logits, expected = gradients()
    model.backbone.set_checkpointing(True)
    assert model.backbone.checkpointing
    again, got = gradients()
    torch.testing.assert_close(again, logits, rtol=0, atol=0)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [pv.VPT(depth="shallow"), pv.VPT(depth="deep"), pv.Linear()], ids=str)
@pytest.mark.parametrize("flag", ["ours", "timm's"])
def test_blocks_are_recomputed_where_something_before_them_is_trained(flag, method, plain, images, make_tuned):
    model = make_tuned(plain, method)
    if flag == "ours":
        plain.set_checkpointing(True)
    else:
        plain.model.set_grad_checkpointing(True)
    assert plain.checkpointing
    calls = []
    plain.model.blocks[1].norm2.register_forward_hook(lambda *_: calls.append(1))
    model(images).sum().backward()
    assert len(calls) == (1 if isinstance(method, pv.Linear) else 2)


def peak_bytes(make_vit, length, *, checkpointing=False, per_image=False):
    """The most memory that one training step of a wider ViT holds beyond what it starts with."""
    backbone = pv.from_timm(make_vit(embed_dim=64, depth=4))
    backbone.set_checkpointing(checkpointing)
    method = pv.VPT(length=length, dropout=0.1 if per_image else 0.0) if length else pv.Linear()
    model = pv.tune(backbone, method, 3).double()
    images = torch.randn(16, 3, 16, 16, dtype=torch.float64).requires_grad_()  # so that Linear has a backward pass
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model(images).sum().backward()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def test_shared_prompts_are_not_stored_once_per_image(make_vit):
    shared, per_image = peak_bytes(make_vit, 64), peak_bytes(make_vit, 64, per_image=True)
    assert shared < 0.6 * per_image


def test_checkpointing_saves_memory_with_prompts_too(make_vit):
    """Hooks on saved tensors inside a recomputed block would keep what checkpointing is there to drop."""
    for length in (0, 16):
        assert peak_bytes(make_vit, length, checkpointing=True) < 0.6 * peak_bytes(make_vit, length)


def test_bfloat16_autocast_trains(pair, images, samples):
    backbone = pv.from_timm(pair[0].model.float(), preprocessing=pair[0].preprocessing)
    model = pv.tune(backbone, pair[1], 5, samples=samples)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nn.functional.cross_entropy(model(images.float()), torch.arange(3))
    loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert torch.isfinite(loss)
    assert all(p.dtype == p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in trained)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        low, high = model.eval().fold()(images.float()).float(), model(images.float()).float()
    torch.testing.assert_close(low, high, rtol=0.1, atol=0.1)


COMPILED = """
import sys, torch, promptvit as pv
from promptvit.methods import METHODS
from timm.models.vision_transformer import VisionTransformer

def gradients(model, logits):
    return torch.autograd.grad(logits.square().sum(), [p for p in model.parameters() if p.requires_grad])

torch.manual_seed(0)
fields = {"side": {"weights": "random"}, "pixel-pad": {"length": 2}, "spt-shallow": {"length": 5}}
presets = {name: preset.build(**fields.get(name, {})) for name, preset in METHODS.items()}
for zero in (False, True):
    presets[f"pruned {zero}"] = METHODS["e2vpt"].build(masks={"length": 10, "tokens": [[1, 4]], "compat_zero": zero})
methods = list(dict.fromkeys(presets.values()))
for readout, method in [*(("token", method) for method in methods), ("avg", pv.VPT()), ("token", pv.VPT(dropout=0.1))]:
    torch.compiler.reset()
    vit = VisionTransformer(16, 4, embed_dim=24, depth=4, num_heads=2, num_classes=0, global_pool=readout)
    images = torch.randn(3, 3, 16, 16)
    model = pv.tune(pv.from_timm(vit), method, 3, samples=[(image, 0) for image in images])
    logits = torch.compile(model, fullgraph=True, backend="aot_eager")(images)
    compiled = gradients(model, logits)
    if not getattr(method, "dropout", 0) and method.kind != "mlp":  # those draw anew
        torch.testing.assert_close(logits, model(images), rtol=0, atol=1e-5)
        torch.testing.assert_close(compiled, gradients(model, model(images)), rtol=1e-4, atol=1e-4)
print("done")
"""


@pytest.mark.slow
def test_every_method_compiles_whole(run_python):
    assert run_python(COMPILED) == "done"
