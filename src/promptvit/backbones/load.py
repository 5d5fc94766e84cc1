"""Loading: a name, a Hub repository, a local file or folder, or a timm model at hand, as a backbone."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from promptvit.backbones.base import Backbone
from promptvit.backbones.convnext import ConvNeXtBackbone
from promptvit.backbones.eva import EvaBackbone
from promptvit.backbones.filled import Filled
from promptvit.backbones.moco import FILES as MOCO_V3
from promptvit.backbones.moco import moco_v3
from promptvit.backbones.resnet import ResNetBackbone
from promptvit.backbones.source import BackboneSource, Pool
from promptvit.backbones.swin import SwinBackbone
from promptvit.backbones.tuned import with_tuned_weights
from promptvit.backbones.vit import ViTBackbone
from promptvit.errors import BackboneError, ConfigError
from promptvit.preprocessing import Preprocessing
from promptvit.registry import Registry, unknown

FAMILIES: tuple[type[Backbone], ...] = (ViTBackbone, EvaBackbone, ConvNeXtBackbone, ResNetBackbone, SwinBackbone)
"""A line per family of backbones."""
POOLED = ("vit", "eva")
"""Families that read one row or the mean of all, as one likes."""
LISTING = "All names: `promptvit backbones`"
BUNDLED: Registry[dict[str, Any]] = Registry("bundled backbone", LISTING)
"""Backbones whose weights are in this package: what timm builds them with."""
CONVERTED: Registry[Callable[[BackboneSource], Backbone]] = Registry("converted backbone", LISTING)
"""Backbones that timm does not list, from their authors' files: these need `checkpoint`."""


def load_backbone(
    name: str = "vit_pico",
    *,
    checkpoint: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    pool: Pool | None = None,
    tuned: str | Path | None = None,
    pretrained: bool = True,
) -> Backbone:
    """A pretrained backbone by name; the arguments are the fields of `BackboneSource`.

    Raises UnknownNameError with the nearest names, and BackboneError if the weights cannot be had or the
    architecture is not supported.
    """
    return load_source(
        BackboneSource(
            name=name,
            checkpoint=None if checkpoint is None else str(checkpoint),
            image_size=image_size,
            pool=pool,
            tuned=None if tuned is None else str(tuned),
            pretrained=pretrained,
        )
    )


def load_source(source: BackboneSource) -> Backbone:
    """The backbone that `source` describes."""
    convert = {**CONVERTED}.get(source.name)
    backbone = convert(source) if convert else from_timm(_create(source), source=source)
    return backbone if source.tuned is None else with_tuned_weights(backbone, source.tuned)


def from_timm(
    model: nn.Module, *, preprocessing: Preprocessing | None = None, source: BackboneSource | None = None
) -> Backbone:
    """A timm model at hand as a backbone: the same object, its parameters frozen, its weights untouched.

    `preprocessing` is the model's own unless given. Without a `source`, a delta trained on the backbone can be
    loaded only by handing the same backbone to `load`. Raises BackboneError for an unsupported architecture.
    """
    source = source or BackboneSource(name="")
    return family_of(model)(model, preprocessing or _preprocessing(model, source), source)


def family_of(model: nn.Module) -> type[Backbone]:
    """The class that drives `model`; raises BackboneError if none does, or if it does not know a part of it."""
    for family in FAMILIES:
        if type(model) in family.drives:
            family.check(model)
            return family
    raise BackboneError(
        f"{type(model).__name__} is not a supported architecture",
        expected=", ".join(known.__name__ for family in FAMILIES for known in family.drives),
        where="load_backbone",
        fix="`promptvit backbones` lists the names that work",
    )


def backbone_names(*, pretrained: bool = True) -> list[str]:
    """Names that `load_backbone` takes: bundled, converted, then timm's; `pretrained` keeps those with weights."""
    names = [
        name
        for family in FAMILIES
        for driven in family.drives
        for name in timm.list_models(module=driven.__module__.rpartition(".")[2], pretrained=pretrained)
        if not any(fnmatch(name, other) for other in family.not_driven)
    ]
    return [*sorted(BUNDLED), *sorted(CONVERTED), *names]


def _create(source: BackboneSource) -> nn.Module:
    architecture = BUNDLED[source.name] if source.name in BUNDLED else {"model_name": _timm_name(source.name)}
    with torch.device("meta"):  # refuse before any weights are downloaded
        skeleton = _build(source, **architecture)
    _check_pool(skeleton, source)
    arguments: dict[str, Any] = {}
    if source.size is not None and family_of(skeleton).image_size(skeleton) is not None:
        _check_size(skeleton, source)
        arguments["img_size"] = source.size
    if source.pool in ("token", "avg"):
        arguments["global_pool"] = source.pool
    if source.checkpoint is not None:
        if not Path(source.checkpoint).is_file():
            raise BackboneError(
                f"{source.checkpoint} is not a file",
                expected="a safetensors, pth or npz file",
                where="checkpoint",
            )
        npz = Path(source.checkpoint).suffix == ".npz"
        arguments["pretrained_cfg_overlay"] = {"file": source.checkpoint, "custom_load": npz}
    if source.pool is not None or source.checkpoint is not None:
        arguments["pretrained_strict"] = False
    filled = Filled()
    with filled:
        model = _build(source, pretrained=source.pretrained, **architecture | arguments)
    if source.pretrained and "pretrained_strict" in arguments:
        _check_whole(filled.missing(model), source)
    if source.pool == "avg-pretrained":
        _read_mean(model)
    return model


