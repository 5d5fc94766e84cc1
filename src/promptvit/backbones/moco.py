"""MoCo-v3 (Chen, Xie and He, ICCV 2021): ViTs that timm does not list, converted from the authors' checkpoints."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from promptvit.backbones.base import Backbone
from promptvit.backbones.source import BackboneSource
from promptvit.backbones.vit import ViTBackbone
from promptvit.errors import BackboneError, ConfigError
from promptvit.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

PROBE = "_linear_probe"
WIDTHS = {"moco_v3_vit_small": 384, "moco_v3_vit_base": 768}
FILES = {
    "moco_v3_vit_small": "vit-s-300ep.pth.tar",
    "moco_v3_vit_base": "vit-b-300ep.pth.tar",
    f"moco_v3_vit_small{PROBE}": "linear-vit-s-300ep.pth.tar",
    f"moco_v3_vit_base{PROBE}": "linear-vit-b-300ep.pth.tar",
}
"""Names, and what the authors call their files."""
SIZE, PATCH, HEADS, DEPTH = 224, 16, 12, 12
ENCODER = "module.base_encoder."


def moco_v3(source: BackboneSource) -> Backbone:
    """The backbone that `source` names, from the file in its `checkpoint`; positions are fixed, no method trains them.

    The file of a pretraining holds the encoder, its momentum twin and two projectors; that of a linear probe the same
    frozen encoder and a classification head. Only the encoder is read. Raises ConfigError and BackboneError.
    """
    width = WIDTHS[source.name.removesuffix(PROBE)]
    if source.pool is not None:
        raise ConfigError(f"pool={source.pool!r}", expected="null: MoCo-v3 reads its CLS row", where=source.name)
    if source.pretrained and source.checkpoint is None:
        raise ConfigError(
            f"{source.name} without checkpoint",
            expected=f"checkpoint=FILE, the authors' {FILES[source.name]}",
            where="load_backbone",
            fix="github.com/facebookresearch/moco-v3 has it; timm and the Hub do not",
        )
    model = VisionTransformer(SIZE, PATCH, embed_dim=width, depth=DEPTH, num_heads=HEADS, num_classes=0)
    model.pos_embed = nn.Parameter(sine_positions(SIZE // PATCH, SIZE // PATCH, width))
    if source.checkpoint is not None:
        model.load_state_dict(read_encoder(Path(source.checkpoint), source.name, model.state_dict()))
    size = source.size or (SIZE, SIZE)
    if min(size) < PATCH:
        raise ConfigError(f"image_size={source.image_size}", expected="at least one patch, 16x16", where=source.name)
    if size != (SIZE, SIZE):
        model.set_input_size(size)
    preprocessing = Preprocessing(size=size, mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation="bilinear")
    return ViTBackbone(model, preprocessing, source, fixed=("pos_embed",))


def sine_positions(height: int, width: int, channels: int) -> Float[Tensor, "1 N D"]:
    """The fixed positions of a grid behind a zero for the CLS token.

    A quarter of the channels each: sine and cosine of the row, sine and cosine of the column, all times 10000^(-i / n)
    for the i-th of n frequencies (section 4).
    """
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    frequencies = 10000.0 ** -(torch.arange(channels // 4) / (channels // 4))
    angles = [place.flatten()[:, None] * frequencies for place in (rows, columns)]  # [N, D/4] each
    table = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    return torch.cat([torch.zeros(1, channels), table])[None]


def read_encoder(path: Path, name: str, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors in the file of `name`, under timm's names; raises BackboneError if they are not `expected`.

    Nothing but tensors and plain values is unpickled.
    """
    tensors = _read_state_dict(path)
    probe = "module.head.weight" in tensors
    if probe != name.endswith(PROBE):
        _refuse_kind(path, name, probe)
    prefix = "module." if probe else ENCODER
    encoder = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    encoder = {key: tensor for key, tensor in encoder.items() if not key.startswith("head.")}
    problems = [f"{key} is missing" for key in expected if key not in encoder]
    problems += [f"{key} is not a tensor of the encoder" for key in encoder if key not in expected]
    problems += [
        f"{key} has shape {list(encoder[key].shape)}, not {list(tensor.shape)}"
        for key, tensor in expected.items()
        if key in encoder and encoder[key].shape != tensor.shape
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise BackboneError(
            f"{path}: {'; '.join(problems[:3])}{more}", expected=f"the authors' {FILES[name]}", where=name
        )
    return encoder


def _refuse_kind(path: Path, name: str, probe: bool) -> None:
    if probe:
        given, other = "a linear probe: the frozen encoder and a head trained on ImageNet's labels", name + PROBE
    else:
        given, other = "no linear probe: it has no module.head.weight", name.removesuffix(PROBE)
    raise BackboneError(
        f"{path} is {given}",
        expected=f"the authors' {FILES[name]}",
        where=name,
        fix=f"The name {other} takes the encoder of such a file",
    )


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # command lines, as some files keep theirs
            content = torch.load(path, map_location="cpu", weights_only=True)
        tensors = dict(content["state_dict"])
    except FileNotFoundError:
        raise BackboneError(f"{path} is not a file", expected="a checkpoint of MoCo-v3", where="checkpoint") from None
    except (
        OSError,
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
        KeyError,
        TypeError,
        ValueError,
        IndexError,
    ) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BackboneError(f"{path} cannot be read: {reason}", expected="a torch file with a state_dict") from error
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
