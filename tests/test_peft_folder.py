import dataclasses
import json

import pytest
import safetensors.torch
import timm
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import promptvit as pv
from promptvit.errors import ConfigError, DeltaError
from promptvit.methods.lora import LoRA
from promptvit.peft_folder import CONFIG, TENSORS, load_peft, save_peft

CLASSES = 5


def vit(**arguments):
    return VisionTransformer(img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=2, **arguments)


def swin(**arguments):
    size = {"img_size": 16, "patch_size": 2, "embed_dim": 12, "depths": (2, 1), "num_heads": (2, 4), "window_size": 2}
    return SwinTransformer(**size, **arguments)


KINDS = {
    "vit": vit,
    "swin": swin,
    "mae": lambda **fields: vit(global_pool="avg", **fields),
    "eva": lambda **fields: timm.create_model(
        "eva02_tiny_patch14_224", img_size=28, embed_dim=24, num_heads=2, depth=2, **fields
    ),
}


@pytest.fixture(params=KINDS)
def twins(request, make_small):
    """The same weights as timm builds them for a task and without a head, and the size of its images."""
    whole = make_small(lambda: KINDS[request.param](num_classes=CLASSES))
    bare = make_small(lambda: KINDS[request.param](num_classes=0))
    bare.load_state_dict({name: w for name, w in whole.state_dict().items() if name in bare.state_dict()})
    return whole, bare, 28 if request.param == "eva" else 16


