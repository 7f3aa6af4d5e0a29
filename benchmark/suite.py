"""A suite: which concepts are erased and kept, with which prompts, sampler and scores; read from `suites/*.yaml`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from benchmark import paths
from benchmark.data import Concept, Dataset, Selector, draw
from benchmark.declared import Some, Strict, read
from benchmark.errors import BadInput, did_you_mean
from benchmark.interface import Kind

Role = Literal["erased", "synonym", "kept"]
ROLES: tuple[Role, ...] = ("erased", "synonym", "kept")
Strategy = Literal["joint", "sequential"]
FormName = Literal["paper", "embedded"]

Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]
# A bare list of names is the short form of a selector or a draw.
Chosen = Annotated[Selector, BeforeValidator(lambda v: {"names": v} if isinstance(v, list) else v)]


def _templates(templates: tuple[str, ...]) -> tuple[str, ...]:
    for template in templates:
        if template.count("{concept}") != 1 or template.replace("{concept}", "").strip("{}") == "":
            raise ValueError(f"expected a text with {{concept}} in it once, got {template!r}")
    if len(set(templates)) < len(templates):
        raise ValueError("a template is given twice: its images would count twice")
    return templates


class Prompts(Strict):
    """Prompts of one role: every template with every concept, `images` seeds each."""

    templates: Some[str]
    images: Count

    @field_validator("templates")
    @classmethod
    def _with_concept(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        return _templates(templates)


class PromptsByRole(Strict):
    """Which roles a form has."""

    erased: Prompts
    synonym: Prompts | None = None
    """Every synonym of every erased concept, scored against the concept itself."""
    kept: Prompts | None = None


class Images(Strict):
    """Images per template and concept of one request, where they differ from the form's."""

    erased: Count | None = None
    synonym: Count | None = None
    kept: Count | None = None


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


class Rule(Strict):
    """One request (`name`, `erase`), or one for each concept (`each`, `draw`), named `erase:<concept>`."""

    name: Text | None = None
    erase: Annotated[Draw, BeforeValidator(lambda v: {"from": v} if isinstance(v, list) else v)] | None = None
    each: Chosen | None = None
    draw: Draw | None = None
    keep: Chosen | None = None
    """What stays; erased concepts are taken out of it."""
    strategy: Strategy = "joint"
    templates: Some[str] | None = None
    """For every role of this request, where they differ from the form's."""
    images: Images = Images()

    @field_validator("templates")
    @classmethod
    def _with_concept(cls, templates: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if templates is None else _templates(templates)

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
    steps: Count
    guidance: float = Field(ge=0, allow_inf_nan=False)
    """Scale g in u + g(c − u); at 1 there is no unconditional pass."""
    size: Count = Field(multiple_of=8)
    """Height and width in pixels."""

    @property
    def forwards(self) -> int:
        """Denoiser samples that one image takes."""
        return self.steps * (1 if self.guidance == 1 else 2)


class Form(Strict):
    """A suite in one of its sizes."""

    dataset: str
    requests: Some[Rule]
    prompts: PromptsByRole
    sampler: Sampler
    batch: Count
    """The fixed batch shape: it is part of an image's key, and the last batch is padded to it."""
    primary: str
    """The protocol that fills `acc_*` and the headline."""
    protocols: Some[str]
    sequential_ok: bool = True
    """Whether a method for one concept may erase several one after another."""

    @model_validator(mode="after")
    def _primary_listed(self) -> Self:
        if self.primary not in self.protocols:
            raise ValueError(f"primary {self.primary!r} is not among protocols ({', '.join(self.protocols)})")
        return self


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
    methods: Some[str]
    """Run when none are named."""
    headline: Literal["H_o", "H_c"] | None = None
    forms: Forms

    @model_validator(mode="after")
    def _headline_has_parts(self) -> Self:
        needed = {"H_o": ("synonym", "kept"), "H_c": ("kept",)}.get(self.headline or "", ())
        for name in ("paper", "embedded"):
            form: Form | None = getattr(self.forms, name)
            for role in needed if form else ():
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


@dataclass(frozen=True)
class RequestSpec:
    """One request of a suite, resolved to concepts and prompts."""

    name: str
    erase: tuple[Concept, ...]
    keep: tuple[Concept, ...]
    strategy: Strategy
    prompts: Mapping[Role, Prompts]

    @property
    def kind(self) -> Kind | Literal["*"]:
        """The kind of all erased concepts, or `*` if they differ: what presets are chosen by."""
        kinds = {c.kind for c in self.erase}
        return kinds.pop() if len(kinds) == 1 else "*"


def requests(form: Form, dataset: Dataset) -> tuple[RequestSpec, ...]:
    """The requests of a form, in order; `BadInput` names the rule that cannot be resolved."""
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
        if name == "mean" or not name.isprintable():
            raise BadInput(f"requests: {name!r} cannot be a request's name; take another, such as 'erase:cat'")


def _expand(rule: Rule, form: Form, dataset: Dataset) -> list[RequestSpec]:
    if rule.name is not None and rule.erase is not None:
        sets = {rule.name: rule.erase.concepts(dataset)}
    else:
        one_each = rule.draw.concepts(dataset) if rule.draw else dataset.select(rule.each or Selector())
        sets = {f"erase:{c.name.replace(' ', '_')}": (c,) for c in one_each}
    kept = dataset.select(rule.keep) if rule.keep else ()
    return [
        RequestSpec(name, erase, tuple(c for c in kept if c not in erase), _strategy(rule, erase), _prompts(rule, form))
        for name, erase in sets.items()
    ]


def _strategy(rule: Rule, erase: tuple[Concept, ...]) -> Strategy:
    # One concept after another is the same edit as all at once when there is one: it must have one key.
    return "joint" if len(erase) == 1 else rule.strategy


def _prompts(rule: Rule, form: Form) -> dict[Role, Prompts]:
    found: dict[Role, Prompts] = {}
    for role in ROLES:
        prompts: Prompts | None = getattr(form.prompts, role)
        if prompts is not None:
            changes: dict[str, Any] = {"templates": rule.templates, "images": getattr(rule.images, role)}
            found[role] = prompts.model_copy(update={k: v for k, v in changes.items() if v is not None})
    return found


def names() -> list[str]:
    """The shipped suites."""
    return sorted(p.stem for p in paths.suites().glob("*.yaml"))


def load(name: str) -> Suite:
    """A shipped suite by name, or any by the path of its YAML file."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if name not in names():
            raise BadInput(did_you_mean(name, names(), "suite"))
        path = paths.suites() / f"{name}.yaml"
    if not path.is_file():
        raise BadInput(f"no suite file {name}; the shipped suites are {', '.join(names())}")
    return read(path, Suite, name=path.stem)
