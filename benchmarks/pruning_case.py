"""Which prompts each score removes first, where their worth is known: `python -m benchmarks.pruning_case`.

A transformer of one block, by hand. An image shows one kind of pattern, and weak evidence for its class. A prompt is
a rule: its key meets the queries of one kind of image, its value is evidence for one class. Useful prompts name the
right class of a kind, harmful ones a wrong class; the kinds of idle ones are on no image. What a prompt is worth is
measured: the rise of the mean loss when it is removed. Writes `docs/results/pruning-case.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import promptvit as pv
from benchmarks.machine import ROOT, commit, machine
from promptvit.methods.masks import Masks
from promptvit.model import TunedModel
from promptvit.pruning.config import Importance
from promptvit.pruning.scores import Scores, prune, score_prompts, visual_prompts

RESULTS = ROOT / "docs" / "results"
Role = Literal["useful", "harmful", "idle"]
CLASSES, IMAGES, PATCHES, PIXELS = 3, 300, 4, 48
WIDTH, PARTS = 24, 8
MEETS, MISSES = 1.5, -5.0
"""The logit of a prompt's key with queries of its own kind, and with others."""
SCORES: tuple[Importance, ...] = get_args(Importance)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A prompt: images of the kind that bears its number get `strength` times evidence for `says`."""

    role: Role
    of: int
    says: int
    strength: float


RULES = (
    Rule(role="harmful", of=0, says=1, strength=4.0),
    Rule(role="useful", of=0, says=0, strength=4.0),
    Rule(role="idle", of=0, says=0, strength=4.0),
    Rule(role="useful", of=1, says=1, strength=3.0),
    Rule(role="harmful", of=1, says=2, strength=4.0),
    Rule(role="idle", of=1, says=2, strength=4.0),
    Rule(role="useful", of=2, says=2, strength=2.0),
    Rule(role="harmful", of=2, says=0, strength=3.0),
)
"""Images of a class are of two kinds, one with a useful and one with a harmful prompt."""
KINDS = len(RULES)
QUERY, KEY, EVIDENCE = slice(0, KINDS), slice(KINDS, 2 * KINDS), slice(2 * KINDS, 2 * KINDS + CLASSES)


def patterns() -> Tensor:
    """How a patch looks, for each kind and then for each class: orthonormal rows [KINDS + CLASSES, PIXELS]."""
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(PIXELS, KINDS + CLASSES, dtype=torch.float64, generator=generator)).Q.T


def make_model() -> TunedModel:
    """The backbone, its prompts as `RULES` has them, and a head that reads the evidence."""
    vit = VisionTransformer(
        img_size=8,
        patch_size=4,
        embed_dim=WIDTH,
        depth=1,
        num_heads=1,
        num_classes=0,
        class_token=False,
        global_pool="avg",
        norm_layer=nn.Identity,
    ).double()
    attention = cast(Attention, cast(Block, vit.blocks[0]).attn)
    assert isinstance(attention.qkv, nn.Linear)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.zero_()
        seen = torch.zeros(WIDTH, PIXELS, dtype=torch.float64)
        seen[[*range(WIDTH)[QUERY], *range(WIDTH)[EVIDENCE]]] = patterns()
        cast(nn.Conv2d, vit.patch_embed.proj).weight.copy_(seen.reshape(WIDTH, 3, 4, 4))
        queries, keys, values = attention.qkv.weight.unflatten(0, (3, WIDTH))
        queries[QUERY, QUERY] = torch.eye(KINDS, dtype=torch.float64) * WIDTH**0.5
        keys[QUERY, KEY] = torch.eye(KINDS, dtype=torch.float64)
        values[EVIDENCE, EVIDENCE] = torch.eye(CLASSES, dtype=torch.float64)
        attention.proj.weight.copy_(torch.eye(WIDTH))
    model = pv.tune(pv.from_timm(vit), pv.VPT(length=KINDS), CLASSES).double().eval()
    with torch.no_grad():
        (prompts,) = visual_prompts(model).prompts
        prompts.zero_()
        prompts[0, :, KEY] = MISSES + (MEETS - MISSES) * torch.eye(KINDS, dtype=torch.float64)
        for number, rule in enumerate(RULES):
            prompts[0, number, EVIDENCE][rule.says] = rule.strength
        head = cast(nn.Linear, model.head)
        head.weight.zero_()
        head.weight[:, EVIDENCE] = torch.eye(CLASSES, dtype=torch.float64)
        head.bias.zero_()
    return model


def make_data(rare: float) -> TensorDataset:
    """Images of all classes alike; a share `rare` of each is of the kind that has a harmful prompt."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(IMAGES) % CLASSES
    kinds = torch.tensor([[kind_of("useful", int(c)), kind_of("harmful", int(c))] for c in range(CLASSES)])
    second = (torch.arange(IMAGES) // CLASSES) < rare * (IMAGES // CLASSES)
    look = patterns()
    evidence = F.one_hot(labels) + 0.7 * torch.randn(IMAGES, CLASSES, dtype=torch.float64, generator=generator)
    shown = look[kinds[labels, second.long()]] + evidence @ look[KINDS:]  # [n, PIXELS]
    patches = shown[:, None] + 0.1 * torch.randn(IMAGES, PATCHES, PIXELS, dtype=torch.float64, generator=generator)
    grid = patches.unflatten(2, (3, 4, 4)).unflatten(1, (2, 2))  # [n, 2, 2, 3, 4, 4]
    return TensorDataset(grid.permute(0, 3, 1, 4, 2, 5).reshape(IMAGES, 3, 8, 8), labels)


def kind_of(role: Role, label: int) -> int:
    """The number of the prompt, and so of the kind of image, with this part in a class."""
    return next(number for number, rule in enumerate(RULES) if (rule.role, rule.of) == (role, label))


@torch.no_grad()
def loss_without(model: TunedModel, data: TensorDataset, gone: list[int]) -> float:
    """The mean loss when these prompts are removed."""
    images, labels = data.tensors
    return F.cross_entropy(prune(model, Masks(length=KINDS, tokens=[gone]))(images), labels).item()


def worth(model: TunedModel, data: TensorDataset) -> np.ndarray:
    """How much the mean loss rises when each prompt is removed; below zero for one that hurts."""
    return np.array([loss_without(model, data, [number]) for number in range(KINDS)]) - loss_without(model, data, [])


def order(scores: Scores) -> list[int]:
    """Prompts as they are removed."""
    return np.argsort(scores.tokens[0], kind="stable").tolist()


def main() -> None:
    """Write the page."""
    kinds = machine(torch.device("cpu"), threads=1)
    known = ", ".join(f"{name} {value}" for name, value in kinds.items() if name != "load_average")
    text = f"{report(make_model())}Commit: {commit()[:7]}. Machine: {known}.\n"
    (RESULTS / "pruning-case.md").write_text(text)
    print(text)


def report(model: TunedModel) -> str:
    """Both cases as Markdown."""
    few, many = make_data(FEW), make_data(MANY)
    return "\n".join([*HEAD, "", *table(model, few), "", *BETWEEN, "", *removals(model, few, many), "", *TAIL, ""])


FEW, MANY = 0.04, 0.3
"""Share of the images that a harmful prompt speaks to: of 4 % the default is right, of 30 % it cannot be."""
HEAD = f"""# What pruning scores can tell, where the truth is known

A transformer of one block, made by hand ([`benchmarks/pruning_case.py`](../../benchmarks/pruning_case.py)): each prompt
is a rule that adds evidence for one class to one kind of image. Useful prompts name the right class, harmful ones a
wrong class, idle ones wait for a kind of image that does not exist. {IMAGES} images; of each class a harmful prompt
speaks to {100 * FEW:.0f} %, a useful one to the others. Losses and scores are in thousandths; in brackets the place in
the order of removal.
""".splitlines()
BETWEEN = f"""Mean loss when the first n prompts of an order are gone; "measured" is the order of the first
column above. The same for harmful prompts that speak to {100 * MANY:.0f} %.
""".splitlines()
TAIL = """- `absolute` (the default) tells how much a prompt matters, not which way. The idle ones go first. What
  hurts goes before what helps only where it matters less: on few images. Where it hurts many it is kept, and nothing in
  the score says so; only the losses that a search measures do.
- `squared` tells the same with more weight on the few images that a prompt changes most, so it errs earlier.
- `taylor` tells which way: the harmful first, then the idle, then the useful. It is a mean: a prompt that helps half of
  the images as much as it hurts the others looks idle to it.
- `compat_signed` is `taylor` upside down: it takes the most useful first, and keeps the most harmful to the end.
- All are slopes where the prompts are, and a removal is a long step: the two strongest prompts swap places, because the
  loss is flat where a strong prompt has done its work.

Command: `python -m benchmarks.pruning_case` (seconds on a CPU; seeded).""".splitlines()


def table(model: TunedModel, data: TensorDataset) -> list[str]:
    """A row per prompt: its part, what its removal does, and every score with its place in the order of removal."""
    found = {score: score_prompts(model, data, score=score, parts=PARTS) for score in SCORES}
    places = {score: np.argsort(order(scores)) + 1 for score, scores in found.items()}
    effects = worth(model, data)
    lines = [row("prompt", "loss when it is removed", *(f"`{score}`" for score in SCORES)), row(*["---"] * 6)]
    for number in np.argsort(effects):
        cells = [f"{1000 * found[score].tokens[0, number]:.2f} ({places[score][number]})" for score in SCORES]
        lines.append(row(f"{number}, {RULES[number].role}", f"{1000 * effects[number]:+.1f}", *cells))
    return lines


def removals(model: TunedModel, *cases: TensorDataset) -> list[str]:
    """A row per case and order, with the losses on the way; at last that of an order which knows the truth."""
    lines = [row("order", "who goes", *(f"n = {count}" for count in range(KINDS))), row(*["---"] * (2 + KINDS))]
    for share, data in zip((FEW, MANY), cases, strict=True):
        orders = {f"`{score}`": order(score_prompts(model, data, score=score, parts=PARTS)) for score in SCORES}
        orders["measured"] = np.argsort(worth(model, data)).tolist()
        for name, gone in orders.items():
            who = "".join(RULES[number].role[0] for number in gone)
            losses = [f"{1000 * loss_without(model, data, gone[:count]):.0f}" for count in range(KINDS)]
            lines.append(row(f"{name}, {100 * share:.0f} %", who, *losses))
    return lines


def row(*cells: str) -> str:
    """Of a Markdown table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
