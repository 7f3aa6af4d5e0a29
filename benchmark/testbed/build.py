"""Make the embedded models: `python -P -m benchmark.testbed.build --node-modules DIR --out DIR`.

Stages run in order and resume where they were; each leaves its result in its own folder of `--work`.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmark import atomic, paths
from benchmark.testbed.artwork import build_drawings
from benchmark.testbed.captions import vocabulary
from benchmark.testbed.data import Renders, draw_records, load_renders
from benchmark.testbed.recipe import Recipe
from benchmark.testbed.render import Record


@dataclass(frozen=True)
class Build:
    """Where a build works: `work` holds checkpoints and caches, and the finished parts under `work/model`."""

    recipe: Recipe
    node_modules: Path
    work: Path

    @property
    def model(self) -> Path:
        return self.work / "model"

    @property
    def flow_weights(self) -> Path:
        """The finished flow model."""
        return self.work / "weights-flux"

    def records(self, split: str) -> tuple[Record, ...]:
        """What the recipe's renders of a split show, without rendering them."""
        return draw_records(split, self.recipe["renders"][split], self.recipe["seed"])

    def renders(self, split: str) -> Renders:
        """The recipe's renders of a split."""
        drawings = build_drawings(self.node_modules, self.work / "drawings")
        count = self.recipe["renders"][split]
        return load_renders(split, count, self.recipe["seed"], drawings, self.work / "renders")

    def stage(self, part: str, make: Callable[[Path], None]) -> None:
        """Make a part once: into a temporary folder that is then renamed."""
        final = self.model / part
        if final.exists():
            return
        with atomic.folder(final) as temporary:
            make(temporary)


def autoencoder(build: Build) -> None:
    """The `vae` part."""
    from benchmark.testbed import autoencoder as stage

    def make(folder: Path) -> None:
        data = build.renders("train")
        stage.train(build.recipe, data, build.work / "checkpoints").save_pretrained(folder)

    build.stage("vae", make)


def tokenizer(build: Build) -> None:
    """The `tokenizer` part."""
    from benchmark.testbed.tokens import build_tokenizer

    size = build.recipe["tokenizer"]

    def make(folder: Path) -> None:
        build_tokenizer(vocabulary(), size["vocabulary"], size["length"]).save_pretrained(folder)

    build.stage("tokenizer", make)


def clip(build: Build) -> None:
    """The `text_encoder` and `clip` parts."""
    from benchmark.testbed import clip as stage

    def make(folder: Path) -> None:
        stage.train(build.recipe, build.renders("train"), build.model, build.work / "checkpoints", folder)

    build.stage("clip", make)


def judge(build: Build, letter: str) -> None:
    """The `evaluator` (a) or `evaluator_b` part."""
    from benchmark.testbed import judges

    def make(folder: Path) -> None:
        judges.train(build.recipe, letter, build.renders("train"), build.work / "checkpoints", folder)

    build.stage({"a": "evaluator", "b": "evaluator_b"}[letter], make)


def denoiser(build: Build) -> None:
    """The `unet` part."""
    from benchmark.testbed import denoiser as stage

    def make(folder: Path) -> None:
        stage.train(build.recipe, build.renders("train"), build.model, build.work, folder)

    build.stage("unet", make)


def assemble(build: Build) -> None:
    """The whole model, in `work/weights`."""
    from benchmark.testbed import assemble as stage

    drawings = build_drawings(build.node_modules, build.work / "drawings")
    with atomic.folder(build.work / "weights", replace=True) as temporary:
        stage.assemble(build.model, temporary, drawings, build.recipe["seed"])


def report(build: Build) -> None:
    """Measure the whole model: `report.json` and `MODEL_CARD.md` beside its weights."""
    from benchmark.testbed import card
    from benchmark.testbed import report as stage

    stage.measure(build.work / "weights", build.renders("test"), build.recipe)
    card.write(build.work / "weights", build.recipe)


def borrow(build: Build) -> None:
    """What the flow model takes over, from the shipped model instead of one made here: autoencoder, CLIP and judges."""
    shipped = paths.testbed_weights()
    build.stage("vae", lambda folder: _copy(shipped / "vae", folder))
    build.stage("tokenizer", lambda folder: _copy(shipped / "tokenizer", folder))
    build.stage("clip", lambda folder: _copy(shipped / "text_encoder", folder / "text_encoder"))
    if not (build.work / "weights").exists():
        with atomic.folder(build.work / "weights") as temporary:
            _copy(shipped, temporary)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)


