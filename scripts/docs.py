"""Pages of the documentation that come from the code: `make docs`, or `python -m scripts.docs --check`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from promptvit.backbones.source import BackboneSource
from promptvit.counting import count, outline
from promptvit.errors import ConfigError
from promptvit.methods import METHODS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "methods.md"
BACKBONES = {
    "ViT": "vit_base_patch16_224",
    "EVA, DINOv3": "vit_base_patch16_dinov3",
    "Swin": "swin_base_patch4_window7_224",
    "ConvNeXt": "convnext_base",
    "ResNet": "resnet50",
}
"""A name of each family."""
CLASSES = 100


def main() -> int:
    """Write the pages; with `--check`, 1 if one is not up to date."""
    parser = argparse.ArgumentParser(description="Pages of the documentation that come from the code.")
    parser.add_argument("--check", action="store_true", help="only compare")
    text = methods_page()
    if parser.parse_args().check:
        return int(not PAGE.exists() or PAGE.read_text() != text)
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(text)
    return 0


def methods_page() -> str:
    """Methods by families: trained parameters, or why not."""
    outlines = {family: outline(BackboneSource(name=name)) for family, name in BACKBONES.items()}
    reasons: list[str] = []
    rows = []
    for name, preset in METHODS.items():
        cells = []
        for backbone in outlines.values():
            try:
                cells.append(f"{count(backbone, preset.build(), CLASSES).trained:,}")
            except ConfigError as error:
                reason = str(error).partition(" backbone: ")[2].partition(" (in tune)")[0] or str(error)
                reasons += [reason] * (reason not in reasons)
                cells.append(f"no [{reasons.index(reason) + 1}]")
        rows.append(f"| `{name}` | {preset.summary} | {' | '.join(cells)} |")
    return "\n".join(
        [
            "# Methods and families of backbones",
            "",
            "<!-- Made from the registry by `make docs`; a test holds it to the code. -->",
            "",
            f"Trained parameters of a task with {CLASSES} classes, head included, with each method's defaults; or",
            "why not. For others: `promptvit methods --backbone NAME --classes C --tasks T`.",
            "",
            f"| method | what is trained | {' | '.join(BACKBONES)} |",
            f"|---|---|{'---|' * len(BACKBONES)}",
            *rows,
            "",
            f"Counted on {', '.join(f'`{name}`' for name in BACKBONES.values())}.",
            "",
            *(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)),
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
