"""Pre-train the bundled backbones on CIFAR-100: `vit_pico` with labels, `vit_pico_mae` as a masked autoencoder.

`--architecture swin` trains a small Swin with labels, which is not bundled: for measurements.

    python -m scripts.pretrain_pico masked --data cifar100 --out runs/mae --epochs 100

`--data` is a folder, where torchvision downloads CIFAR-100, or an npz file with encoded images (`data`, `offsets`,
`labels`, `split`). A killed run goes on from its last epoch when it is started again with the same arguments. At the
end `weights.safetensors` (float16, timm's key names), `config.json` and `card.json` lie in the folder.

Supervised: label smoothing (Touvron et al., DeiT, 2021, for the optimiser). Masked: 75 % of the patches are hidden, a
narrow decoder predicts their normalised pixels (He et al., Masked Autoencoders, CVPR 2022). Both see random parts of
the images. `load_backbone("runs/mae")` reads what is written.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import timm
import torch
import torch.nn.functional as F
from benchmarks.machine import commit, machine
from PIL import Image
from safetensors.torch import save
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from promptvit.files import write_bytes, write_json

CLASSES, SIZE, PATCH, WIDTH = 100, 32, 4, 128
GRID = SIZE // PATCH
Encoder = VisionTransformer | SwinTransformer
Architecture = Literal["vit", "swin"]
VIT = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 6, "num_heads": 4}
SWIN = {
    "img_size": SIZE,
    "patch_size": 2,
    "window_size": 4,
    "embed_dim": 48,
    "depths": (2, 2, 2),
    "num_heads": (2, 4, 8),
}
ARCHITECTURES: dict[Architecture, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "swin": ("swin_tiny_patch4_window7_224", SWIN | {"drop_path_rate": 0.0}),
}
"""timm's name of a kin, and the sizes."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a backbone is trained; part of the state, so that a run goes on only as it began."""

    objective: Literal["supervised", "masked"]
    epochs: int
    batch_size: int
    learning_rate: float
    architecture: Architecture = "vit"
    bfloat16: bool = False
    weight_decay: float = 0.05
    warmup: float = 0.05
    seed: int = 0


# --- data ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Images:
    """`pixels` uint8 [n, 3, 32, 32] and `labels` [n] of one split."""

    pixels: Tensor
    labels: Tensor


def read(source: Path, split: Literal["train", "test"]) -> Images:
    """One split of CIFAR-100, decoded."""
    if source.suffix != ".npz":
        from torchvision.datasets import CIFAR100

        own = CIFAR100(str(source), train=split == "train", download=True)
        return Images(pixels=torch.from_numpy(own.data).permute(0, 3, 1, 2), labels=torch.tensor(own.targets))
    with np.load(source) as file:
        chosen = np.flatnonzero(file["split"] == {"train": 0, "test": 2}[split])
        data, offsets, labels = file["data"], file["offsets"], file["labels"][chosen]
    pixels = np.stack([decode(data[offsets[i] : offsets[i + 1]].tobytes()) for i in chosen])
    return Images(pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels=torch.from_numpy(labels))


def decode(content: bytes) -> np.ndarray:
    """An encoded image as uint8 [height, width, 3]."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def scaled(pixels: Tensor) -> Tensor:
    """uint8 as values in [-1, 1]: mean and standard deviation are 0.5."""
    return pixels.float() / 127.5 - 1


def augmented(images: Tensor, generator: torch.Generator, *, smallest: float) -> Tensor:
    """A square part of each image, of `smallest` to all of its area, at full size again, and mirrored half the time."""
    count = len(images)
    draw = torch.rand(4, count, generator=generator)
    side = (smallest + (1 - smallest) * draw[0]).sqrt()
    mirror = torch.where(draw[3] < 0.5, -1.0, 1.0)
    corners = (1 - side) * (2 * draw[1:3] - 1)
    zero = torch.zeros(count)
    theta = torch.stack([side * mirror, zero, corners[0], zero, side, corners[1]], dim=1).reshape(count, 2, 3)
    grid = F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


# --- objectives ----------------------------------------------------------------------------------------------------


def make(architecture: Architecture, classes: int = 0) -> Encoder:
    """A timm model with random weights."""
    name, sizes = ARCHITECTURES[architecture]
    model = timm.create_model(name, num_classes=classes, **sizes)
    assert isinstance(model, Encoder)
    return model


class Objective(nn.Module, ABC):
    """What is minimised, with the encoder that is kept."""

    smallest: float
    """The smallest part of an image that a training step sees, by area."""
    betas: tuple[float, float]

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    @abstractmethod
    def forward(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The loss of a batch."""


