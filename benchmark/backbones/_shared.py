"""What both families do alike: text positions, noise, tensor names, layers, counting."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmark.backbones.base import Change, Counts, Layer, Part
from benchmark.errors import BadInput, did_you_mean

# --- text -----------------------------------------------------------------------------------------------------


def tokenize(tokenizer: Any, prompts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask `(batch, length)`: padded, and cut at `length` as the pipelines do."""
    if isinstance(prompts, str):
        raise TypeError(f"expected a sequence of prompts, got the string {prompts!r}; wrap it in a list")
    out = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return out.input_ids, out.attention_mask


def span(tokenizer: Any, prompt: str, phrase: str, length: int) -> range:
    """Positions of the tokens that spell the first whole-word occurrence of `phrase`, any case.

    Tokens are found by the characters they cover, so a word split into several, and punctuation glued to a
    word, are both right. Raises ValueError if the phrase is not there or is cut off at `length`.
    """
    first, last = _characters(prompt, phrase)
    out = tokenizer(prompt, max_length=length, truncation=True, return_offsets_mapping=True)
    covers = [i for i, (a, b) in enumerate(out["offset_mapping"]) if a < b and a < last and b > first]
    if not covers or out["offset_mapping"][covers[-1]][1] < last:
        raise ValueError(f"{phrase!r} is cut off: {prompt!r} is longer than the text encoder's {length} tokens")
    return range(covers[0], covers[-1] + 1)


def _characters(prompt: str, phrase: str) -> tuple[int, int]:
    words = phrase.split()
    if words:
        # a boundary only at edges that are letters or digits: "'s" may follow a letter
        before = r"(?<!\w)" if re.match(r"\w", words[0]) else ""
        after = r"(?!\w)" if re.search(r"\w$", words[-1]) else ""
        if found := re.search(before + r"\s+".join(map(re.escape, words)) + after, prompt, re.IGNORECASE):
            return found.span()
    raise ValueError(f"{phrase!r} does not occur as whole words in the prompt {prompt!r}")


# --- noise ----------------------------------------------------------------------------------------------------


