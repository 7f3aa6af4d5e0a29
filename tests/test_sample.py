"""An image depends on its prompt and seed alone; what cannot be sampled is said."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pytest
import torch

from benchmark.backbones.base import Backbone
from benchmark.backbones.random_models import random_flux, random_unet
from benchmark.errors import BadInput, BenchError
from benchmark.interface import PromptRule
from benchmark.sample import TEXT_BATCH, Sampler, Texts, encode, rewrite, sample, to_uint8

SAMPLER = Sampler(steps=4, guidance=3.0)


class Item(NamedTuple):
    prompt: str
    seed: int


ITEMS = [Item(f"a photo of the {word}", seed) for word in ("cat", "dog", "zebra", "ship") for seed in (3, 2**62 + 5)]


@pytest.fixture(scope="module", params=[random_unet, random_flux])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    made: Backbone = request.param()
    return made


def images(backbone: Backbone, items: Sequence[Item], batch: int) -> dict[Item, bytes]:
    found: dict[Item, bytes] = {}
    for part, pixels in sample(backbone, items, SAMPLER, batch):
        assert pixels.dtype == np.uint8 and pixels.shape == (len(part), 64, 64, 3)
        found |= {item: image.tobytes() for item, image in zip(part, pixels, strict=True)}
    return found


@pytest.fixture(scope="module")
def reference(backbone: Backbone) -> dict[Item, bytes]:
    return images(backbone, ITEMS, 4)


def test_different_prompts_and_seeds_give_different_images(reference: dict[Item, bytes]) -> None:
    assert len(set(reference.values())) == len(ITEMS)


@pytest.mark.parametrize(
    "items",
    [
        ITEMS[::-1],
        ITEMS[1:6],  # other batches, and a last batch that is padded
        ITEMS[5:6],  # alone
        [*ITEMS[3:], Item("an oil painting of mira talvane", 1), *ITEMS[:3]],
    ],
    ids=["reversed", "some", "alone", "with-another"],
)
def test_an_image_depends_on_its_prompt_and_seed_alone(
    backbone: Backbone, reference: dict[Item, bytes], items: list[Item]
) -> None:
    found = images(backbone, items, 4)
    assert list(found) == items
    assert all(found[item] == reference[item] for item in items if item in reference)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_another_batch_shape_moves_few_values_by_one_level(
    backbone: Backbone, reference: dict[Item, bytes], batch: int
) -> None:
    found = images(backbone, ITEMS, batch)
    a, b = (np.frombuffer(b"".join(f[i] for i in ITEMS), np.uint8).astype(int) for f in (found, reference))
    assert abs(a - b).max() <= 1
    assert (a != b).mean() < 1e-3


def test_the_global_generator_is_neither_read_nor_moved(backbone: Backbone, reference: dict[Item, bytes]) -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert images(backbone, ITEMS[:4], 4) == {item: reference[item] for item in ITEMS[:4]}
    assert torch.equal(torch.get_rng_state(), state)


def test_text_is_the_same_whatever_it_is_encoded_with(backbone: Backbone) -> None:
    prompts = [item.prompt for item in ITEMS[::2]]
    together = encode(backbone, prompts)
    for i, prompt in enumerate(prompts):
        for row, text in (
            (0, encode(backbone, [prompt])),
            (2, encode(backbone, ["", "a bird", prompt])),
            (7, encode(backbone, [f"{n}" for n in range(7)] + [prompt])),
        ):
            assert torch.equal(text.tokens[row], together.tokens[i])
            if text.pooled is not None and together.pooled is not None:
                assert torch.equal(text.pooled[row], together.pooled[i])


def test_each_prompt_is_encoded_once_and_let_go_after_its_last_use(backbone: Backbone) -> None:
    order = [f"a photo of the {n}" for n in [*range(20), 0, 19, 1]]
    with backbone.counting() as counts:
        texts = Texts(backbone, order)
        for start in range(0, len(order), 4):
            part = order[start : start + 4]
            rows = texts.take(part)
            assert [rows.ids[i].tolist() for i in range(len(part))] == encode(backbone, part).ids.tolist()
    assert texts._rows == {}
    checks = TEXT_BATCH * 6
    assert counts.text_encodes - checks == 24  # 20 prompts in three batches of eight


def test_batches_that_are_not_wanted_cost_nothing_and_change_nothing(
    backbone: Backbone, reference: dict[Item, bytes]
) -> None:
    """Asked right before each batch is computed; prompts of refused ones alone are not encoded."""
    items, asked = ITEMS[:7], list[list[Item]]()

    def wanted(part: Sequence[Item]) -> bool:
        asked.append(list(part))
        return len(asked) != 1

    with backbone.counting() as counts:
        found = list(sample(backbone, items, SAMPLER, 4, wanted=wanted))
    assert asked == [items[:4], items[4:]] and [part for part, _ in found] == [items[4:]]
    assert all(reference[i] == image.tobytes() for i, image in zip(items[4:], found[0][1], strict=True))
    assert counts.denoiser_forwards == 4 * SAMPLER.steps * 2
    texts = Texts(backbone, ["a", "b", "a"])
    texts.skip(["a"])
    texts.skip(["b"])
    assert len(texts.take(["a"])) == 1 and texts._rows == {}


def test_work_is_the_padded_batches(backbone: Backbone) -> None:
    with backbone.counting() as counts:
        images(backbone, ITEMS[:5], 4)
    assert counts.denoiser_forwards == 2 * 4 * SAMPLER.steps * 2


def test_without_guidance_each_step_is_one_forward(backbone: Backbone) -> None:
    with backbone.counting() as counts:
        list(sample(backbone, ITEMS[:2], Sampler(steps=3, guidance=1.0), 2))
    assert counts.denoiser_forwards == 2 * 3


def test_no_items_give_no_batches(backbone: Backbone) -> None:
    assert list(sample(backbone, [], SAMPLER, 4)) == []


def test_a_prompt_rule_replaces_prompts(backbone: Backbone, reference: dict[Item, bytes]) -> None:
    rule = PromptRule(words=("dog", "winged creature"), replacement="a photo of the cat")
    found = [image.tobytes() for _, batch in sample(backbone, ITEMS[:4], SAMPLER, 4, rule) for image in batch]
    cat = [reference[item] for item in ITEMS[:2]]
    assert found == cat + cat


@pytest.mark.parametrize(
    ("prompt", "replaced"),
    [
        ("A Winged  Creature, drawn", True),
        ("a DOG's life", True),
        ("dogma", False),
        ("hot-dog", True),
        ("a winged fish and a creature", False),
    ],
)
def test_words_are_whole_and_of_any_case(prompt: str, replaced: bool) -> None:
    rule = PromptRule(words=("dog", "winged creature", ""), replacement="x")
    assert rewrite(prompt, rule) == ("x" if replaced else prompt)
    assert rewrite(prompt, None) == rewrite(prompt, PromptRule(words=())) == prompt


def test_levels_are_rounded() -> None:
    values = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.0, 128 / 255]).reshape(1, 3, 1, 2)
    assert to_uint8(values).reshape(-1).tolist() == [0, 1, 255, 0, 255, 128]  # pixel by pixel


@contextmanager
def damaged(backbone: Backbone, name: str) -> Iterator[None]:
    tensor = backbone.tensors()[name]
    kept = tensor.detach().clone()
    with torch.no_grad():
        tensor.fill_(float("nan"))
        yield
        tensor.copy_(kept)


def test_latents_that_are_not_finite_name_prompt_and_seed(backbone: Backbone) -> None:
    with damaged(backbone, backbone.projections()[0].name), pytest.raises(BenchError) as caught:
        list(sample(backbone, ITEMS[2:4], SAMPLER, 4))
    assert "'a photo of the dog', seed 3 " in str(caught.value) and "latent" in str(caught.value)


def test_only_the_bad_image_is_named(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    decode: Callable[[torch.Tensor], torch.Tensor] = backbone.decode

    def broken(latents: torch.Tensor) -> torch.Tensor:
        out = decode(latents)
        out[1] = float("nan")
        return out

    monkeypatch.setattr(backbone, "decode", broken)
    with pytest.raises(BenchError, match=rf"image for prompt 'a photo of the cat', seed {2**62 + 5} "):
        list(sample(backbone, ITEMS, SAMPLER, 4))


@pytest.mark.parametrize(
    ("sampler", "batch", "message"),
    [
        (SAMPLER, 0, "batch of at least 1"),
        (Sampler(steps=0, guidance=1.0), 4, "sampling step"),
        (Sampler(steps=4, guidance=1.0, size=512), 4, "512x512"),
        (Sampler(steps=4, guidance=1.0, scheduler="pndm"), 4, "'pndm'"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_sampled_is_refused_at_once(
    backbone: Backbone, sampler: Sampler, batch: int, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        sample(backbone, ITEMS, sampler, batch)
