"""What a run starts from beside its method: the head of an earlier run, and a pull of weights to where they started."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from promptvit.delta_files import check_digest, read_description, read_tensors
from promptvit.errors import ConfigError, DeltaError
from promptvit.model import TunedModel

HEAD = "head."


@torch.no_grad()
def take_head(model: TunedModel, folder: str | Path) -> None:
    """Give `model` the head of the run or delta in `folder`, as linear-then-full does (Kumar et al., ICLR 2022).

    Raises DeltaError if the delta is damaged, of other classes, or has a head of another form.
    """
    folder = Path(folder)
    folder = folder / "delta" if (folder / "delta").is_dir() else folder
    description, (tensors, found) = read_description(folder), read_tensors(folder)
    check_digest(folder, found, description.get("sha256"))
    if tuple(description.get("classes", ())) != model.classes:
        raise DeltaError(
            f"{folder} knows {len(description.get('classes', ()))} classes",
            expected=f"the {len(model.classes)} of this task, in their order",
            where="head_from",
        )
    theirs = {name.removeprefix(HEAD): tensor for name, tensor in tensors.items() if name.startswith(HEAD)}
    mine = model.head.state_dict()
    if {name: tensor.shape for name, tensor in theirs.items()} != {name: tensor.shape for name, tensor in mine.items()}:
        raise DeltaError(
            f"the head of {folder} has {_form(theirs)}", expected=f"{_form(mine)}, as this run's", where="head_from"
        )
    model.head.load_state_dict(theirs)


def _form(tensors: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())


class Anchors:
    """Where the trained weights of the backbone started; `pull` draws them back (L2-SP, Li et al., ICML 2018).

    The pull is decoupled from the gradient, as AdamW's decay to zero is: w -= rate · decay · (w - start).
    """

    def __init__(self, model: TunedModel, decay: float) -> None:
        weights = [weight for weight in model.backbone.weights().values() if weight.requires_grad]
        if not weights:
            raise ConfigError(
                f"start_decay={decay} with {model.method.kind}, which trains no weights of the backbone",
                expected="a method that does (full, partial, bias), or 0",
                where="TrainConfig",
            )
        self.decay = decay
        self.pairs: list[tuple[nn.Parameter, Tensor]] = [(weight, weight.detach().clone()) for weight in weights]

    @torch.no_grad()
    def pull(self, rate: float) -> None:
        """Before a step with the learning rate `rate` of backbone weights."""
        for weight, start in self.pairs:
            weight.lerp_(start, rate * self.decay)
