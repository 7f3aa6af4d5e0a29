"""The adversarial training of FADE: walks of the model as it is, the contest of the two losses, the stop test."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.utils.checkpoint import checkpoint

from benchmark.backbones.base import Backbone, Embedding, concatenate
from benchmark.backbones.journal import Resumable
from benchmark.errors import BadInput, BenchError
from benchmark.interface import LowRank, Request
from methods import _discriminator
from methods._discriminator import Discriminator, Views
from methods._loop import ends
from methods._lora import LoRA
from methods._saliency import Elements, Look, candidates, foremost, saliency, top

if TYPE_CHECKING:
    from methods.fade_adv import FadeAdv

_TIMES = 1000  # what both families count to
_PACK = 8  # pairs that walk together where only memory limits them
_LOOKS = 4  # steps of a walk that the discriminator sees where it is trained alone
_MOST_KEPT = 256  # prompts of the preservation pool that are encoded

Student = Callable[[], AbstractContextManager[None]]
"""Opens a block in which the backbone computes with the weights as they are at that moment."""


@dataclass(frozen=True)
class Task:
    """What does not change during training."""

    backbone: Backbone
    settings: FadeAdv
    concept: Embedding
    """One row a pair of prompts."""
    neutral: Embedding
    """As `concept`, row by row."""
    heads: Tensor
    """`(pairs of prompts,)`: which concept."""
    concepts: int
    kept: Embedding | None
    """Prompts of L_pres where these are not the neutral halves of the pairs."""
    empty: Embedding
    times: Tensor
    """`(steps,)`"""
    window: tuple[int, ...]
    """Steps of L_pres; () where it is left out."""

    @property
    def tail(self) -> int:
        """Sampler steps that carry gradients; 0 for one-step estimates, and where nothing judges images."""
        s = self.settings
        return 0 if s.removal == "match" else {"last_k": s.last_k, "full": s.steps}.get(s.grad_mode, 0)


@final
@dataclass
class Log(Resumable):
    """What happened."""

    removal: list[float] = field(default_factory=list)
    preservation: list[float] = field(default_factory=list)
    discriminator: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    """Of the stop tests."""
    stopped: bool = False

    def state(self) -> dict[str, Any]:
        """See the base."""
        return dict(vars(self))

    def load(self, state: dict[str, Any]) -> None:
        """See the base."""
        vars(self).update(state)


class Batch(NamedTuple):
    """Noisy latents of one step."""

    rows: Tensor
    """`(batch,)`: of the pairs of prompts."""
    concept: Tensor
    """`(batch, *latent_shape)`"""
    neutral: Tensor
    t: Tensor
    """`(batch,)`: of `concept` and `neutral`."""
    kept: Tensor
    """`(batch, *latent_shape)`: where L_pres is taken."""
    kept_t: Tensor
    kept_text: Embedding


def erase(
    backbone: Backbone, request: Request, settings: FadeAdv
) -> tuple[dict[str, Tensor], dict[str, LowRank], dict[str, Any]]:
    """New values of the tensors that training changed, low-rank changes, and notes for the edit.

    BadInput for a window that holds no step of the sampler; BenchError when a loss is not finite. All randomness comes
    from the request's seed, through generators of our own.
    """
    streams = np.random.default_rng(request.seed).spawn(4)
    if settings.embedded_guidance is not None:
        backbone = backbone.at_guidance(settings.embedded_guidance)
    task = prepare(backbone, request, settings, streams[0])
    base = candidates(backbone, settings.candidates)
    elements = _modules(task, base, streams[1], request.seed) if settings.rank else _elements(task, base, streams[1])
    log = train(task, elements, streams[2], streams[3])
    notes = {
        "pairs": len(task.heads),
        "window": [float(task.times[i]) for i in task.window],
        "candidates": sum(w.numel() for w in base.values()),
        "trained": sum(p.numel() for p in elements.parameters()),
        "iterations": len(log.removal),
        "stopped": log.stopped,
        "accuracies": log.accuracies,
        **{f"removal_{k}": v for k, v in ends(log.removal).items()},
        **{f"preservation_{k}": v for k, v in ends(log.preservation).items()},
        **{f"discriminator_{k}": v for k, v in ends(log.discriminator).items()},
    }
    if isinstance(elements, Elements):
        return elements.changed(), {}, notes
    return {}, elements.deltas(), notes | {"modules": list(elements.base)}


def _elements(task: Task, base: dict[str, Tensor], rng: np.random.Generator) -> Elements:
    return Elements(base, chosen(task, base, rng))


def _modules(task: Task, base: dict[str, Tensor], rng: np.random.Generator, seed: int) -> LoRA:
    """Low-rank changes of the most salient matrices, as wholes."""
    matrices = {name: w for name, w in base.items() if w.ndim == 2}
    if task.settings.saliency < 1:
        means = {n: float(s.mean()) for n, s in saliency(task.backbone, matrices, looks(task, rng)).items()}
        matrices = {name: matrices[name] for name in foremost(means, task.settings.saliency)}
    return LoRA(matrices, task.settings.rank, scale=1.0, generator=torch.Generator().manual_seed(seed))


# --- what is fixed ----------------------------------------------------------------------------------------------------
def prepare(backbone: Backbone, request: Request, settings: FadeAdv, rng: np.random.Generator) -> Task:
    """Encode all prompts, and find the window."""
    pairs = [(head, *pair) for head, target in enumerate(request.erase) for pair in settings.prompts(target)]
    times = backbone.timesteps(settings.steps)
    inside = window(times, settings.pres_window, settings.window) if settings.preservation else ()
    if settings.preservation and not inside:
        raise BadInput(
            f"fade_adv: pres_window {settings.pres_window!r} of {settings.window:g} holds none of the sampler's "
            f"{settings.steps} times, {float(times[0]):g} to {float(times[-1]):g}; raise steps or window"
        )
    with torch.no_grad():
        return Task(
            backbone=backbone,
            settings=settings,
            concept=backbone.embed([concept for _, concept, _ in pairs]),
            neutral=backbone.embed([neutral for _, _, neutral in pairs]),
            heads=torch.tensor([head for head, _, _ in pairs], device=backbone.device),
            concepts=len(request.erase),
            kept=backbone.embed(prompts) if (prompts := kept_prompts(request, settings, rng)) else None,
            empty=backbone.embed([""]),
            times=times,
            window=inside,
        )


def window(times: Tensor, which: str, share: float) -> tuple[int, ...]:
    """Indices of the `times` in which L_pres is taken: `early` t ≥ T − T0, `literal` t ≤ T0, `all`; T0 = share · T."""
    level = times.double() / _TIMES
    inside = {"early": level >= 1 - share, "literal": level <= share, "all": torch.ones_like(level) > 0}[which]
    return tuple(int(i) for i in inside.nonzero()[:, 0])


def kept_prompts(request: Request, settings: FadeAdv, rng: np.random.Generator) -> list[str]:
    """Prompts of L_pres beyond the pairs: neutral ones, `keep` in templates, `general`; [] for the pairs' own."""
    if settings.preserve_on == "neutral" or not settings.preservation:
        return []
    erased = {name.casefold() for t in request.erase for name in (t.name, *t.synonyms)}
    neutral = [pair[1] for t in request.erase for pair in settings.prompts(t)]
    templates = settings.templates_of(request.erase[0].kind)
    names = [name for name in request.keep if name.casefold() not in erased]
    kept = [templates[i % len(templates)].replace("{}", name) for i, name in enumerate(names)]
    prompts = list(dict.fromkeys([*neutral, *kept, *request.general]))
    order = rng.permutation(len(prompts))[:_MOST_KEPT]
    return [prompts[i] for i in sorted(order)]


