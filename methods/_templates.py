"""Prompt templates that methods of one line of work share: sentences that hold a concept's name at `{}`.

`paper` has as many templates as MACE's released code uses, thirty each for things and people and for styles, of the
same kinds but in this project's own words. `short` keeps to what the embedded model was taught to read.
"""

from __future__ import annotations

from benchmark.errors import BadInput, did_you_mean
from benchmark.interface import Kind

_THINGS = (
    "a photo of {}",
    "a photo of a {}",
    "a photo of the {}",
    "a snapshot of {}",
    "a picture of {}",
    "a picture of the {}",
    "an image of {}",
    "an image with {} in it",
    "a portrait of {}",
    "a drawing of {}",
    "a pencil sketch of {}",
    "a quick sketch of the {}",
    "a painting of {}",
    "a watercolor of {}",
    "an oil painting of the {}",
    "an illustration of {}",
    "a cartoon of {}",
    "a poster that shows {}",
    "a postcard with {}",
    "a print of {}",
    "a black and white photo of {}",
    "a close view of {}",
    "a wide shot of the {}",
    "a blurry photo of {}",
    "a bright photo of the {}",
    "a photo of {} in daylight",
    "a photo of {} taken at night",
    "a film still with {}",
    "a detailed rendering of {}",
    "a studio photo of {} on a plain background",
)

_STYLES = (
    "a picture in the style of {}",
    "a painting in the style of {}",
    "a drawing in the style of {}",
    "a landscape in the style of {}",
    "a portrait in the style of {}",
    "a still life in the style of {}",
    "a photo in the style of {}",
    "an illustration in the manner of {}",
    "a sketch in the manner of {}",
    "a scene in the manner of {}",
    "art by {}",
    "artwork by {}",
    "a work of art by {}",
    "a painting by {}",
    "an oil painting by {}",
    "a drawing by {}",
    "a print by {}",
    "a picture made by {}",
    "a canvas painted by {}",
    "a well known work by {}",
    "an early work by {}",
    "a late work by {}",
    "a study by {}",
    "a mural by {}",
    "an image inspired by {}",
    "a design inspired by {}",
    "a copy of a painting by {}",
    "the art of {}",
    "the brushwork of {}",
    "a museum piece by {}",
)

_GROUNDS = ("red", "green", "blue", "brown", "white")

_SHORT_THINGS = (
    "a photo of the {}",
    "a photo of a {}",
    "a picture of the {}",
    "an image of the {}",
    "{}",
    *(f"a photo of the {{}} on a {ground} background" for ground in _GROUNDS),
)

_SHORT_PEOPLE = (
    "a portrait of {}",
    "a photo of {}",
    "a sketch of {}",
    "an oil painting of {}",
    "{} in an official photo",
    "an image capturing {} at a public event",
    *(f"a portrait of {{}} on a {ground} background" for ground in _GROUNDS),
)

_SHORT_STYLES = (
    "a picture in the {} style",
    *(f"a picture in the {{}} style on a {ground} background" for ground in _GROUNDS),
    *(f"a photo of the {noun}, in the {{}} style" for noun in ("animal", "thing", "plant", "food", "tool")),
)

_SETS: dict[str, dict[str, tuple[str, ...]]] = {
    "paper": {"style": _STYLES, "identity": _THINGS, "*": _THINGS},
    "short": {"style": _SHORT_STYLES, "identity": _SHORT_PEOPLE, "*": _SHORT_THINGS},
}


def templates(which: str | tuple[str, ...], kind: Kind) -> tuple[str, ...]:
    """The templates of a set (`paper` or `short`) for concepts of a kind; or those given, whatever the kind."""
    if isinstance(which, tuple):
        return which
    return _SETS[which].get(kind, _SETS[which]["*"])


def check(method: str, which: str | tuple[str, ...]) -> None:
    """BadInput unless `which` is a set's name, or templates that each hold one `{}`."""
    if isinstance(which, str):
        if which not in _SETS:
            raise BadInput(f"{method}: {did_you_mean(which, _SETS, what='set of templates')}; or give a list of them")
    elif not which:
        raise BadInput(f"{method}: templates must hold at least one, got none")
    else:
        for template in which:
            one_place(method, "templates", template)


def one_place(method: str, field: str, template: str) -> None:
    """BadInput unless the template holds `{}` once."""
    if template.count("{}") != 1:
        raise BadInput(f"{method}: {field} must hold {{}} once, where the name goes, got {template!r}")


def filled(template: str, name: str) -> str:
    """The template with the name in its place; other braces stay."""
    return template.replace("{}", name)
