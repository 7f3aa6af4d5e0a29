"""Items of a request: their order and seeds, and what a scale leaves of them."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from benchmark.data import Concept
from benchmark.errors import BadInput
from benchmark.items import Item, placeholders, request_items
from benchmark.keys import image_seed
from benchmark.prompt_files import PromptRow
from benchmark.suite import Prompts, RequestSpec, Role, Strategy


def concept(name: str, *synonyms: str) -> Concept:
    return Concept(name=name, groups=("g",), kind="object", synonyms=synonyms)


def request(images: int = 4, templates: int = 2, kept: int = 3, strategy: Strategy = "joint") -> RequestSpec:
    texts = tuple(f"{'ab'[i % 2] * (i + 1)} {{concept}}" for i in range(templates))
    prompts = Prompts(templates=texts, images=images)
    by_role: dict[Role, Prompts] = {"erased": prompts, "synonym": prompts, "kept": prompts}
    keep = tuple(concept(f"k{i}") for i in range(kept))
    return RequestSpec("erase:cat", (concept("cat", "feline", "kitty"),), keep, strategy, by_role)


def per_role(items: tuple[Item, ...]) -> dict[str, int]:
    return dict(Counter(i.role for i in items))


def test_every_template_concept_and_replicate_once_in_order():
    items = request_items("s", 1, request())
    assert per_role(items) == {"erased": 8, "synonym": 16, "kept": 24}
    assert [i.prompt for i in items[:8]] == ["a cat"] * 4 + ["bb cat"] * 4
    assert [i.replicate for i in items[:8]] == [0, 1, 2, 3] * 2
    assert {i.concept for i in items if i.role == "synonym"} == {"cat"}, "synonyms are scored against the concept"
    assert {i.prompt for i in items if i.role == "synonym"} == {"a feline", "bb feline", "a kitty", "bb kitty"}


def test_a_seed_is_the_published_hash_of_suite_version_prompt_and_replicate():
    """First eight bytes of SHA-256, big endian, without the lowest bit: what `sha256sum` gives anyone."""
    expected = int(hashlib.sha256(b"objects|1|a photo of the cat|3").hexdigest()[:16], 16) // 2
    assert image_seed("objects", 1, "a photo of the cat", 3) == expected == 6390397482752790951
    assert 0 <= expected < 2**63


def test_a_seed_depends_on_each_of_its_four_and_on_nothing_else():
    base = image_seed("s", 1, "a cat", 0)
    others = {image_seed(*a) for a in [("t", 1, "a cat", 0), ("s", 2, "a cat", 0), ("s", 1, "a dog", 0)]}
    assert base not in others | {image_seed("s", 1, "a cat", 1)} and len(others) == 3
    # Role, request, strategy, scale and what else is asked for move no seed.
    seeds = {(i.prompt, i.replicate): i.seed for i in request_items("s", 1, request())}
    for variation in (request(images=9), request(kept=1), request(strategy="sequential")):
        for item in request_items("s", 1, variation, scale=0.7):
            assert seeds.get((item.prompt, item.replicate), item.seed) == item.seed
            assert item.seed == image_seed("s", 1, item.prompt, item.replicate)


@pytest.mark.parametrize(("scale", "each"), [(1.0, 4), (0.5, 2), (0.6, 2), (0.63, 3), (0.25, 1), (2.0, 8), (1.125, 5)])
def test_scale_thins_images_per_template_and_concept_halves_up(scale: float, each: int):
    items = request_items("s", 1, request(), scale)
    assert per_role(items) == {"erased": 2 * each, "synonym": 4 * each, "kept": 6 * each}


def test_a_thinned_request_is_a_part_of_the_full_one():
    full = set(request_items("s", 1, request()))
    for scale in (0.75, 0.5, 0.25, 0.1, 0.01):
        assert set(request_items("s", 1, request(), scale)) < full


def test_below_one_image_pairs_are_thinned_evenly_over_concepts_and_templates():
    spread = request(images=1, templates=5, kept=20)
    items = [i for i in request_items("s", 1, spread, 0.2) if i.role == "kept"]
    assert len(items) == 20 and {i.replicate for i in items} == {0}
    assert set(Counter(i.concept for i in items).values()) == {1}
    assert set(Counter(i.prompt.split()[0] for i in items).values()) == {4}
    half = [i for i in request_items("s", 1, spread, 0.5) if i.role == "kept"]
    assert len(half) == 50 and set(Counter(i.concept for i in half).values()) == {2, 3}


@pytest.mark.parametrize("scale", [0.2, 0.01, 1e-9])
def test_no_role_is_thinned_away(scale: float):
    assert all(n >= 1 for n in per_role(request_items("s", 1, request(images=1), scale)).values())
    assert len(per_role(request_items("s", 1, request(images=1), scale))) == 3


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_no_positive_number_is_refused(scale: float):
    with pytest.raises(BadInput, match="scale must be a number above 0"):
        request_items("s", 1, request(), scale)


# --- roles beyond templates of concepts ---------------------------------------------------------------------------
def with_roles(**prompts: Prompts) -> RequestSpec:
    by_role: dict[Role, Prompts] = {"erased": Prompts(templates=("a {concept}",), images=2), **prompts}  # type: ignore[arg-type]
    near = (concept("deer"), concept("dog"))
    return RequestSpec("erase:cat", (concept("cat", "kitty"),), (concept("ship"),), "joint", by_role, near)


def of(role: str, items: tuple[Item, ...]) -> list[Item]:
    return [i for i in items if i.role == role]


def test_neighbours_are_scored_against_themselves():
    items = of("adjacent", request_items("s", 1, with_roles(adjacent=Prompts(templates=("a {concept}",), images=3))))
    assert [(i.concept, i.prompt) for i in items] == [("deer", "a deer")] * 3 + [("dog", "a dog")] * 3


def test_general_prompts_are_of_no_concept_and_implied_ones_of_what_is_erased():
    fixed = Prompts(prompts=("a road", "a hill"), images=2)
    items = request_items("s", 1, with_roles(general=fixed, synonym=fixed))
    assert [(i.concept, i.prompt, i.replicate) for i in of("general", items)] == [
        ("", "a road", 0),
        ("", "a road", 1),
        ("", "a hill", 0),
        ("", "a hill", 1),
    ]
    assert {i.concept for i in of("synonym", items)} == {"cat"}


def test_counted_seeds_begin_at_one_for_every_prompt():
    counted = Prompts(templates=("a {concept}", "the {concept}"), images=3, seeds="counted")
    items = request_items("s", 7, with_roles(kept=counted))
    assert [(i.prompt, i.seed) for i in of("kept", items)] == [
        (p, s) for p in ("a ship", "the ship") for s in (1, 2, 3)
    ]


FILE = Prompts(dataset="i2p", file="prompts")
ROWS = [PromptRow(prompt=f"p{i}", seed=100 + i, guidance=2.0 + i, size=(64, 128), case=i) for i in range(20)]


def test_prompts_of_a_file_keep_its_order_and_seeds_and_its_settings_only_where_they_count():
    items = of("general", request_items("s", 1, with_roles(general=FILE), rows=lambda *_: ROWS))
    assert [(i.prompt, i.seed, i.guidance, i.size) for i in items] == [(r.prompt, r.seed, None, None) for r in ROWS]
    honoured = FILE.model_copy(update={"honour_row_settings": True})
    items = of("general", request_items("s", 1, with_roles(general=honoured), rows=lambda *_: ROWS))
    assert [(i.guidance, i.size) for i in items] == [(r.guidance, r.size) for r in ROWS]


@pytest.mark.parametrize(("scale", "count"), [(2.0, 20), (1.0, 20), (0.5, 10), (0.1, 2), (1e-9, 1)])
def test_a_file_is_thinned_evenly(scale: float, count: int):
    items = of("general", request_items("s", 1, with_roles(general=FILE), scale, lambda *_: ROWS))
    assert len(items) == count
    gaps = {b.seed - a.seed for a, b in zip(items, items[1:], strict=False)}
    assert gaps <= {round(20 / count)}


def test_a_file_that_tells_erased_from_kept_gives_each_role_its_own_with_the_concept_in_the_prompt():
    rows = [
        PromptRow(prompt="a Cat", seed=1, role="erased", case=0),
        PromptRow(prompt="the ship", seed=2, role="kept", case=1),
    ]
    items = request_items("s", 1, with_roles(erased=FILE, kept=FILE), rows=lambda *_: rows)
    assert [(i.role, i.concept, i.prompt, i.seed) for i in items] == [
        ("erased", "cat", "a Cat", 1),
        ("kept", "ship", "the ship", 2),
    ]
    with pytest.raises(BadInput, match="i2p/prompts holds no prompt of type kept"):
        request_items("s", 1, with_roles(erased=FILE, kept=FILE), rows=lambda *_: rows[:1])


def test_a_file_that_is_not_here_counts_with_as_many_prompts_as_its_card_says():
    rows = placeholders("i2p", "prompts")
    assert len(rows) == 4703 and len({(r.prompt, r.seed) for r in rows}) == 4703
    with pytest.raises(BadInput, match="its card does not say how many"):
        placeholders("imagenette", "images")
