"""Training hyper-parameters as further choices of a space: every strategy searches them with the architecture, jointly.

The choices are called `train.<name>` and decide no slot, so they change nothing of the arch. Two genotypes of one network may
differ in them: what is remembered by network must be remembered by `training_key` too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hwnas.data import Augmentation
from hwnas.errors import UserError
from hwnas.space import Choice, Genotype, Space
from hwnas.supernet.train import Recipe

PREFIX = "train."
# The usual range of each: steps of about three for rates, two for sizes.
OPTIONS: dict[str, tuple[float, ...]] = {
    "learning_rate": (0.01, 0.03, 0.1, 0.3),
    "weight_decay": (1e-5, 1e-4, 1e-3),
    "batch_size": (32, 64, 128),
    "augmentation": (0.0, 0.5, 1.0),  # share of the data's own shift; no mirroring at 0
    "epochs": (0.5, 1.0),  # share of the recipe's
}


_RANGES = {
    "learning_rate": "above 0", "weight_decay": "from 0", "batch_size": "whole numbers from 2",
    "augmentation": "from 0 to 1", "epochs": "above 0 and at most 1, the share of the full number",
}  # fmt: skip


def _in_range(name: str, value: float) -> bool:
    if name == "batch_size":
        return value >= 2 and float(value).is_integer()
    above_least = value >= 0 if name in ("augmentation", "weight_decay") else value > 0
    return above_least and value < float("inf") and (value <= 1 or name in ("learning_rate", "weight_decay"))


def parse_training(texts: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """`learning_rate` with its usual options, `batch_size=32,64` with these, `all` for every one. In the order of OPTIONS."""
    found: dict[str, tuple[float, ...]] = {}
    for text in texts:
        name, given, values = (part.strip() for part in text.partition("="))
        if name == "all" and not given:
            found = {**OPTIONS, **found}
            continue
        try:
            found[name] = tuple(float(v) for v in values.split(",")) if given else OPTIONS[name]
        except (KeyError, ValueError):
            raise UserError(
                "training choices are named, with or without their values", got=text,
                remedy=f"write learning_rate or batch_size=32,64; known: {', '.join(OPTIONS)}, all",
            ) from None  # fmt: skip
    unknown = [name for name in found if name not in OPTIONS]
    return {name: found[name] for name in [*OPTIONS, *unknown] if name in found}


def with_training_choices(space: Space, options: Mapping[str, Sequence[float]] = OPTIONS) -> Space:
    """The space with a choice for each of these hyper-parameters. UserError for one that is unknown or out of range."""
    for name, values in options.items():
        if name not in OPTIONS:
            raise UserError("unknown training choice", got=name, remedy=f"known: {', '.join(OPTIONS)}")
        if not values or len(set(values)) < len(values) or not all(_in_range(name, v) for v in values):
            raise UserError(f"{name} takes different values, {_RANGES[name]}", got=", ".join(map(str, values)))
    number = {"batch_size": int}
    choices = [Choice(PREFIX + n, tuple(repr(number.get(n, float)(v)) for v in values)) for n, values in options.items()]
    return replace(space, choices=(*space.choices, *choices))


def training_of(
    space: Space, genotype: Genotype, recipe: Recipe, augmentation: Augmentation, fidelity: float = 1.0
) -> tuple[Recipe, Augmentation]:
    """The recipe and augmentation that a genotype asks for; `fidelity` is a further share of the epochs."""
    chosen = {
        c.name.removeprefix(PREFIX): float(c.options[v])
        for c, v in zip(space.choices, genotype, strict=True)
        if c.name.startswith(PREFIX)
    }
    strength = chosen.get("augmentation", 1.0)
    changed = Augmentation(augmentation.flip and strength > 0, round(augmentation.shift * strength))
    return replace(
        recipe,
        learning_rate=chosen.get("learning_rate", recipe.learning_rate),
        weight_decay=chosen.get("weight_decay", recipe.weight_decay),
        batch_size=int(chosen.get("batch_size", recipe.batch_size)),
        epochs=max(1, round(recipe.epochs * chosen.get("epochs", 1.0) * fidelity)),
    ), changed


def checked_recipe(epochs: int, batch_size: int, learning_rate: float) -> Recipe:
    """The recipe that an evaluator is asked for. UserError for values with which nothing can be trained."""
    if type(epochs) is not int or epochs < 1 or type(batch_size) is not int or batch_size < 2:
        raise UserError("training needs whole numbers epochs >= 1 and batch_size >= 2", got=(epochs, batch_size))
    if type(learning_rate) not in (int, float) or not 0 < learning_rate < float("inf"):
        raise UserError("a learning rate is above 0", got=learning_rate)
    return Recipe(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate)


def architecture(space: Space, genotype: Genotype) -> Genotype:
    """The part that decides the network: all but the training choices, which are the last."""
    return tuple(v for c, v in zip(space.choices, genotype, strict=False) if not c.name.startswith(PREFIX))


def training_key(space: Space, genotype: Genotype) -> str:
    """What a genotype says of training, as text: with the arch's key it names what is evaluated."""
    pairs = zip(space.choices, genotype, strict=True)
    return ",".join(f"{c.name.removeprefix(PREFIX)}={c.options[v]}" for c, v in pairs if c.name.startswith(PREFIX))
