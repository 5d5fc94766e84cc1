"""`promptvit backbones`: what can be tuned."""

from __future__ import annotations

import fnmatch
import json

from promptvit.cli.options import make_parser, parse
from promptvit.errors import UnknownNameError
from promptvit.registry import nearest


def run(arguments: list[str]) -> None:
    """Parse, list, print."""
    parser = make_parser("backbones", "List the backbones that --backbone takes.", "[PATTERN] ")
    parser.add_argument("pattern", nargs="?", default="*", help="names with wildcards, like '*small*dino*'")
    parser.add_argument("--all", action="store_true", help="architectures too that have no pretrained weights")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    values = parse(parser, arguments)

    from promptvit.backbones.load import BUNDLED, CONVERTED, backbone_names  # after parsing: help needs no torch

    names = backbone_names(pretrained=not values["all"])
    found = fnmatch.filter(names, values["pattern"])
    if not found:
        close = nearest(values["pattern"], names)
        raise UnknownNameError(
            f"no backbone matches {values['pattern']!r}", fix=f"Nearest: {', '.join(close)}" if close else ""
        )
    if values["json"]:
        kinds = {"bundled": BUNDLED, "converted": CONVERTED}
        kinds = {kind: [name for name in found if name in names_of] for kind, names_of in kinds.items()}
        print(json.dumps({"backbones": found, **kinds}))
        return
    notes = dict.fromkeys(BUNDLED, "  (bundled: needs no download)")
    notes |= dict.fromkeys(CONVERTED, "  (needs --backbone.checkpoint with the authors' file)")
    for name in found:
        print(f"{name}{notes.get(name, '')}")