def t5(build: Build) -> None:
    """The flow model's `t5` part: tokenizer and encoder as they are before the transformer is trained."""
    from benchmark.testbed import t5 as stage

    def make(folder: Path) -> None:
        stage.train(build.recipe, build.records("train"), build.model, build.work / "checkpoints", folder)

    build.stage("t5", make)


def flow(build: Build) -> None:
    """The `flow` part: transformer and T5."""
    from benchmark.testbed import flow as stage

    def make(folder: Path) -> None:
        stage.train(build.recipe, build.renders("train"), build.model, build.work, folder)

    build.stage("flow", make)


def flow_assemble(build: Build) -> None:
    """The whole flow model, in `work/weights-flux`."""
    from benchmark.testbed import assemble as stage

    with atomic.folder(build.flow_weights, replace=True) as temporary:
        stage.assemble_flow(build.model, temporary)


def flow_report(build: Build) -> None:
    """Measure the flow model by the judges in `work/weights`: `report.json` and `MODEL_CARD.md` beside its weights."""
    from benchmark.testbed import card
    from benchmark.testbed import report as stage

    stage.measure(build.flow_weights, build.renders("test"), build.recipe, judges=build.work / "weights")
    card.write(build.flow_weights, build.recipe)


def flow_tune(build: Build) -> None:
    """Try guidances, numbers of steps and shifts on validation concepts: `work/tune.json`."""
    from benchmark.testbed import tune

    tune.measure(build.flow_weights, build.work / "weights", build.work / "tune.json")


def flow_ship(build: Build) -> None:
    """Put the flow model in the place of the shipped one; files that the shipped U-Net model has become links to it."""
    from benchmark.testbed import assemble as stage

    stage.ship(build.flow_weights, paths.testbed_weights("testbed-flux"), paths.testbed_weights())


def data(build: Build) -> None:
    """Contact sheets of the renders, in `work/sheets`."""
    from benchmark.testbed import sheets

    drawings = build_drawings(build.node_modules, build.work / "drawings")
    for path in sheets.of_renders(drawings, build.work / "sheets"):
        print(path, flush=True)


def samples(build: Build) -> None:
    """Contact sheets of what the finished model draws, in `work/sheets`."""
    _samples(build, build.work / "weights", "sheets")


def flow_samples(build: Build) -> None:
    """The same of the flow model, in `work/sheets-flux`."""
    _samples(build, build.flow_weights, "sheets-flux")


def _samples(build: Build, weights: Path, folder: str) -> None:
    from benchmark.testbed import sheets

    for path in sheets.of_samples(weights, build.work / folder, build.recipe):
        print(path, flush=True)


STAGES: dict[str, Callable[[Build], None]] = {
    "data": data,
    "tokenizer": tokenizer,
    "vae": autoencoder,
    "clip": clip,
    "evaluator": lambda build: judge(build, "a"),
    "evaluator_b": lambda build: judge(build, "b"),
    "unet": denoiser,
    "assemble": assemble,
    "report": report,
    "samples": samples,
    "t5": t5,
    "flow": flow,
    "flow_assemble": flow_assemble,
    "flow_report": flow_report,
    "flow_samples": flow_samples,
}
ASKED: dict[str, Callable[[Build], None]] = {"borrow": borrow, "flow_tune": flow_tune, "flow_ship": flow_ship}
"""Stages that run only where they are named."""


def main(arguments: list[str] | None = None) -> None:
    """Run all stages, or the named ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node-modules", type=Path, required=True, help="folder with the artwork packages")
    parser.add_argument("--work", type=Path, required=True, help="checkpoints, caches and finished parts")
    parser.add_argument("--recipe", type=Path, default=None)
    parser.add_argument("--shorten", type=float, default=1.0, help="factor on all lengths, to test the recipe")
    known = STAGES | ASKED
    parser.add_argument(
        "stages", nargs="*", default=list(STAGES), help=f"of {', '.join(known)}; by default those of a new model"
    )
    options = parser.parse_args(arguments)
    recipe = Recipe.load(options.recipe)
    torch.set_num_threads(recipe["threads"])
    build = Build(
        recipe if options.shorten == 1 else recipe.shortened(options.shorten), options.node_modules, options.work
    )
    if unknown := [name for name in options.stages if name not in known]:
        parser.error(f"unknown stage {unknown[0]!r}; expected some of {', '.join(known)}")
    for name in options.stages:
        print(f"stage {name}", flush=True)
        known[name](build)


if __name__ == "__main__":
    main()
