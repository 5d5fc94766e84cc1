"""A protocol: how the numbers of a study come about, as a small object that is written whole into every result."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from promptvit.errors import ConfigError

Scalar = str | int | float | bool | None
Settings = dict[str, Scalar]
"""Fields of a run by dotted names, such as `train.learning_rate` or `method.length`."""
Grid = Mapping[str, tuple[Scalar, ...]]
"""Values to try by setting: all combinations, as in scikit-learn's ParameterGrid."""
Epoch = Literal["last", "best-val", "best-test"]
Retrain = Literal["train+val", "train"]

RATE = "train.learning_rate"
SETTING_GROUPS = ("backbone", "data", "method", "train")
DECIDED = {
    "backbone.name": "the study's backbones",
    "data.source": "the study's data",
    "data.train_on": "the protocol's `retrain`",
    "method.name": "the row",
    "train.seed": "the protocol's seeds",
    "train.test": "the protocol's `epoch`",
}
"""What settings leave alone, and who decides on it."""


def setting_problems(names: Iterable[str]) -> list[str]:
    """What is wrong with these names of settings."""
    problems = []
    for name in dict.fromkeys(names):
        group, _, rest = name.partition(".")
        if group not in SETTING_GROUPS or not rest:
            problems.append(f"setting {name!r}: expected one of {', '.join(SETTING_GROUPS)}, a dot, and a field")
        elif name in DECIDED:
            problems.append(f"setting {name!r}: it is decided by {DECIDED[name]}")
    return problems


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How methods of one kind are trained and searched.

    - `methods`: patterns of registered names, such as `vpt-*`; the first recipe of a protocol that fits is taken.
    - `backbones`: patterns of backbone names.
    - `settings`: what all runs have.
    - `grids`: the search is the union of their combinations; values that a method has no field for are left out.
    - `rate_factors`: learning rates in units of the method's own, in place of those of `grids`.
    """

    methods: tuple[str, ...] = ("*",)
    backbones: tuple[str, ...] = ("*",)
    settings: Settings = field(default_factory=dict)
    grids: tuple[Grid, ...] = ({},)
    rate_factors: tuple[float, ...] = ()

    def fits(self, method: str, backbone: str) -> bool:
        """Whether it is for this method on this backbone, by their names."""
        return _matches(method, self.methods) and _matches(backbone, self.backbones)

    def points(self, own_rate: float) -> list[Settings]:
        """Every combination once, in order; `own_rate` is the method's own learning rate."""
        return combinations(self.searched(own_rate))

    def searched(self, own_rate: float) -> list[Grid]:
        """The grids with the learning rates that follow from the method's own."""
        rates = tuple(own_rate * factor for factor in self.rate_factors)
        return [{**grid, RATE: rates} if rates else grid for grid in self.grids]

    def change(self, *, settings: Settings | None = None, grid: Grid | None = None) -> Recipe:
        """The recipe without what `settings` fix, with the values of `grid` alone.

        Grids that have none of the values of a setting are left out; values that no grid has take the place of all.
        """
        settings, grid = settings or {}, grid or {}
        grids = [_without(each, settings) for each in self.grids]
        for name, wanted in grid.items():
            known = {value for each in grids for value in each.get(name, ())}
            if known.issuperset(wanted):
                kept = [{**each, name: tuple(v for v in each.get(name, ()) if v in wanted)} for each in grids]
                grids = [each for each in kept if each[name]]
            else:
                grids = [{**each, name: tuple(wanted)} for each in grids]
        return dataclasses.replace(
            self,
            settings=_without(self.settings, settings),
            grids=tuple(grids),
            rate_factors=() if RATE in settings or RATE in grid else self.rate_factors,
        )


