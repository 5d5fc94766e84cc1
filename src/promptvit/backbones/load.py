"""Loading: a name, a Hub repository, a local file or folder, or a timm model at hand, as a backbone."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from promptvit.backbones.base import Backbone
from promptvit.backbones.source import BackboneSource
from promptvit.backbones.vit import ViTBackbone
from promptvit.errors import BackboneError, ConfigError
from promptvit.preprocessing import Preprocessing
from promptvit.registry import Registry, unknown

FAMILIES: tuple[type[Backbone], ...] = (ViTBackbone,)
"""A line per family of backbones."""
LISTING = "All names: `promptvit backbones`"
BUNDLED: Registry[Callable[[BackboneSource], Backbone]] = Registry("bundled backbone", LISTING)


def load_backbone(
    name: str = "vit_pico",
    *,
    checkpoint: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    pretrained: bool = True,
) -> Backbone:
    """A pretrained backbone by name; the arguments are the fields of `BackboneSource`.

    Raises UnknownNameError with the nearest names, and BackboneError if the weights cannot be had or the
    architecture is not supported.
    """
    path = None if checkpoint is None else str(checkpoint)
    return load_source(BackboneSource(name=name, checkpoint=path, image_size=image_size, pretrained=pretrained))


def load_source(source: BackboneSource) -> Backbone:
    """The backbone that `source` describes."""
    if source.name in BUNDLED:
        return BUNDLED[source.name](source)
    return from_timm(_create(_timm_name(source.name), source), source=source)


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
    """Names that `load_backbone` takes: the bundled ones, then timm's; `pretrained` keeps those with weights."""
    names = [
        name
        for family in FAMILIES
        for driven in family.drives
        for name in timm.list_models(module=driven.__module__.rpartition(".")[2], pretrained=pretrained)
        if not any(fnmatch(name, other) for other in family.not_driven)
    ]
    return [*sorted(BUNDLED), *names]


def _create(name: str, source: BackboneSource) -> nn.Module:
    arguments: dict[str, Any] = {}
    sized = True
    if ":" not in name:  # refuse before anything is downloaded
        with torch.device("meta"):
            sized = family_of(timm.create_model(name, num_classes=0)).sized
    if source.image_size is not None and sized:
        arguments["img_size"] = _pair(source.image_size)
    if source.checkpoint is not None:
        if not Path(source.checkpoint).is_file():
            raise BackboneError(
                f"{source.checkpoint} is not a file",
                expected="a safetensors, pth or npz file",
                where="checkpoint",
            )
        npz = Path(source.checkpoint).suffix == ".npz"
        arguments["pretrained_cfg_overlay"] = {"file": source.checkpoint, "custom_load": npz}
    try:
        return timm.create_model(name, pretrained=source.pretrained, num_classes=0, **arguments)
    except Exception as error:  # timm, the Hub client and the file formats raise of all kinds here
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BackboneError(
            f"{source.name!r} could not be loaded: {reason}",
            where="load_backbone",
            fix="Check the network or the file; a local copy loads with checkpoint=FILE, "
            "and pretrained=False leaves the weights random",
        ) from error


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
    if family_of(model).sized:
        size = cast(VisionTransformer, model).patch_embed.img_size
    else:
        size = _pair(source.image_size or values["input_size"][1:])
    return Preprocessing(
        size=cast(tuple[int, int], tuple(size)),
        mean=tuple(values["mean"]),
        std=tuple(values["std"]),
        interpolation=values["interpolation"],
        crop_fraction=values["crop_pct"],
    )


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def vit_pico(source: BackboneSource) -> Backbone:
    """A plain ViT for 32x32 images, 1.2 M parameters, trained on CIFAR-100 (53.7 % top-1); ships with promptvit."""
    model = VisionTransformer(img_size=32, patch_size=4, embed_dim=128, depth=6, num_heads=4, num_classes=0)
    if source.checkpoint is not None:
        raise ConfigError(
            f"checkpoint={source.checkpoint!r}", expected="none for a bundled backbone", where=source.name
        )
    if source.pretrained:
        weights = load_file(str(files("promptvit.backbones") / "assets" / "vit_pico.safetensors"))
        model.load_state_dict(
            {name: w.float() for name, w in weights.items() if not name.startswith(ViTBackbone.heads)}
        )
    size = _pair(source.image_size or 32)
    if min(size) < 4:
        raise ConfigError(f"image_size={source.image_size}", expected="at least one patch, 4x4", where=source.name)
    if size != (32, 32):
        model.set_input_size(size)
    return from_timm(model, preprocessing=Preprocessing(size=size), source=source)


BUNDLED.register("vit_pico", vit_pico)