def train(model, images, labels, steps=3):
    """A few steps of real training; returns the losses."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def batch(size):
    return torch.randn(4, 3, size, size, dtype=torch.float64), torch.arange(4)


METHODS = [LoRA(rank=3), LoRA(rank=2, alpha=7.0, dropout=0.2, targets=["proj", "fc1"])]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_peft_computes_what_we_trained(method, twins, tmp_path):
    whole, bare, size = twins
    images, labels = batch(size)
    if size == 28 and method.targets is None:
        method = dataclasses.replace(method, targets=["proj"])  # the fused layer of EVA is never called
    model = pv.tune(pv.from_timm(bare), method, CLASSES, head="zeros").double()
    losses = train(model, images, labels)
    assert losses[-1] < losses[0]
    theirs = PeftModel.from_pretrained(whole, save_peft(model, tmp_path / "adapter")).eval()
    torch.testing.assert_close(theirs(images), model.eval()(images), rtol=0, atol=1e-10)
    with theirs.disable_adapter():
        assert (theirs(images) - model(images)).abs().max() > 1e-3
    again = load_peft(tmp_path / "adapter", pv.from_timm(bare), CLASSES).double()
    assert (again.method.rank, again.method.alpha) == (method.rank, method.alpha)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["proj", "fc1"], "exclude_modules": ["patch_embed.proj"], "r": 3, "lora_alpha": 5},
        {"target_modules": r".*\.(fc1|fc2)", "r": 2, "lora_dropout": 0.1, "init_lora_weights": "gaussian"},
        {"target_modules": ["fc2"], "layers_to_transform": [1], "layers_pattern": "blocks"},
    ],
    ids=str,
)
def test_we_compute_what_peft_trained(config, twins, tmp_path):
    whole, bare, size = twins
    bare.load_state_dict({name: w.float().double() for name, w in bare.state_dict().items()})
    images, labels = batch(size)
    classifier = next(name for name, module in whole.named_modules() if module is whole.get_classifier())
    theirs = get_peft_model(whole, LoraConfig(**config, modules_to_save=[classifier]))
    losses = train(theirs, images, labels)
    assert losses[-1] < losses[0]
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter.float())  # what a head of ours can hold
    theirs.save_pretrained(tmp_path)
    expected = theirs.eval()(images)
    model = load_peft(tmp_path, pv.from_timm(bare), CLASSES)
    assert not model.training
    torch.testing.assert_close(model.double()(images), expected, rtol=0, atol=1e-10)
    with torch.no_grad():
        assert (pv.from_timm(bare)(images) - model.features(images)).abs().max() > 1e-3


@pytest.fixture
def adapter(tmp_path):
    """A folder that PEFT wrote for a small ViT in float32, with what `change` makes of its two files."""

    def make(change=lambda config, tensors: None, *, head=True, **fields):
        torch.manual_seed(0)
        targets = {"target_modules": ["qkv"]} | fields
        model = get_peft_model(
            vit(num_classes=CLASSES), LoraConfig(**targets, modules_to_save=["head"] if head else None)
        )
        model.save_pretrained(tmp_path)
        config = json.loads((tmp_path / CONFIG).read_text())
        tensors = safetensors.torch.load_file(tmp_path / TENSORS)
        change(config, tensors)
        (tmp_path / CONFIG).write_text(json.dumps(config))
        safetensors.torch.save_file(tensors, tmp_path / TENSORS)
        return tmp_path

    return make


def test_targets_are_called_by_the_ends_of_their_names_if_that_is_enough(adapter):
    backbone = pv.from_timm(vit(num_classes=0))
    assert load_peft(adapter(), backbone, CLASSES).method == LoRA(targets=["qkv"], alpha=8.0)
    some = adapter(layers_to_transform=[0, 2], layers_pattern="blocks")
    assert load_peft(some, backbone, CLASSES).method.targets == ("blocks.0.attn.qkv", "blocks.2.attn.qkv")


def test_a_folder_without_a_head_gives_an_untrained_one(adapter):
    torch.manual_seed(3)
    model = load_peft(adapter(head=False), pv.from_timm(vit(num_classes=0)), CLASSES)
    assert model.head.bias.eq(model.head.bias[0]).all()
    assert model(torch.randn(1, 3, 16, 16)).shape == (1, CLASSES)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"use_rslora": True}, "use_rslora=True"),
        ({"rank_pattern": {"blocks.0.attn.qkv": 2}}, "rank_pattern="),
        ({"alpha_pattern": {"blocks.0.attn.qkv": 2}}, "alpha_pattern="),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'; expected plain LoRA"),
        ({"bias": "all"}, "bias='all'"),
    ],
    ids=str,
)
def test_what_is_not_plain_lora_is_refused_by_name(fields, message, adapter):
    with pytest.raises(DeltaError, match=message):
        load_peft(adapter(**fields), pv.from_timm(vit(num_classes=0)), CLASSES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, t: c.update(peft_type="IA3"), "is of type IA3; expected LORA"),
        (lambda c, t: c.update(lora_bias=True, something_new=3), "lora_bias=True, something_new=3"),
        (lambda c, t: c.pop("r"), "lacks r; expected an adapter"),
        (lambda c, t: t.pop("base_model.model.head.bias"), "tensor head.bias is missing"),
        (lambda c, t: t.update({"base_model.model.norm.bias": torch.ones(24)}), "model.norm.bias is not one of"),
        (lambda c, t: c.update(r=4), r"lora_A.default.weight has shape \[8, 24\], expected \[4, 24\]"),
    ],
)
def test_files_that_do_not_fit_are_refused(change, message, adapter):
    with pytest.raises(DeltaError, match=message):
        load_peft(adapter(change), pv.from_timm(vit(num_classes=0)), CLASSES)


def test_another_number_of_classes_or_another_backbone_is_refused(adapter, tmp_path):
    folder = adapter()
    with pytest.raises(DeltaError, match=r"tensor head.weight has shape \[5, 24\], expected \[7, 24\]"):
        load_peft(folder, pv.from_timm(vit(num_classes=0)), 7)
    with pytest.raises(DeltaError, match=r"blocks\.0\.attn\.qkv.* has shape"):
        load_peft(folder, pv.load_backbone(), CLASSES)
    with pytest.raises(DeltaError, match=r"adapter_config\.json cannot be read"):
        load_peft(tmp_path / "nowhere", pv.load_backbone(), CLASSES)
    (folder / TENSORS).unlink()
    with pytest.raises(DeltaError, match=r"adapter_model\.safetensors cannot be read.*adapter_model\.bin is not read"):
        load_peft(folder, pv.load_backbone(), CLASSES)


def test_only_lora_and_one_head_can_be_written(tmp_path):
    with pytest.raises(ConfigError, match="a task tuned with Linear; expected one tuned with LoRA"):
        save_peft(pv.tune(pv.load_backbone(), pv.Linear(), 3), tmp_path)
    two = timm.create_model("deit_tiny_distilled_patch16_224", depth=1, num_classes=0)
    with pytest.raises(ConfigError, match="VisionTransformerDistilled has more than one head"):
        save_peft(pv.tune(pv.from_timm(two), LoRA(), 3), tmp_path)