def draw(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal `(batch, *shape)`, float32 on the CPU, one generator per seed.

    The same numbers as a diffusers pipeline with a list of CPU generators. The CPU generator uses the low 32 bits
    of a seed.
    """
    return torch.stack([torch.randn(tuple(shape), generator=torch.Generator().manual_seed(s)) for s in seeds])


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Scalar or `(batch,)` values in a shape that broadcasts over `like` `(batch, …)`.

    Never 0-dimensional, so that half-precision latents are worked on in the values' float32.
    """
    return values.reshape(-1, *[1] * (like.ndim - 1))


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's configuration as a file would give it.

    Built in code it also lists the arguments "left at their defaults" (every positional one among them), which
    diffusers' `from_config` would then ignore.
    """
    return {key: value for key, value in config.items() if not key.startswith("_")}


# --- weights --------------------------------------------------------------------------------------------------


def settle(module: nn.Module, device: torch.device) -> Any:
    """The module on its device, in eval mode (code-built modules start in train mode), without gradients.

    Convolutions keep channels last: a GPU's tensor cores take them so, and a CPU draws a seventh sooner. Another layout
    ends in other bits, so it is the same everywhere (`device.setting` has it).
    """
    untyped: Any = module  # torch's types have no `to` for a layout alone
    module = untyped.to(memory_format=torch.channels_last)
    return module.to(device).eval().requires_grad_(False)


def tensors(components: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """All parameters and buffers, live, by `component.name`; tied weights once, under their first name."""
    return {
        f"{component}.{name}": tensor
        for component, module in components.items()
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
    }


def layers(component: str, denoiser: nn.Module, part: Callable[[str], Part]) -> list[Layer]:
    """Modules that hold parameters of their own, in the order in which the model defines them."""
    found = []
    for name, module in denoiser.named_modules():
        own = tuple(f"{component}.{name}.{p}" for p, _ in module.named_parameters(recurse=False))
        if own:
            found.append(Layer(f"{component}.{name}", _kind(module), part(name), own))
    return found


def _kind(module: nn.Module) -> Literal["linear", "conv", "norm", "other"]:
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Conv2d):
        return "conv"
    return "norm" if "Norm" in type(module).__name__ else "other"


class Substitutes:
    """Tensors that a denoiser computes with in place of its own, while blocks of `substituted` run."""

    def __init__(self, component: str) -> None:
        self._prefix = f"{component}."
        self._now: dict[str, Tensor] = {}

    @contextmanager
    def given(self, denoiser: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Use `tensors` until the block ends."""
        before, self._now = self._now, {**self._now, **self._checked(denoiser, tensors)}
        try:
            yield
        finally:
            self._now = before

    def _checked(self, denoiser: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own = dict(denoiser.named_parameters())
        short = {name.removeprefix(self._prefix): tensor for name, tensor in tensors.items()}
        for (name, tensor), key in zip(tensors.items(), short, strict=True):
            if not name.startswith(self._prefix) or key not in own:
                raise BadInput(did_you_mean(name, [self._prefix + k for k in own], "tensor of the denoiser"))
            if tensor.shape != own[key].shape:
                raise BadInput(f"expected {name} of shape {tuple(own[key].shape)}, got {tuple(tensor.shape)}")
        return short

    def own(self, denoiser: nn.Module, names: Collection[str] | None) -> Substitutes:
        """Substitutes that start with copies, as leaves, of the named tensors (None: all) as they are here."""
        twin, now = Substitutes(self._prefix[:-1]), {**dict(denoiser.named_parameters()), **self._now}
        wanted = {self._prefix + key: tensor for key, tensor in now.items()}
        if names is not None:
            unknown = [name for name in names if name not in wanted]
            if unknown:
                raise BadInput(did_you_mean(unknown[0], wanted, "tensor of the denoiser"))
            wanted = {name: wanted[name] for name in names}
        twin._now = {n.removeprefix(self._prefix): t.detach().clone() for n, t in wanted.items()} | {
            key: tensor for key, tensor in self._now.items() if self._prefix + key not in wanted
        }
        return twin

    def over(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A backbone's `tensors`, with what is used in their place."""
        return {**tensors, **{self._prefix + key: tensor for key, tensor in self._now.items()}}

    def call(self, denoiser: nn.Module, *args: Any, **options: Any) -> Any:
        """The denoiser's output."""
        if not self._now:
            return denoiser(*args, **options)
        return torch.func.functional_call(denoiser, self._now, args, options)


@contextmanager
def attached(modules: Mapping[str, nn.Module], changes: Mapping[str, Change]) -> Iterator[None]:
    """Pass the outputs of the named modules through their changes until the block ends."""
    for name in changes:
        if name not in modules:
            raise BadInput(did_you_mean(name, modules, "projection"))

    def hook(change: Change) -> Any:
        return lambda module, inputs, output: change(inputs[0], output)

    handles = [modules[name].register_forward_hook(hook(change)) for name, change in changes.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def recording(
    attentions: Mapping[str, Any], layers: Collection[str] | None, recorder: Callable[[list[Tensor]], Any]
) -> Iterator[list[Tensor]]:
    """While the block runs, the named attentions (None: all) compute with recorders, which append to the list.

    `recorder(list)` makes an attention processor. BadInput for a layer that is not among the attentions.
    """
    for name in layers or ():
        if name not in attentions:
            raise BadInput(did_you_mean(name, attentions, "attention layer"))
    maps: list[Tensor] = []
    chosen = [module for name, module in attentions.items() if layers is None or name in layers]
    before = [module.processor for module in chosen]
    try:
        for module in chosen:
            module.set_processor(recorder(maps))
        yield maps
    finally:
        for module, processor in zip(chosen, before, strict=True):
            module.set_processor(processor)


# --- text that is read again and again ------------------------------------------------------------------------


@contextmanager
def remembering(modules: Iterable[nn.Module]) -> Iterator[None]:
    """While the block runs, each linear map keeps its last output, and gives it again for the very same input.

    What it gives is what it would compute, bit for bit: the input must be the same tensor, and input, weight and bias
    the same tensors with nothing written to them since. Whatever is attached to the module still sees every call.
    Nothing is kept while gradients are on. Blocks may nest.
    """
    ours = [module for module in modules if "forward" not in vars(module)]
    for module in ours:
        module.forward = _Remembered(module)
    try:
        yield
    finally:
        for module in ours:
            del module.forward


class _Remembered:
    """A module's forward, with the last output."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._compute = module, module.forward
        self._seen: list[tuple[Tensor, int]] = []
        self._output: Tensor | None = None

    def __call__(self, given: Tensor) -> Tensor:
        held = [given, *self._module._parameters.values()]
        if torch.is_grad_enabled() or any(t is not None and t.is_inference() for t in held):
            output: Tensor = self._compute(given)
            return output
        if self._output is None or not self._same([t for t in held if t is not None]):
            self._output = self._compute(given)
            self._seen = [(t, t._version) for t in (*held, self._output) if t is not None]
        return self._output

    def _same(self, held: Sequence[Tensor]) -> bool:
        seen = self._seen[:-1]  # the last is the output, which nobody may have written to either
        kept, version = self._seen[-1]
        if len(held) != len(seen) or kept._version != version:
            return False
        return all(now is then and now._version == v for now, (then, v) in zip(held, seen, strict=True))


# --- work -----------------------------------------------------------------------------------------------------


class Meter:
    """The counts that are running; a backbone and its students share one."""

    def __init__(self) -> None:
        self._running: list[Counts] = []

    @contextmanager
    def counting(self) -> Iterator[Counts]:
        """Count until the block ends. Blocks may nest; each counts all work inside it."""
        counts = Counts()
        self._running.append(counts)
        try:
            yield counts
        finally:
            self._running = [c for c in self._running if c is not counts]

    def text(self, samples: int) -> None:
        """`samples` prompts were encoded."""
        for counts in self._running:
            counts.text_encodes += samples

    def decoded(self, samples: int) -> None:
        """`samples` latents were decoded to images."""
        for counts in self._running:
            counts.decodes += samples

    def denoiser(self, output: Tensor) -> Tensor:
        """A forward was done, one sample per row of `output`; its backward counts when the gradient comes back."""
        samples = output.shape[0]
        for counts in self._running:
            counts.denoiser_forwards += samples
        if output.requires_grad:
            hook: Any = output.register_hook  # torch gives it no types
            hook(lambda _: self._backward(samples))
        return output

    def _backward(self, samples: int) -> None:
        for counts in self._running:
            counts.denoiser_backwards += samples
