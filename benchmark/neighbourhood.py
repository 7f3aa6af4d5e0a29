"""Make and freeze a dataset's neighbourhoods: images of every concept by the unedited model, encoded and compared.

All sizes here (images a concept, prompts, steps) are harness defaults: the paper (arXiv:2503.19783) gives K = 5 only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from benchmark import atomic, data, device, keys, models, neighbours, paths
from benchmark.data import Concept, Dataset, Near, Neighbourhood, Selector
from benchmark.errors import BadInput, Missing, did_you_mean
from benchmark.metrics import evaluators
from benchmark.progress import Progress
from benchmark.suite import FormName

Encoder = Literal["testbed-clip", "testbed-a", "clip-vitl14"]
"""`testbed-clip`: image tower of the embedded model's CLIP; `testbed-a`: features of its judge; `clip-vitl14`:
openai/clip-vit-large-patch14, for full-size models. The paper says "a pre-trained image encoder"."""
Encode = Callable[[NDArray[np.uint8]], NDArray[Any]]
"""Images `(n, h, w, 3)` to features `(n, dim)`."""

DTYPE = "float32"
_CLIP = "openai/clip-vit-large-patch14"
_CLIP_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
_TAG, _VERSION = "neighbours", 1  # of the seeds: raised with any change that makes other images


@dataclass(frozen=True)
class _Defaults:
    """How images are made where nothing else is said."""

    images: int
    steps: int
    guidance: float
    size: int
    batch: int
    encoder: Encoder
    templates: Mapping[str, str]
    """By kind; "*" is any other."""


_DEFAULTS: Mapping[FormName, _Defaults] = {
    "embedded": _Defaults(
        16,
        25,
        4.0,
        64,
        20,
        "testbed-clip",
        {"*": "a photo of the {}", "identity": "a portrait of {}", "style": "a picture in the {} style"},
    ),
    "paper": _Defaults(
        100,
        50,
        7.5,
        512,
        8,
        "clip-vitl14",
        {"*": "a photo of the {}", "identity": "a portrait of {}", "style": "a picture in the style of {}"},
    ),
}


@dataclass(frozen=True)
class Image:
    """One image to make."""

    concept: str
    prompt: str
    seed: int


def compute(
    dataset: str,
    *,
    model: str = "testbed",
    groups: Sequence[str] = (),
    images: int | None = None,
    top: int = 5,
    encoder: str | None = None,
    quiet: bool = False,
) -> Neighbourhood:
    """The `top` nearest concepts of the targets in `groups`, by default of all fine-grained ones (or else of all).

    All concepts of the dataset are compared, but styles with styles only. `images` are made of each. BadInput for
    unknown names and numbers out of range; Missing if weights are not here.
    """
    found, spec = data.load(dataset), models.describe(model)
    default = _DEFAULTS[spec.form]
    if spec.family == "transformer-flow":  # those in use are distilled: their guidance is an input of the model
        default = replace(default, guidance=1.0)
    chosen, many = _encoder(encoder or default.encoder), default.images if images is None else images
    targets = _targets(found, groups)
    among = _among(found, targets)
    _check(many, top, len(among))
    models.resolve(model)
    plan = [i for c in among for i in _images(c, default.templates, many)]
    with _encoding(chosen) as (encode, encoder_hash):
        features = _features(model, plan, default, encode, quiet)
    near = neighbours.nearest(features, [c.name for c in targets], top)
    return Neighbourhood(
        dataset=dataset,
        model=spec.name,
        model_hash=models.model_hash(model),
        encoder=chosen,
        encoder_hash=encoder_hash,
        top=top,
        settings=_settings(default, many),
        among=tuple(c.name for c in among),
        neighbours={
            name: tuple(Near(name=n.name, similarity=round(n.similarity, 6)) for n in ns) for name, ns in near.items()
        },
    )


def _check(images: int, top: int, among: int) -> None:
    if images < 1:
        raise BadInput(f"--images: expected at least 1 image of each concept, got {images}")
    if not 1 <= top < among:
        raise BadInput(f"--top: expected 1 to {among - 1} neighbours among {among} concepts, got {top}")


def _targets(dataset: Dataset, groups: Sequence[str]) -> tuple[Concept, ...]:
    if groups:
        chosen = {c.name for group in groups for c in dataset.select(Selector(group=group))}
        return tuple(c for c in dataset.concepts if c.name in chosen)
    fine = tuple(c for c in dataset.concepts if c.kind == "fine-grained")
    return fine or dataset.concepts


def _among(dataset: Dataset, targets: Sequence[Concept]) -> tuple[Concept, ...]:
    """A style is no thing to be seen in an image, so that styles and things are never compared."""
    styles = {c.kind == "style" for c in targets}
    if len(styles) > 1:
        raise BadInput("--group: expected styles alone or none: styles and things are not compared with each other")
    return tuple(c for c in dataset.concepts if (c.kind == "style") in styles)


def _images(concept: Concept, templates: Mapping[str, str], count: int) -> list[Image]:
    prompt = templates.get(concept.kind, templates["*"]).replace("{}", concept.name)
    return [Image(concept.name, prompt, keys.image_seed(_TAG, _VERSION, prompt, i)) for i in range(count)]


def _settings(default: _Defaults, images: int) -> dict[str, Any]:
    return {
        "images": images,
        "templates": dict(default.templates),
        "seeds": f"{_TAG} {_VERSION}",
        "scheduler": "ddim",
        "steps": default.steps,
        "guidance": default.guidance,
        "size": default.size,
        "batch": default.batch,
        "dtype": DTYPE,
        "made_on": device.setting(),
    }


# --- images to features ---------------------------------------------------------------------------------------
def _features(
    model: str, plan: Sequence[Image], default: _Defaults, encode: Encode, quiet: bool
) -> dict[str, NDArray[Any]]:
    """`(images, dim)` of each concept; images are let go once they are encoded."""
    import torch

    from benchmark.backbones.load import load
    from benchmark.sample import Sampler, sample

    torch.set_num_threads(device.threads())
    backbone = load(model, device=device.kind(), size=default.size)
    sampler = Sampler(steps=default.steps, guidance=default.guidance, size=default.size)
    rows: dict[str, list[NDArray[Any]]] = {}
    with Progress(quiet=quiet) as progress, progress.stage(f"images {model}", len(plan)) as stage:
        for part, pixels in sample(backbone, plan, sampler, default.batch):
            for image, feature in zip(part, encode(pixels), strict=True):
                rows.setdefault(image.concept, []).append(feature)
            stage.advance(len(part))
    return {concept: np.stack(features) for concept, features in rows.items()}


def _encoder(name: str) -> Encoder:
    if name not in get_args(Encoder):
        raise BadInput(did_you_mean(name, get_args(Encoder), "encoder"))
    return cast(Encoder, name)


@contextmanager
def _encoding(encoder: Encoder) -> Iterator[tuple[Encode, str]]:
    """The encoder and the hash of its weights."""
    if encoder == "clip-vitl14":
        yield _large_clip()
        return
    judge = evaluators.load("testbed-a")
    output = "clip" if encoder == "testbed-clip" else "features"
    yield lambda images: judge.raw(images)[output], evaluators.weights_hash("testbed-a")


def _large_clip() -> tuple[Encode, str]:
    """CLIP's image tower with its projection, read from a folder beside the models or from the hub's cache."""
    folder = _clip_folder()
    import torch
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    where = torch.device(device.kind())
    tower: Any = CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    tower = tower.to(where, torch.float32).eval()
    processor: Any = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)

    @torch.inference_mode()
    def encode(images: NDArray[np.uint8]) -> NDArray[Any]:
        # one by one: kernels differ with the shape of a batch, and the last batch of a run may be a smaller one
        inputs = [processor(images=[image], return_tensors="pt").pixel_values.to(where) for image in images]
        return np.concatenate([tower(pixel_values=x).image_embeds.cpu().numpy() for x in inputs])

    return encode, keys.digest({name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in _CLIP_FILES})


def _clip_folder() -> Path:
    """The first folder that has all files: `$ERASURE_BENCH_MODELS/clip-vit-large-patch14`, or the hub cache's."""
    base = os.environ.get(models.ENVIRONMENT)
    folders = [Path(base) / _CLIP.partition("/")[2]] if base else []
    for folder in (*folders, *_cached(_CLIP)):
        if all((folder / name).is_file() for name in _CLIP_FILES):
            return folder
    where = f"${models.ENVIRONMENT} ({base or 'not set'}) and the hub's cache"
    raise Missing(
        f"no weights of the encoder {_CLIP}: looked in {where} for {', '.join(_CLIP_FILES)}. 1.7 GB, licence MIT. "
        f"To get them: download {_CLIP} into the hub cache, or into ${models.ENVIRONMENT}/{_CLIP.partition('/')[2]}."
    )


