"""A protocol: how the numbers of a study come about, as a small object that is written whole into every result."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
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
        found: dict[str, Settings] = {}
        for grid in self.grids:
            values = dict(grid)
            if self.rate_factors:
                values[RATE] = tuple(own_rate * factor for factor in self.rate_factors)
            for combination in itertools.product(*values.values()):
                point = dict(zip(values, combination, strict=True))
                found.setdefault(repr(sorted(point.items())), point)
        return list(found.values())


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
        problems = [
            f"setting {name!r}: expected one of {', '.join(SETTING_GROUPS)}, a dot, and a field"
            for name in dict.fromkeys(name for part in named for name in part)
            if name.partition(".")[0] not in SETTING_GROUPS or not name.partition(".")[2]
        ]
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

    def points(self, method: str, backbone: str, own_rate: float) -> list[Settings]:
        """What the search tries for a method: settings of the grid alone, each once."""
        return self.recipe(method, backbone).points(own_rate)

    def change(
        self,
        *,
        settings: Settings | None = None,
        grid: Mapping[str, tuple[Scalar, ...]] | None = None,
        seeds: tuple[int, ...] | None = None,
        epoch: Epoch | None = None,
        retrain: Retrain | None = None,
    ) -> Protocol:
        """The same with other `settings` in every run, with these values alone for settings of the `grid`, with other
        `seeds`, another rule or other training images; what was changed is written down in `changed`.

        Grids that have none of the values of a setting are left out; values that no grid has take the place of all.
        """
        given = {"settings": settings, "grid": grid, "seeds": seeds, "epoch": epoch, "retrain": retrain}
        given = {name: value for name, value in given.items() if value}
        merged = {name: {**self.changed.get(name, {}), **given[name]} for name in ("settings", "grid") if name in given}
        rest = {name: value for name, value in given.items() if name not in ("settings", "grid")}
        recipes = tuple(_changed(recipe, settings or {}, grid or {}) for recipe in self.recipes)
        return dataclasses.replace(
            self,
            settings={**self.settings, **(settings or {})},
            recipes=recipes,
            changed={**self.changed, **given, **merged},
            **rest,
        )

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, complete."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Protocol:
        """The inverse of `to_dict`, from JSON or YAML; raises ConfigError for unknown or missing fields."""
        try:
            recipes = [
                Recipe(
                    **{
                        **recipe,
                        "grids": tuple(_tuples(grid) for grid in recipe["grids"]),
                        **{key: tuple(recipe[key]) for key in ("methods", "backbones", "rate_factors")},
                    }
                )
                for recipe in values["recipes"]
            ]
            return cls(**{**values, "recipes": tuple(recipes), "seeds": tuple(values["seeds"])})
        except (TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"not a protocol: {error}", where="Protocol") from None


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _tuples(grid: dict[str, Any]) -> Grid:
    return {name: tuple(values) for name, values in grid.items()}


def _changed(recipe: Recipe, settings: Settings, grid: Grid) -> Recipe:
    """The recipe without what `settings` fix, with the values of `grid` alone."""
    grids = [{name: values for name, values in each.items() if name not in settings} for each in recipe.grids]
    for name, wanted in grid.items():
        known = {value for each in grids for value in each.get(name, ())}
        if known.issuperset(wanted):
            kept = [{**each, name: tuple(v for v in each.get(name, ()) if v in wanted)} for each in grids]
            grids = [each for each in kept if each[name]]
        else:
            grids = [{**each, name: tuple(wanted)} for each in grids]
    return dataclasses.replace(
        recipe,
        settings={name: value for name, value in recipe.settings.items() if name not in settings},
        grids=tuple(grids),
        rate_factors=() if RATE in settings or RATE in grid else recipe.rate_factors,
    )
