"""Concepts of the testbed and the drawings that show them.

The drawings come from npm packages whose exact versions stand in `package.json`
beside this file; they are needed to retrain the embedded model, not to use it.

Licences: twemoji CC-BY-4.0 (attribution), noto Apache-2.0, the three Fluent sets
MIT, Open Peeps CC0 1.0. `artwork.csv` lists the icons, `identities.json` the people.
"""

import csv
import hashlib
import io
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmark import atomic, paths
from benchmark.errors import Missing

HERE = Path(__file__).resolve().parent
CONCEPTS = paths.datasets() / "testbed" / "concepts.csv"
DRAWINGS = HERE / "artwork.csv"
IDENTITIES = HERE / "identities.json"
PACKAGES = HERE / "package.json"

PIXELS = 128  # side of a cached drawing
PORTRAIT = "portrait"  # the style of every identity; captions do not name it
PEEPS = "@dicebear/open-peeps"


class ArtworkError(Missing):
    """Artwork that is missing, or not the version the testbed was built from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """A row of `concepts.csv`.

    `anchor` is the neutral word a concept may be replaced by; `weight` its relative
    frequency in training.
    """

    name: str
    group: str
    kind: str
    synonyms: tuple[str, ...]
    anchor: str
    split: str
    weight: float


@dataclass(frozen=True, slots=True)
class Drawing:
    """One drawing of a concept; its place in `drawings()` is its index in the cache."""

    concept: str
    style: str
    package: str
    icon: str


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _concept(row: dict[str, str]) -> Concept:
    synonyms = tuple(word for word in row["synonyms"].split("|") if word)
    return Concept(**row | {"synonyms": synonyms, "weight": float(row["weight"])})  # type: ignore[arg-type]


@lru_cache
def concepts() -> tuple[Concept, ...]:
    """All rows of `concepts.csv`, drawing styles included."""
    return tuple(_concept(row) for row in _rows(CONCEPTS))


@lru_cache
def styles() -> tuple[str, ...]:
    """Names of the five drawing styles that captions may mention."""
    return tuple(c.name for c in concepts() if c.group == "style")


def _portraits() -> Iterator[Drawing]:
    """Identity variants in the order in which `identities.mjs` prints them."""
    traits = json.loads(IDENTITIES.read_text(encoding="utf-8"))
    for name in traits["people"]:
        for face in traits["faces"]:
            for clothing in traits["clothing"]:
                yield Drawing(name, PORTRAIT, PEEPS, f"{face}-{clothing}")


@lru_cache
def drawings() -> tuple[Drawing, ...]:
    """Every drawing, in cache order: the icons of `artwork.csv`, then the portraits."""
    icons = (Drawing(**row) for row in _rows(DRAWINGS))
    return (*icons, *_portraits())


# Packages


def packages() -> dict[str, str]:
    """npm package name → exact version."""
    versions: dict[str, str] = json.loads(PACKAGES.read_text(encoding="utf-8"))["dependencies"]
    return versions


def _installed(node_modules: Path, package: str) -> str:
    try:
        text = (node_modules / package / "package.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        return "none"
    return str(json.loads(text)["version"])


def check_packages(node_modules: Path) -> None:
    """Raise `ArtworkError` unless every npm package is there in its exact version."""
    for package, version in packages().items():
        found = _installed(node_modules, package)
        if found != version:
            wanted = " ".join(f"{name}@{pin}" for name, pin in packages().items())
            raise ArtworkError(
                f"expected {package} {version} in {node_modules}, found {found}; "
                f"run: npm install --ignore-scripts {wanted}"
            )


# Icons


def icon_set(node_modules: Path, package: str) -> dict[str, Any]:
    """The parsed `icons.json` of an icon package."""
    path = node_modules / package / "icons.json"
    try:
        icons: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtworkError(
            f"expected {path}, found none; npm install {package}@{packages().get(package, '?')}"
        ) from None
    return icons


def _inherit(child: dict[str, Any], parent: dict[str, Any]) -> dict[str, Any]:
    """An alias laid over its parent: flips cancel, quarter turns add, the rest replaces."""
    return {
        **parent,
        **child,
        "hFlip": bool(child.get("hFlip")) != bool(parent.get("hFlip")),
        "vFlip": bool(child.get("vFlip")) != bool(parent.get("vFlip")),
        "rotate": (child.get("rotate", 0) + parent.get("rotate", 0)) % 4,
    }


def resolve(icons: dict[str, Any], name: str) -> dict[str, Any]:
    """Icon `name` of a set with its aliases followed and the set's size filled in."""
    if name in icons["icons"]:
        size = {key: icons[key] for key in ("left", "top", "width", "height") if key in icons}
        return {**size, **icons["icons"][name]}
    alias = icons.get("aliases", {}).get(name)
    if alias is None:
        raise ArtworkError(
            f"expected the icon {name!r} in the set {icons.get('prefix')!r}, found none; "
            f"install the version in {PACKAGES.name} or correct {DRAWINGS.name}"
        )
    return _inherit(alias, resolve(icons, alias["parent"]))