def chosen(task: Task, base: dict[str, Tensor], rng: np.random.Generator) -> dict[str, Tensor]:
    """Flat indices of the elements to train."""
    if task.settings.saliency == 1:
        return {name: torch.arange(w.numel(), device=w.device) for name, w in base.items()}
    look = partial(saliency, task.backbone, base, looks(task, rng))
    return task.backbone.journal.once("elements", lambda: top(look(), task.settings.saliency))


def looks(task: Task, rng: np.random.Generator) -> Iterator[Look]:
    """Latents on the unedited model's walks to the concepts, at uniformly drawn steps."""
    count = task.settings.saliency_samples
    size = min(count, _PACK)
    batches = Walking(task, rng, nullcontext, walkers=size, batch=size, draws=1, anywhere=True)
    for i in range(count):
        j = i % size
        if j == 0:
            batch = next(batches)
        rows = batch.rows[j : j + 1]
        yield Look(batch.concept[j : j + 1], batch.t[j : j + 1], task.concept[rows], task.neutral[rows])


# --- latents ----------------------------------------------------------------------------------------------------------
class Draw(NamedTuple):
    """Which latents of a walk make a batch."""

    walkers: Tensor
    """`(batch,)`"""
    steps: Tensor
    """`(batch,)`"""
    kept_steps: Tensor
    """`(batch,)`"""