def _build(source: BackboneSource, **arguments: Any) -> nn.Module:
    """timm's model without a head; raises BackboneError for all that can go wrong in there."""
    try:
        return timm.create_model(num_classes=0, **arguments)
    except Exception as error:  # timm, the Hub client and the file formats raise of all kinds here
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BackboneError(
            f"{source.name!r} could not be loaded: {reason}",
            where="load_backbone",
            fix="Check the network or the file; a local copy loads with checkpoint=FILE, "
            "and pretrained=False leaves the weights random",
        ) from error


def _read_mean(model: nn.Module) -> None:
    """Put the final norm of `model`, weights and all, behind the mean of its patches, where it is not there already."""
    assert isinstance(model, VisionTransformer | Eva)
    model.reset_classifier(0, global_pool="avg")
    if isinstance(model, VisionTransformer):
        model.pool_include_prefix = False  # as an attention pooling may have had it
    if isinstance(model.fc_norm, nn.Identity):
        model.norm, model.fc_norm = nn.Identity(), model.norm


def _check_size(model: nn.Module, source: BackboneSource) -> None:
    assert source.size is not None
    height, width = family_of(model).describe(model).patch_size
    if source.size[0] < height or source.size[1] < width:
        raise ConfigError(
            f"image_size={source.image_size}", expected=f"at least one patch, {height}x{width}", where=source.name
        )


def _check_pool(model: nn.Module, source: BackboneSource) -> None:
    info = family_of(model).describe(model)
    if source.pool is None:
        return
    if info.family not in POOLED or type(model) is VisionTransformerDistilled:
        raise ConfigError(f"pool={source.pool!r}", expected=f"null for a {type(model).__name__}", where=source.name)
    assert isinstance(model, VisionTransformer | Eva)
    if source.pool == "token" and not info.cls:
        raise ConfigError("pool='token'", expected="avg or null: there is no CLS token", where=source.name)
    if source.pool == "avg-pretrained" and {type(model.norm), type(model.fc_norm)} == {nn.Identity}:
        raise ConfigError("pool='avg-pretrained'", expected="avg or null: there is no final norm", where=source.name)


def _check_whole(missing: list[str], source: BackboneSource) -> None:
    """Raise BackboneError for weights that were not in the file; a norm of pooled patches may start fresh."""
    missing = [name for name in missing if not (source.pool == "avg" and name.startswith("fc_norm."))]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise BackboneError(
            f"{source.checkpoint or source.name} has no {', '.join(missing[:3])}{more}",
            expected=f"all weights of {source.name}" + (f" with pool={source.pool!r}" if source.pool else ""),
            where="load_backbone",
            fix="pool='avg' reads files whose norm is called fc_norm"
            if missing == ["norm.weight", "norm.bias"]
            else "Another architecture's file, or another way to name its tensors, cannot be read",
        )


def _timm_name(name: str) -> str:
    """`name` as timm wants it: sources with their prefix, architectures known to be in its registry."""
    if name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        return name
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BackboneError(
                f"{name} has no config.json", expected="a folder in timm's layout", where="load_backbone"
            )
        return f"local-dir:{path}"
    if path.is_file():
        raise BackboneError(
            f"{name} is a file with weights and does not say which architecture",
            where="load_backbone",
            fix=f"load_backbone('vit_base_patch16_224', checkpoint={name!r}), with the architecture's own name",
        )
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise unknown("backbone", name, [*backbone_names(pretrained=False), *backbone_names()], LISTING)
    tags = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tags:
        raise unknown("backbone", name, tags, f"Weights of {architecture}: {', '.join(tags) or 'none'}")
    return name


def _preprocessing(model: nn.Module, source: BackboneSource) -> Preprocessing:
    values = resolve_model_data_config(model)
    size = family_of(model).image_size(model) or source.size or values["input_size"][1:]
    return Preprocessing(
        size=cast(tuple[int, int], tuple(size)),
        mean=tuple(values["mean"]),
        std=tuple(values["std"]),
        interpolation=values["interpolation"],
        crop_fraction=values["crop_pct"],
    )


def pico(name: str) -> dict[str, Any]:
    """A plain ViT for 32x32 images with 1.2 M parameters, trained on CIFAR-100 (docs/reference/backbones.md)."""
    file, half = str(files("promptvit.backbones") / "assets" / f"{name}.safetensors"), (0.5, 0.5, 0.5)
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4}
    weights = {"file": file, "mean": half, "std": half, "classifier": "head"}
    return {"model_name": "vit_tiny_patch16_224", "pretrained_cfg": weights, **sizes}


for name in ("vit_pico", "vit_pico_mae"):
    BUNDLED.register(name, pico(name))
for name in MOCO_V3:
    CONVERTED.register(name, moco_v3)
