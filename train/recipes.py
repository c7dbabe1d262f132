"""Compares recipes of distillation: ``python -m train.recipes CONFIG.yaml [key=value ...]``.

Every recipe (a config of ``train.distill``) with every student and seed, one run after the other, all with the same
teacher, which is measured once, text and number of tokens; then one table and ``report.html``. Repeating the command
goes on where it was stopped; recipes, students and seeds may be added in between. Exit codes: 0 done, 1 a run failed
(the table says why), 2 a mistake in the config, 143 (130) after SIGTERM (SIGINT) with everything saved.
"""

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import jax
import pydantic

from effarch.config import Config, UserError, load, main, to_yaml
from effarch.eval.recipes import TEACHER, write_recipes
from effarch.experiment.distill import DistillConfig
from effarch.training.run import open_run
from train import distill
from train.results import what_was_run

FREE = ("recipes", "students", "seeds")
Name = Annotated[str, pydantic.Field(pattern=r"^[\w.+-]+$")]


class Variant(Config):
    """Something to compare, by name."""

    name: Name = pydantic.Field(description="in the table, and in the names of folders")
    overrides: tuple[str, ...] = pydantic.Field((), description="keys of train.distill, key=value")


class Recipe(Variant):
    """A way to distill."""

    config: str = pydantic.Field(description="YAML file of train.distill")


class RecipesConfig(Config):
    """A comparison."""

    run_name: str = pydantic.Field("recipes", description="folder of the comparison below output_dir")
    output_dir: str = pydantic.Field("runs", description="folder of all runs")
    recipes: Annotated[tuple[Recipe, ...], pydantic.Field(min_length=1)]
    students: Annotated[tuple[Variant, ...], pydantic.Field(min_length=1)]
    seeds: Annotated[tuple[pydantic.NonNegativeInt, ...], pydantic.Field(min_length=1)] = (0,)
    overrides: tuple[str, ...] = pydantic.Field((), description="keys of every run: teacher.path, tokens, data ...")

    @pydantic.model_validator(mode="after")
    def _distinct(self) -> "RecipesConfig":
        for field in ("recipes", "students"):
            names = [variant.name for variant in getattr(self, field)]
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"{field}: expected different names, got {twice[0]!r} twice")
        return self

    def runs(self, folder: Path) -> dict[str, tuple[Recipe, Variant, int, DistillConfig]]:
        """Every run by its folder's name; those of a student and seed share its training from scratch, the first's.

        Raises:
          UserError: a file that cannot be read, or a key in it or in the overrides.
        """
        found, problems = {}, []
        for seed in self.seeds:
            for student in self.students:
                for recipe in self.recipes:
                    name = f"{recipe.name}-{student.name}-{seed}"
                    own = [f"output_dir={folder}", f"run_name={name}", f"seed={seed}"]
                    own += [f"scratch.train={str(recipe is self.recipes[0]).lower()}"]
                    try:
                        config = load(
                            DistillConfig,
                            recipe.config,
                            [*self.overrides, *student.overrides, *recipe.overrides, *own],
                        )
                    except UserError as error:
                        problems += [f"{name}: {line}" for line in error.lines]
                        continue
                    found[name] = (recipe, student, seed, config)
        if problems:
            raise UserError(*dict.fromkeys(problems))
        return found


def finished(config: DistillConfig) -> dict[str, Any] | None:
    """The report of a run that is done with this config; None if it is not."""
    folder = Path(config.output_dir) / config.run_name
    report, written = folder / "report.json", folder / "config.yaml"
    if not report.exists() or written.read_text(encoding="utf-8") != to_yaml(config):
        return None
    return json.loads(report.read_text(encoding="utf-8"))


def _scores(model: dict[str, Any]) -> dict[str, Any]:
    """What was measured of a model of a report."""
    return {key: value for key, value in model.items() if key not in ("name", "reference")}


def run(config: RecipesConfig, dry_run: bool = False) -> int:
    """The command."""
    folder = Path(config.output_dir) / config.run_name
    runs = config.runs(folder)
    if dry_run:
        for name, (*_, each) in runs.items():
            print(name)
            distill.run(each, dry_run=True)
        return 0
    with open_run(config.output_dir, config.run_name, config, free=FREE):
        results, failed = [], 0
        teachers: dict[str, dict[str, dict[str, Any]]] = {}  # their scores, by what those depend on
        for number, (name, (recipe, student, seed, each)) in enumerate(runs.items(), 1):
            about = {"recipe": recipe.name, "student": student.name, "seed": seed}
            rows = str([getattr(each, key) for key in ("teacher", "data", "seq_len", "batch_size", "eval", "seed")])
            if (report := finished(each)) is None:
                print(f"{number} of {len(runs)}: {name}", file=sys.stderr, flush=True)
                try:
                    code = distill.run(each, known=teachers.get(rows))
                except UserError as error:
                    results.append(about | {"failed": re.sub(r"\s+", " ", str(error))})
                    failed += 1
                    continue
                if code:
                    return code
                jax.clear_caches()  # every run compiles its own programs
                report = cast(dict[str, Any], finished(each))
            results.append(about | {"report": report})
            teachers[rows] = {m["name"]: _scores(m) for m in report["models"] if m["name"].startswith(TEACHER)}
        found = {"title": f"{config.run_name}: recipes compared", "run": what_was_run("train.recipes")}
        page, table = write_recipes(folder, found | {"results": results})
        print(table.plain())
        print(f"\nreport: {page}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(RecipesConfig, run, prog="python -m train.recipes", description="Compares recipes of distillation."))