def draw(task: Task, rng: np.random.Generator, walkers: int, batch: int, anywhere: bool) -> Draw:
    """Walkers, without repeats, at steps of their own; at the gradients' first step where these run to the end."""
    steps, tail = task.settings.steps, task.tail
    at = rng.integers(steps, size=batch) if anywhere or not tail else np.full(batch, steps - tail)
    kept = rng.choice(task.window, size=batch) if task.window else at
    picked = rng.choice(walkers, size=batch, replace=False)
    return Draw(*(torch.from_numpy(np.asarray(v, dtype=np.int64)) for v in (picked, at, kept)))


class Batches(Resumable):
    """Batches without end."""

    @abc.abstractmethod
    def __next__(self) -> Batch:
        """The next one."""


class Walks(NamedTuple):
    """Who walks, and where they have been."""

    rows: Tensor
    """`(walkers,)`: of the pairs of prompts."""
    kept_rows: Tensor
    """`(walkers,)`: of the preservation pool."""
    path: Tensor
    """`(steps + 1, branches, walkers, *latent_shape)`; of images, their ends alone `(branches, …)`."""


@final
class Walking(Batches):
    """`walkers` pairs walk, `draws` batches of theirs are given, the next ones walk."""

    def __init__(
        self,
        task: Task,
        rng: np.random.Generator,
        student: Student,
        *,
        walkers: int,
        batch: int,
        draws: int,
        anywhere: bool = False,
    ) -> None:
        self.task, self.rng, self.student = task, rng, student
        self._shape = (walkers, batch, anywhere)
        self._draws = draws
        self._walks: Walks | None = None
        self._plan: list[Draw] = []

    def __next__(self) -> Batch:
        if not self._plan:
            self._walk()
        assert self._walks is not None
        d, task, (rows, kept_rows, path) = self._plan.pop(0), self.task, self._walks
        return Batch(
            rows=rows[d.walkers].to(task.heads.device),
            concept=path[d.steps, 0, d.walkers],
            neutral=path[d.steps, 1, d.walkers],
            t=task.times[d.steps],
            kept=path[d.kept_steps, -1, d.walkers],
            kept_t=task.times[d.kept_steps],
            kept_text=kept_text(task, rows[d.walkers], kept_rows[d.walkers]),
        )

    def _walk(self) -> None:
        walkers, batch, anywhere = self._shape
        rows, kept_rows, seeds = start(self.task, self.rng, walkers)
        self._plan = [draw(self.task, self.rng, walkers, batch, anywhere) for _ in range(self._draws)]
        furthest = max(int(torch.cat([d.steps, d.kept_steps]).max()) for d in self._plan)
        with self.student():
            self._walks = Walks(rows, kept_rows, walk(self.task, rows, kept_rows, seeds, furthest))

    def state(self) -> dict[str, Any]:
        """What is left of the walks; the generator is its owner's to keep."""
        return {"walks": self._walks if self._plan else None, "plan": self._plan}

    def load(self, state: dict[str, Any]) -> None:
        """See the base."""
        self._walks = None if state["walks"] is None else Walks(*state["walks"])
        self._plan = [Draw(*d) for d in state["plan"]]


