"""A suite: which concepts are erased and kept, with which prompts, sampler and scores; read from `suites/*.yaml`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from benchmark import data, paths
from benchmark.data import Concept, Dataset, Selector, draw
from benchmark.declared import Some, Strict, Tuple, read
from benchmark.errors import BadInput, did_you_mean
from benchmark.interface import Kind

Role = Literal["erased", "synonym", "kept", "adjacent", "general"]
ROLES: tuple[Role, ...] = ("erased", "synonym", "kept", "adjacent", "general")
Strategy = Literal["joint", "sequential"]
FormName = Literal["paper", "embedded"]
HeadlineId = Literal["H_o", "H_c", "H_a", "ERB", "H_fade_adv/clipped", "H_fade_adv/as-printed", "detections"]
_NEEDS: Mapping[str, tuple[Role, ...]] = {
    "H_o": ("synonym", "kept"),
    "H_c": ("kept",),
    "H_a": ("kept",),
    "ERB": ("adjacent",),
}
"""Roles that a headline is made of, besides `erased`."""

Count = Annotated[int, Field(ge=1)]
Few = Annotated[int, Field(ge=1, le=100_000)]
"""More than this many images of one prompt, steps of a sampler or images at once is a slip, or meant to fill memory."""
Text = Annotated[str, Field(min_length=1)]
_LONGEST = 120  # bytes of a request's name: files are named by it


# --- prompts --------------------------------------------------------------------------------------------------------
def _one_concept(templates: Sequence[str]) -> None:
    for template in templates:
        if template.count("{concept}") != 1 or template.replace("{concept}", "").strip("{}") == "":
            raise ValueError(f"expected a text with {{concept}} in it once, got {template!r}")
    if len(set(templates)) < len(templates):
        raise ValueError("a template is given twice: its images would count twice")


def _by_kind(value: Any) -> Any:
    return {"*": value} if isinstance(value, list | tuple) else value


Templates = Annotated[dict[Kind | Literal["*"], Some[str]], BeforeValidator(_by_kind)]
"""Texts with `{concept}` in them: one list, or lists by kind of concept, with `*` for any other."""


def _listed(value: Any) -> Any:
    """The texts of a shipped list, one a line, by its name."""
    if not isinstance(value, str):
        return value
    known = {path.stem: path for path in (paths.suites() / "general").glob("*.txt")}
    if value not in known:
        raise ValueError(did_you_mean(value, known, "list of prompts"))
    return [line for line in known[value].read_text(encoding="utf-8").splitlines() if line]


class Prompts(Strict):
    """Prompts of one role, in one of three ways.

    `templates`: every template with every concept, `images` seeds each. `prompts`: fixed texts, `images` seeds each.
    `dataset` and `file`: the prompts of a file (`i2p`, `prompts`), one image each, with the seeds that it gives them.
    """

    templates: Templates | None = None
    prompts: Annotated[Some[str] | None, BeforeValidator(_listed)] = None
    """A list, or one of `suites/general/` by name."""
    images: Few | None = None
    seeds: Literal["derived", "counted"] = "derived"
    """`derived` from suite, version, prompt and replicate; `counted`: 1, 2, …, as MACE's files have them."""
    dataset: str | None = None
    file: str | None = None
    honour_row_settings: bool = False
    """Whether guidance and size that a file gives a prompt count more than the sampler's; papers differ."""

    @field_validator("templates")
    @classmethod
    def _with_concept(cls, templates: dict[str, tuple[str, ...]] | None) -> dict[str, tuple[str, ...]] | None:
        for texts in (templates or {}).values():
            _one_concept(texts)
        return templates

    @field_validator("prompts")
    @classmethod
    def _fixed(cls, prompts: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if prompts is not None and len(set(prompts)) < len(prompts):
            raise ValueError("a prompt is given twice: its images would count twice")
        return prompts

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = [name for name in ("templates", "prompts", "file") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected one of templates, prompts, file; found {' and '.join(given) or 'none'}")
        if (self.file is None) != (self.dataset is None):
            raise ValueError("dataset and file go together: the file is one of the dataset's card")
        if (self.file is None) == (self.images is None):
            raise ValueError(
                "images goes with templates and prompts, and with them only: a file has one image a prompt"
            )
        if self.file is None and self.honour_row_settings:
            raise ValueError("honour_row_settings goes with a file")
        if self.file is not None and self.seeds != "derived":
            raise ValueError("seeds: a file has its own")
        return self

    def of_kind(self, kind: Kind) -> tuple[str, ...]:
        """The templates for concepts of this kind; BadInput if there are none."""
        known = self.templates or {}
        found = known.get(kind, known.get("*"))
        if found is None:
            raise BadInput(f"no templates for concepts of kind {kind}; add them, or '*' for any kind")
        return found


class PromptsByRole(Strict):
    """Which roles a form has."""

    erased: Prompts
    synonym: Prompts | None = None
    """Every synonym of every erased concept, or fixed prompts that imply one; scored against the concept itself."""
    kept: Prompts | None = None
    adjacent: Prompts | None = None
    """The nearest concepts of the erased ones."""
    general: Prompts | None = None
    """Prompts of no concept, such as COCO's captions."""

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        for role in ("kept", "adjacent"):
            prompts: Prompts | None = getattr(self, role)
            if prompts is not None and prompts.prompts is not None:
                raise ValueError(f"{role}: expected templates or a file: these prompts are of concepts")
        if self.general is not None and self.general.templates is not None:
            raise ValueError("general: expected prompts or a file: these prompts are of no concept")
        return self


class Images(Strict):
    """Images per template and concept of one request, where they differ from the form's."""

    erased: Few | None = None
    synonym: Few | None = None
    kept: Few | None = None
    adjacent: Few | None = None
    general: Few | None = None


# --- concepts -------------------------------------------------------------------------------------------------------
# A bare list of names is the short form of a selector.
Chosen = Annotated[Selector, BeforeValidator(lambda v: {"names": v} if isinstance(v, list) else v)]


class Draw(Strict):
    """Concepts by a published seed, see `data.draw`; without `count` all of them, as they stand."""

    source: Chosen = Field(alias="from")
    count: Count | None = None
    seed: int | None = None

    @model_validator(mode="after")
    def _seeded(self) -> Self:
        if (self.count is None) != (self.seed is None):
            raise ValueError("count and seed go together")
        return self

    def concepts(self, dataset: Dataset) -> tuple[Concept, ...]:
        """The concepts drawn."""
        pool = dataset.select(self.source)
        return pool if self.count is None or self.seed is None else draw(pool, self.count, self.seed)


def _draws(value: Any) -> Any:
    """A list of names, a selector or a draw, or a list of the latter two, as draws."""
    if isinstance(value, list) and not any(isinstance(part, dict) for part in value):
        return ({"from": {"names": value}},)
    parts = value if isinstance(value, list) else [value]
    return tuple({"from": p} if isinstance(p, dict) and "from" not in p else p for p in parts)


Concepts = Annotated[Some[Draw], BeforeValidator(_draws)]


def _concepts(draws: Iterable[Draw], dataset: Dataset) -> tuple[Concept, ...]:
    """All that are drawn, each once."""
    return tuple({c.name: c for part in draws for c in part.concepts(dataset)}.values())


class Neighbours(Strict):
    """The concepts nearest to erased ones: frozen with the dataset (`erasure-bench neighbours`), or listed here."""

    top: Count = 5
    """How many; FADE-fg, arXiv:2503.19783, has 5."""
    listed: dict[str, Some[str]] = {}
    """By target, nearest first: what holds until the dataset has a frozen neighbourhood of it, and not longer."""

    def of(self, target: Concept) -> tuple[str, ...]:
        """The names of the nearest; BadInput if too few are known."""
        known = target.adjacent or self.listed.get(target.name, ())
        if len(known) < self.top:
            raise BadInput(
                f"expected {self.top} neighbours of {target.name!r}, found {len(known)}; freeze them with "
                "`erasure-bench neighbours`, or list them under neighbours.listed"
            )
        return known[: self.top]


# --- requests -------------------------------------------------------------------------------------------------------
class Rule(Strict):
    """One request (`name`, `erase`), or one for each concept (`each`, `draw`), named `erase:<concept>`."""

    name: Text | None = None
    erase: Concepts | None = None
    each: Chosen | None = None
    draw: Draw | None = None
    keep: Concepts | None = None
    """What stays; erased concepts are taken out of it."""
    strategy: Strategy = "joint"
    templates: Templates | None = None
    """For every role of this request that has templates, where they differ from the form's."""
    images: Images = Images()

    @field_validator("templates")
    @classmethod
    def _with_concept(cls, templates: dict[str, tuple[str, ...]] | None) -> dict[str, tuple[str, ...]] | None:
        for texts in (templates or {}).values():
            _one_concept(texts)
        return templates

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        given = [n for n in ("erase", "each", "draw") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(f"expected one of erase, each, draw; found {' and '.join(given) or 'none'}")
        if (self.name is None) == (self.erase is not None):
            raise ValueError("name goes with erase, and with it only: each and draw name their requests themselves")
        return self


class Sampler(Strict):
    """How images are made: DDIM with eta 0, so that noise and prompt fix the image."""

    scheduler: Literal["ddim"] = "ddim"
    """For flow models this is the same first-order deterministic step, which is Euler's."""
    steps: Few
    guidance: float = Field(ge=0, allow_inf_nan=False)
    """Scale g in u + g(c − u); at 1 there is no unconditional pass."""
    size: Count = Field(multiple_of=8, le=8192)
    """Height and width in pixels."""
    negative_prompt: str = ""
    """What u is conditioned on: one text for all methods, or none."""

    @model_validator(mode="after")
    def _negative_counts(self) -> Self:
        if self.negative_prompt and self.guidance == 1:
            raise ValueError("negative_prompt has no effect at guidance 1: there is no unconditional pass")
        return self

    @property
    def forwards(self) -> int:
        """Denoiser samples that one image takes."""
        return self.steps * (1 if self.guidance == 1 else 2)


class ReferenceFolder(Strict):
    """Real images that FID and KID compare with: those of a dataset's folder that its prompts name."""

    dataset: str
    file: str


def _window(window: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= window[0] <= window[1] <= 1:
        raise ValueError(f"expected low and high as fractions, 0 ≤ low ≤ high ≤ 1, got {list(window)}")
    return window


Window = Annotated[tuple[float, float], Field(strict=False), BeforeValidator(tuple)]


class Form(Strict):
    """A suite in one of its sizes."""

    dataset: str | Some[str]
    """Where its concepts are from; several are put together."""
    requests: Some[Rule]
    prompts: PromptsByRole
    neighbours: Neighbours | None = None
    general_prompts: Annotated[Tuple[str], BeforeValidator(_listed)] = ()
    """What methods are told as general ability to keep; never scored. A list, or one of `suites/general/` by name."""
    sampler: Sampler
    batch: Few
    """The fixed batch shape: it is part of an image's key, and the last batch is padded to it."""
    primary: str
    """The protocol that fills `acc_*` and the headline."""
    protocols: Some[str]
    reference: ReferenceFolder | None = None
    """For general prompts from a file that names images; else each evaluator has its own."""
    gate: dict[Literal["erased", "synonym", "kept", "adjacent"], Window] = {}
    """Where the unedited model's accuracies must lie, low and high, for any number of the request to mean something."""
    sequential_ok: bool = True
    """Whether a method for one concept may erase several one after another."""

    @field_validator("gate")
    @classmethod
    def _windows(cls, gate: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        return {role: _window(window) for role, window in gate.items()}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.primary not in self.protocols:
            raise ValueError(f"primary {self.primary!r} is not among protocols ({', '.join(self.protocols)})")
        if self.prompts.adjacent is not None and self.neighbours is None:
            raise ValueError("prompts.adjacent needs neighbours: how many, and which")
        absent = [role for role in self.gate if getattr(self.prompts, role) is None]
        if absent:
            raise ValueError(f"gate.{absent[0]}: the form has no {absent[0]} prompts")
        general = self.prompts.general
        if self.reference is not None and (general is None or general.file is None):
            raise ValueError("reference goes with prompts.general from a file that names images")
        return self

    def concepts(self) -> Dataset:
        """The dataset, or the datasets as one."""
        found = [data.load(name) for name in ([self.dataset] if isinstance(self.dataset, str) else self.dataset)]
        return found[0] if len(found) == 1 else _joined(found)


def _joined(datasets: Sequence[Dataset]) -> Dataset:
    concepts = tuple(c for dataset in datasets for c in dataset.concepts)
    twice = [c.name for i, c in enumerate(concepts) if any(c.name == other.name for other in concepts[:i])]
    if twice:
        raise BadInput(f"dataset: {twice[0]!r} is a concept of several of {', '.join(d.name for d in datasets)}")
    return Dataset(" + ".join(d.name for d in datasets), datasets[0].card, concepts)


class Forms(Strict):
    """The sizes of a suite; a model has one of them."""

    paper: Form | None = None
    embedded: Form | None = None

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.paper is None and self.embedded is None:
            raise ValueError("expected paper, embedded or both")
        return self


class Suite(Strict):
    """A suite as declared; `name` is the file's name."""

    name: str
    title: Text
    version: Count
    """Raised with any change that moves numbers: seeds depend on it, so old images are never mixed with new ones."""
    source: str
    notes: Tuple[str] = ()
    """What of it is ours, and how it differs from what was published."""
    methods: Some[str]
    """Run when none are named."""
    headline: HeadlineId | None = None
    forms: Forms

    @model_validator(mode="after")
    def _headline_has_parts(self) -> Self:
        for name in ("paper", "embedded"):
            form: Form | None = getattr(self.forms, name)
            for role in _NEEDS.get(self.headline or "", ()) if form else ():
                if getattr(form.prompts, role) is None:  # type: ignore[union-attr]
                    raise ValueError(f"headline {self.headline} needs forms.{name}.prompts.{role}")
        return self

    def form(self, name: FormName) -> Form:
        """The suite in that size; `BadInput` if it has none."""
        form: Form | None = getattr(self.forms, name)
        if form is None:
            hint = "use --model testbed" if name == "paper" else "use --model with a full-size model"
            raise BadInput(f"suite {self.name} has no {name} form; {hint}")
        return form


# --- resolved -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class RequestSpec:
    """One request of a suite, resolved to concepts and prompts."""

    name: str
    erase: tuple[Concept, ...]
    keep: tuple[Concept, ...]
    strategy: Strategy
    prompts: Mapping[Role, Prompts]
    adjacent: tuple[Concept, ...] = ()
    """The nearest concepts of all erased ones, without these."""
    general: tuple[str, ...] = ()
    """General prompts that methods are told."""

    @property
    def kind(self) -> Kind | Literal["*"]:
        """The kind of all erased concepts, or `*` if they differ."""
        kinds = {c.kind for c in self.erase}
        return kinds.pop() if len(kinds) == 1 else "*"

    @property
    def preset_kind(self) -> str:
        """What presets are chosen by: the kind, with `+` for several concepts at once."""
        return f"{self.kind}+" if len(self.erase) > 1 and self.strategy == "joint" else self.kind

    @property
    def classes(self) -> tuple[str, ...]:
        """All concepts that it asks for, each once: those among which a zero-shot judge chooses."""
        return tuple(dict.fromkeys(c.name for c in (*self.erase, *self.keep, *self.adjacent)))


def requests(form: Form, dataset: Dataset | None = None) -> tuple[RequestSpec, ...]:
    """The requests of a form, in order; `BadInput` names the rule that cannot be resolved."""
    dataset = dataset or form.concepts()
    found: list[RequestSpec] = []
    for i, rule in enumerate(form.requests):
        try:
            found += _expand(rule, form, dataset)
        except BadInput as error:
            raise BadInput(f"requests[{i}]: {error}") from None
    _distinct([r.name for r in found])
    return tuple(found)


def _distinct(names: Sequence[str]) -> None:
    """BadInput unless every request has a name, and a name of files, of its own; `mean` is the board's."""
    files = [re.sub(r"[^\w.-]", "_", name).casefold() for name in names]
    for name, file in zip(names, files, strict=True):
        alike = [n for n, f in zip(names, files, strict=True) if f == file]
        if len(alike) > 1:
            also = "" if len(set(alike)) == 1 else f", as files are named ({', '.join(alike)})"
            raise BadInput(f"requests: {name!r} comes {len(alike)} times{also}; give each a name of its own")
        if name == "mean" or not name.isprintable() or len(name.encode()) > _LONGEST:
            raise BadInput(f"requests: {name!r} cannot be a request's name; take another, such as 'erase:cat'")


def _expand(rule: Rule, form: Form, dataset: Dataset) -> list[RequestSpec]:
    if rule.name is not None and rule.erase is not None:
        sets = {rule.name: _concepts(rule.erase, dataset)}
    else:
        one_each = rule.draw.concepts(dataset) if rule.draw else dataset.select(rule.each or Selector())
        sets = {f"erase:{c.name.replace(' ', '_')}": (c,) for c in one_each}
    return [_request(name, erase, rule, form, dataset) for name, erase in sets.items()]


def _request(name: str, erase: tuple[Concept, ...], rule: Rule, form: Form, dataset: Dataset) -> RequestSpec:
    gone = {c.name for c in erase}
    keep = tuple(c for c in (_concepts(rule.keep, dataset) if rule.keep else ()) if c.name not in gone)
    prompts = _prompts(rule, form)
    if not keep and (kept := prompts.get("kept")) is not None and kept.templates is not None:
        raise BadInput(f"{name}: there are kept prompts, but no concept to keep; name them under keep")
    near: list[str] = []
    if form.neighbours is not None:
        erase = tuple(replace(c, adjacent=form.neighbours.of(c)) for c in erase)
        near = [n for n in dict.fromkeys(n for c in erase for n in c.adjacent) if n not in gone]
    return RequestSpec(
        name,
        erase,
        keep,
        _strategy(rule, erase),
        prompts,
        tuple(dataset.concept(n) for n in near),
        form.general_prompts,
    )


def _strategy(rule: Rule, erase: tuple[Concept, ...]) -> Strategy:
    # One concept after another is the same edit as all at once when there is one: it must have one key.
    return "joint" if len(erase) == 1 else rule.strategy


def _prompts(rule: Rule, form: Form) -> dict[Role, Prompts]:
    found: dict[Role, Prompts] = {}
    for role in ROLES:
        prompts: Prompts | None = getattr(form.prompts, role)
        if prompts is not None:
            found[role] = prompts.model_copy(update=_changes(role, prompts, rule))
    return found


def _changes(role: Role, prompts: Prompts, rule: Rule) -> dict[str, Any]:
    """What this rule says otherwise of a role."""
    images: int | None = getattr(rule.images, role)
    if images is not None and prompts.file is not None:
        raise BadInput(f"images.{role}: the prompts are from a file, one image each")
    changes: dict[str, Any] = {"images": images, "templates": rule.templates if prompts.templates else None}
    return {name: value for name, value in changes.items() if value is not None}


def names() -> list[str]:
    """The shipped suites."""
    return sorted(p.stem for p in paths.suites().glob("*.yaml"))


def load(name: str) -> Suite:
    """A shipped suite by name, or any by the path of its YAML file."""
    if not name.isprintable():
        raise BadInput(f"expected the name or the file of a suite, got {name[:100]!r}")
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if name not in names():
            raise BadInput(did_you_mean(name, names(), "suite"))
        path = paths.suites() / f"{name}.yaml"
    if not path.is_file():
        raise BadInput(f"no suite file {name}; the shipped suites are {', '.join(names())}")
    return read(path, Suite, name=path.stem)