def combinations(grids: Iterable[Grid]) -> list[Settings]:
    """Every point of the union of `grids` once, in order."""
    points = [dict(zip(grid, each, strict=True)) for grid in grids for each in itertools.product(*grid.values())]
    return list({repr(sorted(point.items())): point for point in points}.values())


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How settings are chosen, and which runs' test figures count. Raises ConfigError with all problems at once.

    - `source`: the paper and section, or why.
    - `settings`: what every run has; `recipes` add to it, the first that fits a method and a backbone.
    - `epoch`: which epoch's accuracy counts: the `last`; `best-val`, the one with the best validation accuracy, whose
      test accuracy is then taken; or `best-test`, which picks on the test images: only to reproduce papers that did,
      and flagged as `compat_peek` in every table.
    - `retrain`: what the chosen settings are trained on for the test figures. After `train+val` the validation images
      are training images.
    - `search_seed`: of the runs of the search; `seeds`: of the final runs.
    - `fgvc`: the protocol of FGVC tasks, by name, where it is another one.
    - `changed`: what was changed from the shipped protocol of this name.
    """

    name: str
    source: str
    settings: Settings = field(default_factory=dict)
    recipes: tuple[Recipe, ...] = (Recipe(),)
    epoch: Epoch = "last"
    retrain: Retrain = "train"
    search_seed: int = 0
    seeds: tuple[int, ...] = (0, 1, 2)
    fgvc: str | None = None
    changed: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = [self.settings, *(part for recipe in self.recipes for part in (recipe.settings, *recipe.grids))]
        problems = setting_problems(name for part in named for name in part)
        if not self.recipes or not all(recipe.grids for recipe in self.recipes):
            problems.append("a recipe without a grid, or no recipe: expected at least one, `{}` to search nothing")
        empty = (
            name for recipe in self.recipes for grid in recipe.grids for name, values in grid.items() if not values
        )
        problems += [f"grid of {name}: expected at least one value" for name in dict.fromkeys(empty)]
        if self.epoch not in get_args(Epoch):
            problems.append(f"epoch={self.epoch!r}: expected one of {', '.join(get_args(Epoch))}")
        if self.retrain not in get_args(Retrain):
            problems.append(f"retrain={self.retrain!r}: expected one of {', '.join(get_args(Retrain))}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            problems.append(f"seeds={list(self.seeds)}: expected one or more, each once")
        if self.epoch == "best-val" and self.retrain == "train+val":
            problems.append("epoch=best-val with retrain=train+val: validation images are training images by then")
        ConfigError.collect(problems, f"protocol {self.name}")

    @property
    def flags(self) -> tuple[str, ...]:
        """What every table must say of figures made so."""
        return ("compat_peek",) if self.epoch == "best-test" else ()

    def recipe(self, method: str, backbone: str) -> Recipe:
        """The recipe of a method on a backbone, by their names; raises ConfigError if there is none."""
        for recipe in self.recipes:
            if recipe.fits(method, backbone):
                return recipe
        raise ConfigError(
            f"protocol {self.name} has no recipe for {method} on {backbone}",
            expected=", ".join(dict.fromkeys(each for recipe in self.recipes for each in recipe.methods)),
            fix="Choose another protocol: fair and quick are for every method",
        )

    def change(
        self,
        *,
        settings: Settings | None = None,
        grid: Grid | None = None,
        seeds: tuple[int, ...] | None = None,
        epoch: Epoch | None = None,
        retrain: Retrain | None = None,
    ) -> Protocol:
        """The same with other `settings` in every run, with these values alone for settings of the `grid`, with other
        `seeds`, another rule or other training images; what was changed is written down in `changed`.

        See `Recipe.change` for what becomes of grids. Raises ConfigError for a setting that is both fixed and searched.
        """
        settings, grid = settings or {}, grid or {}
        problems = [f"{name} is both fixed and searched" for name in settings if name in grid]
        problems += [f"grid of {name}: expected at least one value" for name, values in grid.items() if not values]
        ConfigError.collect(problems, f"change of protocol {self.name}")
        rest = {"seeds": seeds, "epoch": epoch, "retrain": retrain}
        rest = {name: value for name, value in rest.items() if value}
        # What is fixed now is no longer searched, and the other way round: the whole change can then be made again.
        fixed = {**_without(self.changed.get("settings", {}), grid), **settings}
        searched = {**_without(self.changed.get("grid", {}), settings), **grid}
        known = {name: value for name, value in self.changed.items() if name not in ("settings", "grid")}
        merged = {name: each for name, each in (("settings", fixed), ("grid", searched)) if each}
        return dataclasses.replace(
            self,
            settings={**_without(self.settings, grid), **settings},
            recipes=tuple(recipe.change(settings=settings, grid=grid) for recipe in self.recipes),
            changed={**known, **merged, **rest},
            **rest,
        )

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, complete."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Protocol:
        """The inverse of `to_dict`, from JSON or YAML; raises ConfigError for unknown or missing fields."""
        try:
            given = {"recipes": tuple(map(_recipe, values["recipes"]))} if "recipes" in values else {}
            given |= {"seeds": listed(values["seeds"])} if "seeds" in values else {}
            return cls(**{**values, **given})
        except (TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"not a protocol: {error}", where="Protocol") from None


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def listed(value: Any) -> tuple:
    """A list of JSON or YAML, or a single value in place of a list of one."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _recipe(values: dict[str, Any]) -> Recipe:
    lists = {name: listed(values[name]) for name in ("methods", "backbones", "rate_factors") if name in values}
    grids = [{name: listed(each) for name, each in grid.items()} for grid in values.get("grids", ({},))]
    return Recipe(**{**values, **lists, "grids": tuple(grids)})


def _without(values: Mapping[str, Any], names: Container[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