@final
class Noising(Batches):
    """Of images that the unedited model made once, noised; a pair has the same noise and time."""

    def __init__(self, task: Task, rng: np.random.Generator, *, batch: int) -> None:
        self.task, self.rng = task, rng
        self._batch = min(batch, task.settings.pairs)
        self._made: Walks | None = None

    def __next__(self) -> Batch:
        task, model = self.task, self.task.backbone
        self._made = self._made or self._images()
        rows, kept_rows, made = self._made
        d = draw(task, self.rng, task.settings.pairs, self._batch, anywhere=True)
        noise = model.noise([int(s) for s in self.rng.integers(2**31, size=len(d.walkers))])
        clean, t, kept_t = made[:, d.walkers], task.times[d.steps], task.times[d.kept_steps]
        return Batch(
            rows=rows[d.walkers].to(task.heads.device),
            concept=model.noisy(clean[0], noise, t),
            neutral=model.noisy(clean[1], noise, t),
            t=t,
            kept=model.noisy(clean[-1], noise, kept_t),
            kept_t=kept_t,
            kept_text=kept_text(task, rows[d.walkers], kept_rows[d.walkers]),
        )

    def _images(self) -> Walks:
        task, pairs = self.task, self.task.settings.pairs
        rows, kept_rows, seeds = start(task, self.rng, pairs)
        packs = [slice(i, i + _PACK) for i in range(0, pairs, _PACK)]
        # one walk a pack; only its end is kept
        made = [walk(task, rows[p], kept_rows[p], seeds[p], task.settings.steps)[-1] for p in packs]
        return Walks(rows, kept_rows, torch.cat(made, dim=1))

    def state(self) -> Walks | None:
        """The images; the generator is its owner's to keep."""
        return self._made

    def load(self, state: list[Tensor] | None) -> None:
        """See the base."""
        self._made = None if state is None else Walks(*state)


def start(task: Task, rng: np.random.Generator, walkers: int) -> tuple[Tensor, Tensor, list[int]]:
    """Rows of the pairs of prompts, rows of the preservation pool, and seeds of the initial noise."""
    rows = torch.from_numpy(rng.integers(len(task.heads), size=walkers))
    kept = torch.from_numpy(rng.integers(1 if task.kept is None else len(task.kept), size=walkers))
    return rows, kept, [int(s) for s in rng.integers(2**31, size=walkers)]


def kept_text(task: Task, rows: Tensor, kept_rows: Tensor) -> Embedding:
    """Prompts of L_pres: each walker's own of the pool, or else its neutral one."""
    return task.neutral[rows] if task.kept is None else task.kept[kept_rows]


@torch.no_grad()
def walk(task: Task, rows: Tensor, kept_rows: Tensor, seeds: Sequence[int], stop: int) -> Tensor:
    """All latents of guided walks from the same noise: `(stop + 1, branches, walkers, *latent_shape)`.

    Branches: concept, neutral, and the preservation pool's if there is one.
    """
    texts = [task.concept[rows], task.neutral[rows]] + ([] if task.kept is None else [task.kept[kept_rows]])
    noise, s = task.backbone.noise(seeds), task.settings
    x, empty = torch.cat([noise] * len(texts)), task.empty.expand(len(noise) * len(texts))
    path = task.backbone.walk(x, concatenate(texts), empty, steps=s.steps, guidance=s.guidance, stop=stop)
    latents = torch.stack([x, *(y for _, y in path)])
    return latents.reshape(len(latents), len(texts), *noise.shape)


# --- what the discriminator sees --------------------------------------------------------------------------------------
def views(task: Task, batch: Batch) -> Views:
    """The pairs as the discriminator sees them; gradients, where they are on, come through the concept's half."""
    heads = task.heads[batch.rows]
    concept, neutral = _final(task, batch) if task.tail else _one_step(task, batch)
    return Views(concept, neutral, torch.zeros_like(batch.t) if task.tail else batch.t, heads)


def _one_step(task: Task, batch: Batch) -> tuple[Tensor, Tensor]:
    """Clean estimates at the guided prediction; the unconditional part has no gradient."""
    model, g, n = task.backbone, task.settings.guidance, len(batch.rows)
    concept = model.predict(batch.concept, batch.t, task.concept[batch.rows])
    with torch.no_grad():
        if g == 1:
            neutral = model.predict(batch.neutral, batch.t, task.neutral[batch.rows])
        else:
            x = torch.cat([batch.concept, batch.neutral, batch.neutral])
            text = concatenate([task.empty.expand(2 * n), task.neutral[batch.rows]])
            null, null_neutral, neutral = model.predict(x, torch.cat([batch.t] * 3), text).chunk(3)
            neutral = null_neutral + g * (neutral - null_neutral)
    if g != 1:
        concept = null + g * (concept - null)
    return tuple(
        model.clean(x, batch.t, p).float().clamp(-task.settings.bound, task.settings.bound)
        for x, p in ((batch.concept, concept), (batch.neutral, neutral))
    )  # type: ignore[return-value]