def svg_text(icons: dict[str, Any], name: str) -> str:
    """The icon as an SVG document on a square canvas around its centre."""
    icon = resolve(icons, name)
    width, height = icon.get("width", 16), icon.get("height", 16)  # 16: the format's default
    x, y = icon.get("left", 0) + width / 2, icon.get("top", 0) + height / 2
    side = max(width, height)
    flip = f"scale({-1 if icon.get('hFlip') else 1} {-1 if icon.get('vFlip') else 1})"
    turn = f"translate({x} {y}) rotate({90 * icon.get('rotate', 0)}) {flip} translate({-x} {-y})"
    # Monochrome sets draw in currentColor; black marks them for `render`, which inks them.
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{x - side / 2} {y - side / 2} {side} {side}" color="#000">'
        f'<g transform="{turn}">{icon["body"]}</g></svg>'
    )


def rasterise(svg: str) -> np.ndarray:
    """An SVG document as RGBA, `(128, 128, 4)` uint8, alpha not premultiplied."""
    import resvg_py  # only needed to rebuild the drawings

    png = resvg_py.svg_to_bytes(svg_string=svg, width=PIXELS, height=PIXELS, skip_system_fonts=True)
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGBA"))


# Cache


def _portrait_svgs(node_modules: Path) -> list[str]:
    command = ["node", str(HERE / "identities.mjs"), str(node_modules.resolve())]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise ArtworkError("expected the program node, found none; install Node.js 18+") from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ArtworkError(f"expected portraits from identities.mjs, got: {reason[0]}") from None
    return [item["svg"] for item in json.loads(done.stdout)]


def _svgs(node_modules: Path) -> Iterator[str]:
    """The SVG documents of `drawings()`, in its order."""
    names = {d.package for d in drawings() if d.package != PEEPS}
    sets = {name: icon_set(node_modules, name) for name in names}
    for drawing in drawings():
        if drawing.package in sets:
            yield svg_text(sets[drawing.package], drawing.icon)
    yield from _portrait_svgs(node_modules)


def fingerprint() -> str:
    """SHA-256 over everything in this folder that decides how the drawings look."""
    files = (DRAWINGS, IDENTITIES, PACKAGES, HERE / "identities.mjs", Path(__file__))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


def _is_current(path: Path) -> bool:
    if not path.exists():
        return False
    with np.load(path) as cache:
        return str(cache["fingerprint"]) == fingerprint()


def _save(path: Path, rgba: np.ndarray) -> None:
    index = json.dumps([[d.concept, d.style, d.package, d.icon] for d in drawings()])
    with atomic.file(path) as part, part.open("wb") as file:
        np.savez_compressed(file, rgba=rgba, index=index, fingerprint=fingerprint())


def build_drawings(node_modules: Path, out: Path) -> Path:
    """Rasterise all drawings into `out/drawings.npz`, unless an up-to-date one is there.

    Arrays: `rgba` `(n, 128, 128, 4)` uint8, `index` (JSON list of concept, style,
    package, icon) and `fingerprint`.
    """
    path = out / "drawings.npz"
    if not _is_current(path):
        check_packages(node_modules)
        _save(path, np.stack([rasterise(svg) for svg in _svgs(node_modules)]))
    return path


def load_drawings(path: Path) -> np.ndarray:
    """The cached drawings, `(n, 128, 128, 4)` uint8, in the order of `drawings()`."""
    with np.load(path) as cache:
        index = [Drawing(*row) for row in json.loads(str(cache["index"]))]
        if index != list(drawings()):
            raise ArtworkError(
                f"expected the {len(drawings())} drawings of {DRAWINGS.name} in {path}, "
                f"found {len(index)} others; delete the file and build the drawings again"
            )
        rgba: np.ndarray = cache["rgba"]
    return rgba