class Supervised(Objective):
    """Cross-entropy with smoothed labels."""

    smallest, betas = 0.5, (0.9, 0.999)

    def __init__(self, architecture: Architecture = "vit") -> None:
        super().__init__(make(architecture, CLASSES))

    def forward(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """See `Objective`."""
        return F.cross_entropy(self.encoder(images).float(), labels, label_smoothing=0.1)


class Masked(Objective):
    """A quarter of the patches goes through the encoder, a ViT; a decoder paints the others."""

    smallest, betas = 0.3, (0.9, 0.95)

    def __init__(self, width: int = 64, depth: int = 1) -> None:
        encoder = cast(VisionTransformer, make("vit"))
        super().__init__(encoder)
        patches = GRID * GRID
        positions = build_sincos2d_pos_embed([GRID, GRID], WIDTH, interleave_sin_cos=False)
        assert encoder.pos_embed is not None
        encoder.pos_embed.data = torch.cat([torch.zeros(1, WIDTH), positions])[None]
        encoder.pos_embed.requires_grad_(False)
        self.visible = patches // 4
        self.enter = nn.Linear(WIDTH, width)
        self.hidden = nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = nn.Sequential(*[Block(width, 4, qkv_bias=True) for _ in range(depth)])
        self.paint = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3 * PATCH * PATCH))
        self.register_buffer("positions", build_sincos2d_pos_embed([GRID, GRID], width))

    def forward(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """See `Objective`."""
        order = torch.rand(len(images), GRID * GRID, generator=generator).argsort(dim=1).to(images.device)
        seen, unseen = order[:, : self.visible], order[:, self.visible :]
        painted = self.decode(self.encode(images, seen), order)[:, self.visible :]
        target = F.layer_norm(taken(patches_of(images), unseen), (3 * PATCH * PATCH,))
        return F.mse_loss(painted.float(), target)

    def encode(self, images: Tensor, seen: Tensor) -> Tensor:
        """Rows [B, 1 + visible, D] of the CLS token and the `seen` patches, after the final norm."""
        model = cast(VisionTransformer, self.encoder)
        assert model.pos_embed is not None
        assert model.cls_token is not None
        x = taken(model.patch_embed(images) + model.pos_embed[:, 1:], seen)
        cls = (model.cls_token + model.pos_embed[:, :1]).expand(len(x), -1, -1)
        return model.norm(model.blocks(torch.cat([cls, x], dim=1)))

    def decode(self, x: Tensor, order: Tensor) -> Tensor:
        """Pixels [B, patches, 3·P²] of all patches, in the order of `order`."""
        x = self.enter(x)
        hidden = self.hidden.to(x.dtype).expand(len(x), order.shape[1] - self.visible, -1)
        positions = cast(Tensor, self.positions)[order].to(x.dtype)
        patches = torch.cat([x[:, 1:], hidden], dim=1) + positions
        return self.paint(self.blocks(torch.cat([x[:, :1], patches], dim=1))[:, 1:])


def patches_of(images: Tensor) -> Tensor:
    """Pixels [B, patches, 3·P²] in raster order."""
    return F.unfold(images, PATCH, stride=PATCH).transpose(1, 2)


def taken(rows: Tensor, index: Tensor) -> Tensor:
    """Rows [B, K, D] of [B, N, D] by an index [B, K] of their own for each image."""
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[-1]))