def _final(task: Task, batch: Batch) -> tuple[Tensor, Tensor]:
    """Final latents: the last steps of the concept's walk carry gradients, recomputed step by step on the way back."""
    model, s = task.backbone, task.settings
    text, empty, times = task.concept[batch.rows], task.empty.expand(len(batch.rows)), task.times
    first = s.steps - task.tail

    def step(x: Tensor, i: int) -> Tensor:
        return model.step(x, i, model.guided(x, times[i], text, empty, s.guidance), s.steps)

    x = batch.concept
    for i in range(first, s.steps):
        x = checkpoint(step, x, i, use_reentrant=False, preserve_rng_state=False)
    neutral = model.trajectory(
        batch.neutral, task.neutral[batch.rows], empty, steps=s.steps, guidance=s.guidance, start=first
    )
    return x.float(), neutral.float()


@torch.no_grad()
def collect(task: Task, rng: np.random.Generator, student: Student) -> Views:
    """Views of `pairs` pairs, several a walk; for a discriminator that is trained alone."""
    s = task.settings
    size, draws = min(s.pairs, _PACK), 1 if task.tail else _LOOKS
    batches: Batches = (
        Noising(task, rng, batch=size)
        if s.grad_mode == "off_policy"
        else Walking(task, rng, student, walkers=size, batch=size, draws=draws)
    )
    seen = []
    for _ in range(draws * math.ceil(s.pairs / size)):
        batch = next(batches)
        with student():
            seen.append(views(task, batch))
    return Views(*(torch.cat(part) for part in zip(*seen, strict=True)))


# --- the model's losses -----------------------------------------------------------------------------------------------
class Targets(NamedTuple):
    """What the frozen model predicts."""

    kept: Tensor | None
    match: Tensor | None


@torch.no_grad()
def targets(task: Task, batch: Batch) -> Targets:
    """Predictions of the backbone as it is: to be called where no weights are substituted."""
    model, s = task.backbone, task.settings
    return Targets(
        model.predict(batch.kept, batch.kept_t, batch.kept_text) if s.preservation else None,
        model.predict(batch.concept, batch.t, task.neutral[batch.rows]) if s.removal == "match" else None,
    )


def distance(task: Task, x: Tensor, t: Tensor, text: Embedding, target: Tensor) -> Tensor:
    """mean (ε_θ(x, y, t) − target)²: L_pres, and the fixed-target removal."""
    return mse_loss(task.backbone.predict(x, t, text).float(), target.float())


def removal(task: Task, batch: Batch, judge: Discriminator | None, seen: Views | None, target: Tensor | None) -> Tensor:
    """L_rem by the discriminator; without one, the weighted distance to the fixed target."""
    if judge is not None and seen is not None:
        return _discriminator.removal_loss(judge(seen.concept, seen.t), seen.heads)
    assert target is not None
    return task.settings.match * distance(task, batch.concept, batch.t, task.concept[batch.rows], target)


def preservation(task: Task, batch: Batch, target: Tensor | None) -> Tensor | None:
    """L_pres, without λ; None where it is left out."""
    return None if target is None else distance(task, batch.kept, batch.kept_t, batch.kept_text, target)


