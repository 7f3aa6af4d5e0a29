"""What makes sampling faster changes no bit: each shortcut beside the plain way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmark import gates
from benchmark.backbones import _shared
from benchmark.backbones.base import Backbone, concatenate
from benchmark.backbones.kernels import Launcher
from benchmark.backbones.random_models import random_flux, random_unet
from benchmark.edits import apply, edited, in_dtype
from benchmark.errors import BadInput
from benchmark.interface import Edit, Gates, LowRank

MAKERS = {"unet": random_unet, "flux": random_flux, "flux-dev": lambda: random_flux(guidance_embeds=True)}
PROMPTS = ["a photo of the cat", "a photo of the dog"]
STEPS, GUIDANCE = 5, 3.0


@pytest.fixture(scope="module", params=MAKERS)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    made: Backbone = MAKERS[request.param]()
    return made


@torch.no_grad()
def plainly(backbone: Backbone, seeds: Sequence[int] = (3, 5)) -> Tensor:
    """The trajectory step by step, every projection computed in each, times and rates made anew in each."""
    x, text, empty = backbone.noise(seeds), backbone.embed(PROMPTS), backbone.embed([""]).expand(2)
    for i in range(STEPS):
        t = backbone.timesteps(STEPS)[i]
        u, c = backbone.predict(torch.cat([x, x]), t, concatenate([empty, text])).chunk(2)
        x = by_formula(backbone, x, i, u + GUIDANCE * (c - u))
    return x


def by_formula(backbone: Backbone, x: Tensor, index: int, prediction: Tensor) -> Tensor:
    """One step from the scheduler's own numbers: DDIM with eta 0, or Euler's."""
    model: Any = backbone
    scheduler = model._scheduler
    if backbone.family == "transformer-flow":
        sigmas = model._shifted(STEPS)
        return x + (sigmas[index + 1] - sigmas[index]).reshape(-1, 1, 1) * prediction
    scheduler.set_timesteps(STEPS)
    t = scheduler.timesteps[index]
    before = t - scheduler.config.num_train_timesteps // STEPS
    a = scheduler.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    b = scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod
    b = b.reshape(-1, 1, 1, 1)
    clean = (x - (1 - a) ** 0.5 * prediction) / a**0.5
    return b**0.5 * clean + (1 - b) ** 0.5 * prediction


@torch.no_grad()
def fast(backbone: Backbone, seeds: Sequence[int] = (3, 5)) -> Tensor:
    x, text, empty = backbone.noise(seeds), backbone.embed(PROMPTS), backbone.embed([""]).expand(2)
    return backbone.trajectory(x, text, empty, steps=STEPS, guidance=GUIDANCE)


def edits(backbone: Backbone) -> dict[str, Edit]:
    """Each kind of edit that acts on text projections."""
    draw = torch.Generator().manual_seed(7)
    some = [p for p in backbone.projections() if p.role != "pooled"]

    def noise(*shape: int) -> Tensor:
        return 0.1 * torch.randn(shape, generator=draw)

    dim = some[0].weight.shape[1]
    return {
        "none": Edit(),
        "weights": Edit(weights={p.name: p.weight + noise(*p.weight.shape) for p in some}),
        "deltas": Edit(deltas={p.name: LowRank(noise(len(p.weight), 2), noise(2, dim)) for p in some}),
        "gates": Edit(
            gates=Gates(
                query=noise(2, dim, 4),
                key=noise(2, dim, 4),
                vector=noise(2, dim),
                changes={p.name: LowRank(noise(2, len(p.weight), 2), noise(2, 2, dim)) for p in some},
            )
        ),
    }


@contextmanager
def computed(backbone: Backbone, calls: list[int]) -> Iterator[None]:
    """Count what the text projections' linear maps compute, not what is asked of them."""
    linear: Callable[..., Tensor] = torch.nn.functional.linear
    weights = {id(p.weight) for p in backbone.projections()}

    def counted(given: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        calls.append(1) if id(weight) in weights else None
        return linear(given, weight, bias)

    torch.nn.functional.linear = counted
    try:
        yield
    finally:
        torch.nn.functional.linear = linear


# --- text projections over steps --------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["none", "weights", "deltas", "gates"])
def test_remembered_projections_change_no_bit_under_any_edit(backbone: Backbone, kind: str) -> None:
    before = plainly(backbone)
    with apply(backbone, edits(backbone)[kind]):
        assert torch.equal(fast(backbone), plainly(backbone))
        assert kind == "none" or not torch.equal(plainly(backbone), before)
    assert torch.equal(fast(backbone), before), "and nothing of the edit is remembered when it is off"


def test_each_projection_is_computed_once_a_trajectory(backbone: Backbone) -> None:
    calls: list[int] = []
    with computed(backbone, calls):
        fast(backbone)
    assert len(calls) == len(backbone.projections())
    calls.clear()
    with computed(backbone, calls):
        plainly(backbone)
    assert len(calls) == STEPS * len(backbone.projections())


def test_weights_that_change_on_the_way_are_seen(backbone: Backbone) -> None:
    """Validity is checked call by call: a method may train between two steps of a walk."""
    weight = next(p.weight for p in backbone.projections() if p.role != "pooled")
    text, empty = backbone.embed(PROMPTS), backbone.embed([""]).expand(2)
    kept = weight.detach().clone()

    @torch.no_grad()
    def changed(remember: bool) -> Tensor:
        path = backbone.walk(backbone.noise([1, 2]), text, empty, steps=STEPS, guidance=GUIDANCE)
        latents = []
        with backbone.remembering() if remember else _shared.remembering([]):
            for i, x in path:
                latents.append(x)
                weight.copy_(kept if i % 2 else 2 * kept)
        weight.copy_(kept)
        return latents[-1]

    expected = changed(remember=False)
    assert torch.equal(changed(remember=True), expected)
    assert not torch.equal(fast(backbone, (1, 2)), expected)


def test_substituted_weights_and_texts_are_seen(backbone: Backbone) -> None:
    p = next(p for p in backbone.projections() if p.role != "pooled")
    with torch.no_grad(), backbone.remembering():
        x, t, text = backbone.noise([1, 2]), backbone.timesteps(STEPS)[1], backbone.embed(PROMPTS)
        plain = backbone.predict(x, t, text)
        with backbone.substituted({p.name: 2 * p.weight}):
            doubled = backbone.predict(x, t, text)
        other = backbone.predict(x, t, backbone.embed(PROMPTS[::-1]))
        text.tokens.mul_(3)  # the same tensor, other values
        louder = backbone.predict(x, t, text)
    seen = [plain, doubled, other, louder]
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


def test_gradients_are_not_remembered(backbone: Backbone) -> None:
    p = next(p for p in backbone.projections() if p.role != "pooled")
    x, t, text = backbone.noise([1, 2]), backbone.timesteps(STEPS)[1], backbone.embed(PROMPTS)

    def gradient() -> Tensor:
        leaf = p.weight.detach().clone().requires_grad_(True)
        with backbone.substituted({p.name: leaf}):
            backbone.predict(x, t, text).square().sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    expected = gradient()
    with backbone.remembering():
        with torch.no_grad():
            backbone.predict(x, t, text)
        assert torch.equal(gradient(), expected) and torch.equal(gradient(), expected)


def test_modules_are_left_as_they_were(backbone: Backbone) -> None:
    model: Any = backbone
    readers = list(model._readers().values())
    with pytest.raises(ValueError, match="halfway"), backbone.remembering():
        assert all("forward" in vars(module) for module in readers)
        with backbone.remembering():
            pass
        assert all("forward" in vars(module) for module in readers), "blocks nest"
        raise ValueError("halfway")
    assert not any("forward" in vars(module) for module in readers)


# --- times and sizes --------------------------------------------------------------------------------------------------
def test_a_step_reads_nothing_from_the_device(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU each would wait for all that was launched before it."""
    x, text, empty = backbone.noise([1]), backbone.embed(["cat"]), backbone.embed([""])
    backbone.trajectory(x, text, empty, steps=STEPS, guidance=GUIDANCE)
    waits: list[str] = []
    for name in ("item", "__bool__", "__int__", "__float__", "__index__", "tolist", "cpu", "numpy"):
        known = getattr(Tensor, name)

        def told(self: Tensor, *given: Any, _known: Any = known, _name: str = name, **options: Any) -> Any:
            waits.append(_name)
            return _known(self, *given, **options)

        monkeypatch.setattr(Tensor, name, told)
    p = torch.zeros_like(x)
    for i in range(STEPS):
        backbone.step(x, i, p, STEPS)
    assert waits == []
    float(p.sum())
    assert waits, "the test sees what it looks for"


def test_a_view_of_another_size_shares_the_weights(backbone: Backbone) -> None:
    view = backbone.of_size((32, 64))
    assert view.image_size == (32, 64) and backbone.image_size == (64, 64)
    assert view.tensors().keys() == backbone.tensors().keys()
    assert all(view.tensors()[n] is t for n, t in backbone.tensors().items())
    x, text, empty = view.noise([1]), view.embed(["cat"]), view.embed([""])
    with backbone.counting() as counts:
        image = view.decode(view.trajectory(x, text, empty, steps=2, guidance=GUIDANCE))
    assert image.shape == (1, 3, 32, 64)
    assert counts.denoiser_forwards == 4 and counts.decodes == 1
    with pytest.raises(BadInput, match="multiples"):
        backbone.of_size((33, 64))


def test_times_of_a_view_are_its_own() -> None:
    """FLUX shifts its schedule by the number of image tokens."""
    model = random_flux()
    first = model.timesteps(4)
    assert not torch.equal(model.of_size((32, 32)).timesteps(4), first)
    assert torch.equal(model.timesteps(4), first)


# --- other number formats ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [random_unet, random_flux])
def test_an_edit_made_in_float32_goes_onto_a_model_in_bfloat16(make: Callable[..., Backbone]) -> None:
    exact, half = make(), make(dtype=torch.bfloat16)
    kept = {name: tensor.clone() for name, tensor in half.tensors().items()}
    for kind in ("weights", "deltas", "gates"):
        edit = edits(exact)[kind]
        with apply(half, in_dtype(edit, half)):
            for name in (*edit.weights, *edit.deltas):
                assert half.tensors()[name].dtype == torch.bfloat16
                wanted = edited(exact.tensors()[name], name, edit)
                torch.testing.assert_close(half.tensors()[name].float(), wanted, rtol=2**-7, atol=1e-3)
        assert all(torch.equal(kept[name], tensor) for name, tensor in half.tensors().items())
        assert in_dtype(edit, exact) is edit


# --- launching --------------------------------------------------------------------------------------------------------
def test_a_cpu_launches_one_by_one(backbone: Backbone) -> None:
    backbone.use("eager")
    for launch in ("graph", "compile"):
        with pytest.raises(BadInput, match="expected a GPU"):
            backbone.use(launch)  # type: ignore[arg-type]
    assert backbone.refused is None


class _Tape:
    """Stands in for a CUDA graph: keeps the inputs' storage and runs again on replay."""

    made: list[Any] = []

    def __init__(self, run: Any, inputs: Sequence[Tensor], shape: Any) -> None:
        if not self.made and isinstance(shape, tuple) and shape[0] == "refuse":
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        self.shape, self._run = shape, run
        self.made.append(shape)

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        out: Tensor = self._run(*inputs)
        return out


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> Launcher:
    from benchmark.backbones import kernels

    monkeypatch.setattr(kernels, "_Recorded", _Tape)
    monkeypatch.setattr(_Tape, "made", [])
    made = Launcher()
    made.use("graph", torch.nn.Linear(1, 1), torch.device("cuda"))
    return made


@torch.no_grad()
def test_a_recording_is_made_for_each_shape_and_place(launcher: Launcher) -> None:
    for given, place in ((torch.ones(2), 1), (torch.zeros(2), 1), (torch.ones(3), 1), (torch.ones(3), 2)):
        assert torch.equal(launcher(torch.neg, given, place=place), -given)
    assert len(_Tape.made) == 3


def test_nothing_is_recorded_while_python_takes_part_or_gradients_are_on(launcher: Launcher) -> None:
    launcher(torch.neg, torch.ones(2))
    with torch.no_grad(), launcher.held():
        assert launcher.remembers
        launcher(torch.neg, torch.ones(2))
    assert _Tape.made == [] and not launcher.remembers
    with torch.no_grad():
        launcher(torch.neg, torch.ones(2))
    assert len(_Tape.made) == 1


@torch.no_grad()
def test_a_recording_that_fails_is_given_up_with_its_reason(launcher: Launcher) -> None:
    assert torch.equal(launcher(torch.neg, torch.ones(2), place="refuse"), -torch.ones(2))
    assert launcher.refused == "operation not permitted when stream is capturing"
    assert launcher.remembers
    launcher(torch.neg, torch.ones(3))
    assert _Tape.made == []


@torch.no_grad()
def test_memory_that_ran_out_while_recording_is_no_reason_to_give_up(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmark.backbones import kernels

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(kernels, "_Recorded", full)
    with pytest.raises(torch.OutOfMemoryError):
        launcher(torch.neg, torch.ones(2))
    assert launcher.refused is None


def test_what_python_takes_part_in_holds_recordings(backbone: Backbone) -> None:
    model: Any = backbone
    p = next(p for p in backbone.projections() if p.role != "pooled")
    held = [backbone.substituted({p.name: 2 * p.weight}), backbone.attached({p.name: lambda given, out: 2 * out})]
    held += [backbone.attention_maps()] if backbone.family == "unet-epsilon" else []
    held += [gates.attached(backbone, made)] if (made := edits(backbone)["gates"].gates) else []
    for block in held:
        with block:
            assert model._launcher._held == 1
        assert model._launcher._held == 0


# --- on a GPU ---------------------------------------------------------------------------------------------------------
@pytest.mark.gpu
@pytest.mark.parametrize("make", [random_unet, random_flux])
def test_a_graph_gives_the_bits_of_kernels_launched_one_by_one(make: Callable[..., Backbone]) -> None:
    backbone = make(device="cuda", dtype=torch.bfloat16)
    expected = {kind: _under(backbone, kind) for kind in ("none", "weights", "gates")}
    backbone.use("graph")
    for kind in ("none", "weights", "gates", "none"):
        assert torch.equal(_under(backbone, kind), expected[kind]), kind
    assert backbone.refused is None


@pytest.mark.gpu
@pytest.mark.slow
def test_compiled_blocks_stay_near_and_see_edits() -> None:
    backbone = random_unet(device="cuda", dtype=torch.bfloat16)
    expected = {kind: _under(backbone, kind) for kind in ("none", "weights", "gates")}
    backbone.use("compile")
    for kind, wanted in expected.items():
        torch.testing.assert_close(_under(backbone, kind).float(), wanted.float(), rtol=0.05, atol=0.1)


@pytest.mark.gpu
def test_a_gpu_gives_the_images_of_a_cpu_within_a_level() -> None:
    images = []
    for device in ("cpu", "cuda"):
        backbone = random_unet(device=device)
        images.append(backbone.decode(fast(backbone)).cpu() * 255)
    assert (images[0] - images[1]).abs().max() <= 1


@pytest.mark.gpu
def test_sampling_on_a_gpu_does_not_wait_for_it() -> None:
    backbone = random_unet(device="cuda", dtype=torch.bfloat16)
    fast(backbone)
    x, text, empty = backbone.noise([3, 5]), backbone.embed(PROMPTS), backbone.embed([""]).expand(2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.no_grad():
            backbone.trajectory(x, text, empty, steps=STEPS, guidance=GUIDANCE)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _under(backbone: Backbone, kind: str) -> Tensor:
    base = random_unet() if backbone.family == "unet-epsilon" else random_flux()
    with apply(backbone, in_dtype(edits(base)[kind], backbone)):
        return fast(backbone)
