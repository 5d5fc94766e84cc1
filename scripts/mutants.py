"""Does the conformance suite see what it is there for? `make mutants` plants faults, one at a time, and runs it.

Each mutant is a copy of the package with one text replaced. A fault that no test sees is a hole in the suite, and the
script then ends with 1. Writes `docs/results/mutants.md`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results" / "mutants.md"
SUITE = [f"tests/conformance/test_{part}.py" for part in ("forward", "training", "copies")]


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A fault: in `file` (below the package), `before` becomes `after`."""

    fault: str
    file: str
    before: str
    after: str

    def plant(self, package: Path) -> None:
        """Write the fault into a copy of the package; `before` must stand there once."""
        path = package / self.file
        text = path.read_text()
        assert text.count(self.before) == 1, f"{self.fault}: {self.file} has the text {text.count(self.before)} times"
        path.write_text(text.replace(self.before, self.after))


MUTANTS = (
    Mutant(
        fault="prompt rows leak between the images of a batch",
        file="backbones/base.py",
        before="                x = self.block(index, x, given, rows, positions)\n",
        after="                x = self.block(index, x, given, rows, positions)\n"
        "                strays = x[:, image_rows:].mean(dim=0, keepdim=True).expand(len(x), -1, -1)\n"
        "                x = torch.cat([x[:, :image_rows], strays], dim=1)\n",
    ),
    Mutant(
        fault="windows of one image meet the prompts of another (Swin)",
        file="backbones/windows.py",
        before="project_windows(attention, x[:, image_rows:])",
        after="project_windows(attention, x[:, image_rows:].roll(1, dims=0))",
    ),
    Mutant(
        fault="stale keys and values: those of the first task are kept for all",
        file="backbones/base.py",
        before="dataclasses.replace(self.fold_zeros(index, given), ",
        after="dataclasses.replace(self.__dict__.setdefault('kept', {}).setdefault(\n"
        "                    index, self.fold_zeros(index, given)), ",
    ),
    Mutant(
        fault="frozen prompts: no gradient reaches them",
        file="methods/prompts.py",
        before="requires_grad=trained",
        after="requires_grad=False",
    ),
    Mutant(
        fault="wrong prefix count: the first patch is taken for a prefix row",
        file="backbones/base.py",
        before="x[:, self.info.prefix :]",
        after="x[:, self.info.prefix + 1 :]",
    ),
    Mutant(
        fault="dropped patch rows: fresh prompts overwrite the last patch",
        file="backbones/base.py",
        before="x = x[:, :image_rows]\n            x, image_rows",
        after="x = x[:, : image_rows - (index > 0)]\n            x, image_rows",
    ),
    Mutant(
        fault="double normalisation of prompts",
        file="backbones/plain.py",
        before="self.before_attention(index, given.tokens)",
        after="self.before_attention(index, self.before_attention(index, given.tokens))",
    ),
    Mutant(
        fault="the rotary embedding changes rows without a position (EVA)",
        file="backbones/eva.py",
        before="F.pad(cosine, place, value=1.0)",
        after="F.pad(cosine, place, value=0.5)",
    ),
    Mutant(
        fault="one dropout mask for the whole batch",
        file="methods/prompts.py",
        before="values = F.dropout(values, self.dropout)",
        after="values = values * F.dropout(values.new_ones(values[:, :1].shape), self.dropout)",
    ),
    Mutant(
        fault="prompts at the last block do nothing",
        file="backbones/base.py",
        before="enumerate(inputs):\n            if given.tokens is not None:\n                x",
        after="enumerate([*inputs[:-1], NOTHING]):\n            if given.tokens is not None:\n                x",
    ),
    Mutant(
        fault="a frozen backbone is in train mode",
        file="model.py",
        before="self.backbone.train(mode and self.method.backbone_trains)",
        after="self.backbone.train(mode)",
    ),
    Mutant(
        fault="the user's own model is trained instead of a copy",
        file="backbones/base.py",
        before="twin = copy.deepcopy(self, shared)",
        after="twin = self",
    ),
    Mutant(
        fault="a method that trains weights forgets to save one of them",
        file="model.py",
        before="self.trained = frozenset([*trained,",
        after="self.trained = frozenset([*trained[1:],",
    ),
)


def main() -> int:
    """Plant each fault, run the suite on it, write the page; 1 if a fault goes unseen."""
    parser = argparse.ArgumentParser(description="Plant faults and see whether the conformance suite finds them.")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the mutants to run, from 1")
    options = parser.parse_args()
    rows, unseen = [], 0
    for number, mutant in enumerate(MUTANTS, start=1):
        if options.only and number not in options.only:
            continue
        found, seconds = run(mutant)
        unseen += not found
        rows.append(
            f"| {number} | {mutant.fault} | `{mutant.file}` | {f'`{found}`' if found else '**none**'} | {seconds:.0f} |"
        )
        print(rows[-1], flush=True)
    if not options.only:
        PAGE.write_text("\n".join([*HEADING, *rows, ""]))
    return 1 if unseen else 0


HEADING = (
    "# Planted faults",
    "",
    "`make mutants` plants one fault at a time in a copy of the package and runs `tests/conformance/` on it until the",
    "first failure. Every fault must be seen. Seconds: until then, on two shared cores.",
    "",
    "| | fault | in | seen first by | seconds |",
    "|---|---|---|---|---|",
)


def run(mutant: Mutant) -> tuple[str, float]:
    """The first test that fails on the mutant (empty: none does), and the seconds until then."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "src" / "promptvit", Path(folder) / "promptvit")
        mutant.plant(Path(folder) / "promptvit")
        started = time.perf_counter()
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", *SUITE]
        environment = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
        first = failed[0].partition("::")[2].partition(" - ")[0] if failed else ""
        assert bool(first) == (done.returncode != 0), done.stdout[-2000:] + done.stderr[-2000:]
        return first, time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