# --- the training -----------------------------------------------------------------------------------------------------
class Contest:
    """The model's elements and the discriminator, and a step of both."""

    def __init__(self, task: Task, elements: Elements | LoRA, rng: np.random.Generator) -> None:
        s = task.settings
        self.task, self.elements = task, elements
        self.log = Log()
        self.adam = torch.optim.AdamW(elements.parameters(), lr=s.lr, weight_decay=s.weight_decay)
        self.judge: Discriminator | None = None
        self.judge_adam: torch.optim.Adam | None = None
        if s.removal != "match":
            self.judge, self.judge_adam = pretrained(task, rng, nullcontext)
        walkers = max(s.walkers, s.batch)
        self.batches: Batches = (
            Noising(task, rng, batch=s.batch)
            if s.grad_mode == "off_policy"
            else Walking(task, rng, self.student, walkers=walkers, batch=s.batch, draws=s.refresh)
        )
        self.held = {
            "elements": elements.parameters(),
            "adam": self.adam,
            "judge": self.judge,
            "judge_adam": self.judge_adam,
            "rng": rng,
            "batches": self.batches,
            "log": self.log,
        }
        """All that steps change."""

    def student(self) -> AbstractContextManager[None]:
        """The model as it is now, without gradients."""
        with torch.no_grad():
            return self.task.backbone.substituted(self.elements.weights())

    def step(self) -> None:
        """`d_steps` of the discriminator, the last on the batch on which the model then takes its own."""
        for _ in range(self.task.settings.d_steps - 1 if self.contested else 0):
            batch = next(self.batches)
            with torch.no_grad(), self.student():
                seen = views(self.task, batch)
            self._learn(seen)
        batch = next(self.batches)
        fixed = targets(self.task, batch)
        # backward inside: recomputed steps need the substitutes
        with torch.enable_grad(), self.task.backbone.substituted(self.elements.weights()):
            loss = self._loss(batch, fixed)
            self.adam.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.elements.parameters(), self.task.settings.clip)
        self.adam.step()

    @property
    def contested(self) -> bool:
        """Whether the discriminator learns on."""
        return self.task.settings.removal == "adversarial"

    def _learn(self, seen: Views) -> None:
        assert self.judge is not None and self.judge_adam is not None
        seen = seen._replace(concept=seen.concept.detach())
        self.log.discriminator.append(_discriminator.learn(self.judge, self.judge_adam, seen, self.task.settings.heads))

    def _loss(self, batch: Batch, fixed: Targets) -> Tensor:
        """L_rem + λ L_pres, after the discriminator's step on the same views."""
        seen = None if self.judge is None else views(self.task, batch)
        if seen is not None and self.contested:
            self._learn(seen)
        rem = removal(self.task, batch, self.judge, seen, fixed.match)
        pres = preservation(self.task, batch, fixed.kept)
        self._note(rem, pres)
        return rem if pres is None else rem + self.task.settings.preservation * pres

    def _note(self, rem: Tensor, pres: Tensor | None) -> None:
        values = [float(v.detach()) for v in (rem, pres) if v is not None]
        if not all(math.isfinite(v) for v in values):
            raise BenchError(
                f"fade_adv: the loss is {sum(values)} at iteration {len(self.log.removal)} of training; "
                f"lower lr, now {self.task.settings.lr:g}"
            )
        self.log.removal.append(values[0])
        self.log.preservation += values[1:]


def pretrained(task: Task, rng: np.random.Generator, student: Student) -> tuple[Discriminator, torch.optim.Adam]:
    """A new discriminator, trained on what `student` makes, and its optimizer."""
    s = task.settings
    judge = _discriminator.build(task.backbone, task.concepts, s.d_width, int(rng.integers(2**31)))
    adam = _discriminator.optimizer(judge, s.d_lr)
    held = {"judge": judge, "adam": adam, "rng": rng}
    if s.pretrain and task.backbone.journal.resume("judge", held) is None:
        seen = collect(task, rng, student)
        _discriminator.fit(judge, adam, seen, rng, steps=s.pretrain, batch=s.d_batch, how=s.heads)
        task.backbone.journal.done("judge", s.pretrain, held, hold=True)
    return judge.eval().requires_grad_(False), adam


def fresh_accuracy(task: Task, seen: Views, unseen: Views, rng: np.random.Generator) -> float:
    """Accuracy on `unseen` of a new discriminator trained on `seen`: unlike a spent one, it has not given up."""
    s = task.settings
    judge = _discriminator.build(task.backbone, task.concepts, s.d_width, int(rng.integers(2**31)))
    adam = _discriminator.optimizer(judge, s.d_lr)
    _discriminator.fit(judge, adam, seen, rng, steps=s.stop_steps, batch=s.d_batch, how=s.heads)
    return _discriminator.accuracy(judge, unseen)


def met(accuracies: Sequence[float], threshold: float, checks: int) -> bool:
    """Whether the last `checks` accuracies are all at most `threshold`."""
    return len(accuracies) >= checks and all(a <= threshold for a in accuracies[-checks:])


def train(task: Task, elements: Elements | LoRA, rng: np.random.Generator, testing: np.random.Generator) -> Log:
    """Train the elements in place until the stop test is met or the iterations are done."""
    s, contest, journal = task.settings, Contest(task, elements, rng), task.backbone.journal
    held = {**contest.held, "testing": testing}
    i = journal.resume("training", held) or 0
    while i < s.iterations and not contest.log.stopped:
        contest.step()
        i += 1
        if s.stop_every and i % s.stop_every == 0 and contest.contested:
            seen, unseen = (collect(task, testing, contest.student) for _ in range(2))
            contest.log.accuracies.append(fresh_accuracy(task, seen, unseen, testing))
            contest.log.stopped = met(contest.log.accuracies, s.stop_accuracy, s.stop_checks)
        journal.done("training", i, held)
    return contest.log