def _cached(repository: str) -> list[Path]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return [Path(snapshot_download(repository, local_files_only=True))]
    except LocalEntryNotFoundError:
        return []


# --- report and file ------------------------------------------------------------------------------------------
def cohesion(found: Neighbourhood) -> neighbours.Cohesion:
    """How many of the targets' neighbours are of their own group in the dataset."""
    groups = {c.name: c.groups for c in data.load(found.dataset).concepts}
    return neighbours.cohesion(found.names(), groups)


def as_json(found: Neighbourhood) -> dict[str, Any]:
    """For programs: the file's content, and its agreement with the dataset's groups."""
    agreement = cohesion(found)
    report = {"targets": agreement.targets, "whole": agreement.whole, "inside": agreement.inside}
    return {**found.model_dump(mode="json", by_alias=True), "cohesion": report}


def lines(found: Neighbourhood) -> list[str]:
    """To be read."""
    agreement = cohesion(found)
    width = max(map(len, found.neighbours))
    return [
        *(
            f"{target:<{width}}  {', '.join(f'{n.name} {n.similarity:.3f}' for n in near)}"
            for target, near in found.neighbours.items()
        ),
        f"all {found.top} neighbours in the target's own group: {agreement.whole:.0%} of {agreement.targets} targets",
        f"neighbours in the target's own group: {agreement.inside:.0%} on average",
    ]


def default_out(dataset: str) -> Path:
    """Where a dataset's neighbourhoods are read from."""
    data.load(dataset)
    return paths.datasets() / dataset / data.FROZEN


def check_new(out: Path) -> None:
    """BadInput unless `out` can be written: results depend on it, so that it is never replaced in silence."""
    if out.exists():
        raise BadInput(f"{out} is there already; delete it if it shall be computed anew, or name another with --out")
    if not out.parent.is_dir():
        raise BadInput(f"--out: expected a file in a folder that is there, got {out}")


def write(found: Neighbourhood, out: Path) -> None:
    """Write the file, whole or not at all."""
    check_new(out)
    atomic.write(out, found.model_dump_json(by_alias=True, indent=1, ensure_ascii=False) + "\n")