# --- training ------------------------------------------------------------------------------------------------------


class Pretraining:
    """A run: objective, optimiser and the epochs done, kept in `state.pt`."""

    def __init__(self, recipe: Recipe, images: Images, folder: Path, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.images, self.device = recipe, images, device
        self.state = folder / "state.pt"
        supervised = recipe.objective == "supervised"
        self.objective = (Supervised(recipe.architecture) if supervised else Masked()).to(device)
        decayed = [p for p in self.objective.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in self.objective.parameters() if p.requires_grad and p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
            betas=self.objective.betas,
        )
        self.rows: list[dict[str, float]] = []
        self.steps_per_epoch = len(images.labels) // recipe.batch_size
        if not self.steps_per_epoch:
            raise SystemExit(f"{len(images.labels)} images, fewer than a batch of {recipe.batch_size}")

    def take_up(self) -> None:
        """Go on where an earlier process stopped; refuses a state of another recipe."""
        if not self.state.exists():
            return
        state = torch.load(self.state, map_location=self.device, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            raise SystemExit(f"{self.state} was begun as {state['recipe']}: choose another --out")
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rows = state["rows"]

    def keep(self) -> None:
        """Write the state in one step."""
        buffer = io.BytesIO()
        state = {"recipe": asdict(self.recipe), "rows": self.rows}
        parts = {"objective": self.objective.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({**state, **parts}, buffer)
        write_bytes(self.state, buffer.getvalue())

    def epoch(self) -> dict[str, float]:
        """One pass over the images; all chance comes from the seed and the epoch's number."""
        started, epoch = time.perf_counter(), len(self.rows)
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.images.labels), generator=generator)
        total = torch.zeros((), device=self.device)
        self.objective.train()
        for step in range(self.steps_per_epoch):
            chosen = order[step * self.recipe.batch_size :][: self.recipe.batch_size]
            rate = self.rate(epoch * self.steps_per_epoch + step)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            total += self.update(chosen, generator)
        loss = (total / self.steps_per_epoch).item()
        if not math.isfinite(loss):
            raise SystemExit(f"the loss is {loss} in epoch {epoch + 1}: try a lower --learning-rate")
        self.rows.append({"epoch": epoch + 1, "loss": loss, "seconds": time.perf_counter() - started})
        self.keep()
        return self.rows[-1]

    def update(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """One step of the optimiser; returns its loss."""
        pixels = scaled(self.images.pixels[chosen].to(self.device))
        pixels = augmented(pixels, generator, smallest=self.objective.smallest)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.recipe.bfloat16):
            loss = self.objective(pixels, self.images.labels[chosen].to(self.device), generator)
        loss.backward()
        nn.utils.clip_grad_norm_(self.objective.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine to zero."""
        steps = self.recipe.epochs * self.steps_per_epoch
        warmup = max(1, round(self.recipe.warmup * steps))
        if step < warmup:
            return self.recipe.learning_rate * (step + 1) / warmup
        return self.recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


# --- results -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def features(encoder: Encoder, pixels: Tensor, device: torch.device) -> dict[str, Tensor]:
    """Mean patch rows [n, D] after the final norm and, of a ViT, CLS rows."""
    vit = isinstance(encoder, VisionTransformer)
    read = {"cls": slice(1), "mean": slice(1, None)} if vit else {"mean": slice(None)}
    found: dict[str, list[Tensor]] = {name: [] for name in read}
    for batch in pixels.split(500):
        rows = encoder.forward_features(scaled(batch.to(device))).float().cpu().flatten(1, -2)  # [n, N, D]
        for name, some in read.items():
            found[name].append(rows[:, some].mean(dim=1))
    return {name: torch.cat(parts) for name, parts in found.items()}


def linear_probe(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Test accuracy in % of a softmax on standardised features: full-batch L-BFGS, weight decay 1e-4."""
    mean, std = train.mean(dim=0), train.std(dim=0) + 1e-6
    train, test = (train - mean) / std, (test - mean) / std
    layer = nn.Linear(train.shape[1], CLASSES)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(train), train_labels) + 1e-4 * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return 100 * (layer(test).argmax(dim=1) == test_labels).float().mean().item()


def accuracies(encoder: Encoder, train: Images, test: Images, device: torch.device) -> dict[str, float]:
    """Test accuracy in % on CIFAR-100: of the trained classifier if there is one, and of linear probes."""
    encoder.eval()
    found = {}
    with torch.no_grad():
        if encoder.num_classes:
            right = [
                (encoder(scaled(pixels.to(device))).argmax(dim=1).cpu() == labels).sum().item()
                for pixels, labels in zip(test.pixels.split(500), test.labels.split(500), strict=True)
            ]
            found["top1"] = 100 * sum(right) / len(test.labels)
    ours, theirs = features(encoder, train.pixels, device), features(encoder, test.pixels, device)
    for name, own in ours.items():
        found[f"linear_probe_{name}"] = linear_probe(own, train.labels, theirs[name], test.labels)
    return found


def timm_config(encoder: Encoder, architecture: Architecture) -> dict[str, Any]:
    """What makes the folder one in timm's layout."""
    (name, sizes), half = ARCHITECTURES[architecture], (0.5, 0.5, 0.5)
    form = {"input_size": (3, SIZE, SIZE), "interpolation": "bicubic", "mean": half, "std": half}
    classifier = "head" if architecture == "vit" else "head.fc"
    return {
        "architecture": name,
        "model_args": sizes,
        "num_classes": encoder.num_classes,
        "pretrained_cfg": {**form, "classifier": classifier},
    }


def write(run: Pretraining, test: Images, folder: Path, threads: int) -> dict[str, Any]:
    """`weights.safetensors` in float16, `config.json` for timm, and `card.json` with what they are."""
    encoder = run.objective.encoder
    tensors = {name: tensor.half().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    encoder.load_state_dict(tensors)  # what is measured is what is written
    card = {
        "recipe": asdict(run.recipe),
        "loss": run.rows[-1]["loss"],
        "hours": sum(row["seconds"] for row in run.rows) / 3600,
        **accuracies(encoder, run.images, test, run.device),
        "commit": commit(),
        "machine": machine(run.device, threads),
    }
    write_bytes(folder / "weights.safetensors", save(tensors))
    write_json(folder / "config.json", timm_config(encoder, run.recipe.architecture))
    write_json(folder / "card.json", card)
    return card


def main() -> None:
    """Train, or go on, and write weights and card."""
    parser = argparse.ArgumentParser(description="Pre-train small backbones on CIFAR-100.")
    parser.add_argument("objective", choices=["supervised", "masked"])
    parser.add_argument("--architecture", choices=get_args(Architecture), default="vit", help="swin: with labels alone")
    parser.add_argument("--data", type=Path, required=True, help="an npz file, or a folder for torchvision's CIFAR-100")
    parser.add_argument("--out", type=Path, required=True, help="state, weights and card")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bfloat16", action="store_true", help="autocast; always on a GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    if given.objective == "masked" and given.architecture != "vit":
        parser.error("a masked autoencoder is a vit here")
    torch.set_num_threads(given.threads)
    recipe = Recipe(
        objective=given.objective,
        architecture=given.architecture,
        bfloat16=given.bfloat16 or given.device.startswith("cuda"),
        epochs=given.epochs,
        batch_size=given.batch_size,
        learning_rate=given.learning_rate,
        seed=given.seed,
    )
    given.out.mkdir(parents=True, exist_ok=True)
    run = Pretraining(recipe, read(given.data, "train"), given.out, torch.device(given.device))
    run.take_up()
    while len(run.rows) < recipe.epochs:
        print(json.dumps(run.epoch()), flush=True)
    print(json.dumps(write(run, read(given.data, "test"), given.out, given.threads), indent=2))


if __name__ == "__main__":
    main()
