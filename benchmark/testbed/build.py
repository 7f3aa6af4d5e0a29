"""Make the embedded model: `python -P -m benchmark.testbed.build --node-modules DIR --out DIR`.

Stages run in order and resume where they were; each leaves its result in its own folder of `--work`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmark import atomic
from benchmark.testbed.artwork import build_drawings
from benchmark.testbed.captions import vocabulary
from benchmark.testbed.data import Renders, load_renders
from benchmark.testbed.recipe import Recipe


@dataclass(frozen=True)
class Build:
    """Where a build works: `work` holds checkpoints and caches, and the finished parts under `work/model`."""

    recipe: Recipe
    node_modules: Path
    work: Path

    @property
    def model(self) -> Path:
        return self.work / "model"

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


def data(build: Build) -> None:
    """Contact sheets of the renders, in `work/sheets`."""
    from benchmark.testbed import sheets

    drawings = build_drawings(build.node_modules, build.work / "drawings")
    for path in sheets.of_renders(drawings, build.work / "sheets"):
        print(path, flush=True)


def samples(build: Build) -> None:
    """Contact sheets of what the finished model draws, in `work/sheets`."""
    from benchmark.testbed import sheets

    for path in sheets.of_samples(build.work / "weights", build.work / "sheets"):
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
}


def main(arguments: list[str] | None = None) -> None:
    """Run all stages, or the named ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node-modules", type=Path, required=True, help="folder with the artwork packages")
    parser.add_argument("--work", type=Path, required=True, help="checkpoints, caches and finished parts")
    parser.add_argument("--recipe", type=Path, default=None)
    parser.add_argument("--shorten", type=float, default=1.0, help="factor on all lengths, to test the recipe")
    parser.add_argument("stages", nargs="*", default=list(STAGES), help=f"of {', '.join(STAGES)}")
    options = parser.parse_args(arguments)
    recipe = Recipe.load(options.recipe)
    torch.set_num_threads(recipe["threads"])
    build = Build(
        recipe if options.shorten == 1 else recipe.shortened(options.shorten), options.node_modules, options.work
    )
    for name in options.stages:
        print(f"stage {name}", flush=True)
        STAGES[name](build)


if __name__ == "__main__":
    main()
