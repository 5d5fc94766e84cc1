"""The layers of the package (docs: design, section 5): a module imports from lower layers or inside its own folder.

A name stands for a module or a whole folder right under promptvit. `model` and `checkpoint` are one unit: a tuned model
saves itself through the file format, whose code builds tuned models; the one import back is inside a function.
"""

import ast
from pathlib import Path

import pytest

import promptvit

ROOT = Path(promptvit.__file__).parent
LAYERS = [
    {"errors"},
    {"shapes", "registry", "preprocessing", "files"},
    {"delta_files"},
    {"backbones", "data"},
    {"methods"},
    {"model", "checkpoint"},
    {"ensemble", "peft_folder", "counting"},
    {"train"},
    {"pruning", "analysis", "serve"},
    {"search"},
    {"study"},
    {"report"},
    {"cli"},
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
TOGETHER = {("checkpoint", "model"), ("model", "checkpoint")}
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def imported(tree: ast.Module) -> list[str]:
    """Full names of everything that is imported, at the top or inside functions."""
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def violations(unit: str, source: str) -> list[str]:
    """What the source of a module in `unit` may not do."""
    tree = ast.parse(source)
    found = []
    for name in imported(tree):
        package, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if package == "timm" and unit != "backbones":
            found.append(f"imports {name}")
        allowed = other == unit or (unit, other) in TOGETHER or other == "__version__"
        if package == "promptvit" and not allowed and LAYER.get(other, 99) >= LAYER[unit]:
            found.append(f"imports {name}")
    for node in ast.walk(tree):
        prints = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        reads_arguments = isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.argv"
        if (prints or reads_arguments) and unit != "cli":
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_uses_lower_layers_alone(path):
    assert violations(path.relative_to(ROOT).parts[0].removesuffix(".py"), path.read_text()) == []


@pytest.mark.parametrize(
    ("unit", "source", "culprit"),
    [
        ("methods", "from promptvit.model import tune", "imports promptvit.model.tune"),
        ("backbones", "def f():\n    import promptvit.data.task", "imports promptvit.data.task"),
        ("data", "from promptvit import train", "imports promptvit.train"),
        ("train", "from promptvit import VPT", "imports promptvit.VPT"),
        ("serve", "from promptvit.analysis.nmi import score", "imports promptvit.analysis.nmi.score"),
        ("methods", "from timm.layers import Mlp", "imports timm.layers.Mlp"),
        ("train", "import timm", "imports timm"),
        ("train", "print('done')", "print('done')"),
        ("data", "import sys\nname = sys.argv[1]", "sys.argv"),
    ],
)
def test_the_check_sees_a_planted_violation(unit, source, culprit):
    assert violations(unit, source) == [culprit]


@pytest.mark.parametrize(
    ("unit", "source"),
    [
        ("methods", "from promptvit.backbones.base import Backbone"),
        ("backbones", "import timm\nfrom promptvit.backbones.vit import ViTBackbone"),
        ("checkpoint", "from promptvit.model import TunedModel"),
        ("train", "import logging\nfrom promptvit import __version__"),
        ("cli", "import sys\nprint(sys.argv)"),
    ],
)
def test_the_check_lets_the_rest_pass(unit, source):
    assert violations(unit, source) == []
