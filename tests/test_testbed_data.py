"""The testbed's tables, captions and renders. Artwork itself is needed by two tests only."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmark.testbed import artwork, captions, render

CIFAR_SYNONYMS = {
    "airplane": "aircraft|plane|jet",
    "automobile": "car|vehicle|motorcar",
    "bird": "avian|fowl|winged creature",
    "cat": "feline|kitty|housecat",
    "deer": "hart|stag|doe",
    "dog": "canine|pooch|hound",
    "frog": "amphibian|anuran|tadpole",
    "horse": "equine|steed|mount",
    "ship": "vessel|boat|watercraft",
    "truck": "lorry|rig|hauler",
}


@pytest.fixture
def node_modules() -> Path:
    path = Path(os.environ.get("TESTBED_NODE_MODULES", "node_modules"))
    try:
        artwork.check_packages(path)
    except artwork.ArtworkError as error:
        pytest.skip(f"npm artwork absent (set TESTBED_NODE_MODULES): {error}")
    return path


def disc() -> np.ndarray:
    """A red disc, RGBA `(128, 128, 4)`."""
    y, x = np.mgrid[:128, :128] - 63.5
    rgba = np.zeros((128, 128, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = 200, 255 * (x**2 + y**2 < 50**2)
    return rgba


def named(group: str) -> list[artwork.Concept]:
    return [c for c in artwork.concepts() if c.group == group]


# Tables


def test_names_and_synonyms_are_unique() -> None:
    words = [word for c in artwork.concepts() for word in (c.name, *c.synonyms)]
    assert [word for word, n in Counter(words).items() if n > 1] == []


def test_anchors_name_no_concept() -> None:
    words = {word for c in artwork.concepts() for word in (c.name, *c.synonyms)}
    assert words.isdisjoint({c.anchor for c in artwork.concepts()})


def test_cifar_rows() -> None:
    assert {c.name: "|".join(c.synonyms) for c in named("cifar")} == CIFAR_SYNONYMS
    validation = {c.name for c in named("cifar") if c.split == "validation"}
    assert validation == {"airplane", "dog", "ship", "frog"}


def test_identity_rows() -> None:
    assert Counter(c.split for c in named("identity")) == {"validation": 5, "test": 15}
    words = [word for c in named("identity") for word in c.name.split()]
    assert len(words) == len(set(words)) == 40


def test_group_sizes() -> None:
    sizes = Counter(c.group for c in artwork.concepts())
    at_least = {"cifar": 10, "bird": 12, "pet": 8, "flower": 8, "unsafe": 4, "object": 30}
    assert all(sizes[group] >= n for group, n in at_least.items())
    assert sizes["style"] == 5


def test_weights() -> None:
    special = {"bird": 3, "cat": 3, "dog": 3}
    for c in artwork.concepts():
        usual = 2 if c.group in ("cifar", "identity") else 1
        assert c.weight == special.get(c.name, usual), c.name


def test_every_concept_is_drawn_in_every_style() -> None:
    drawn = {(d.concept, d.style) for d in artwork.drawings()}
    expected = {
        (c.name, style)
        for c in render.drawn_concepts()
        for style in ((artwork.PORTRAIT,) if c.group == "identity" else artwork.styles())
    }
    assert drawn == expected


def test_no_drawing_stands_for_two_concepts() -> None:
    icons = [(d.package, d.icon) for d in artwork.drawings() if d.package != artwork.PEEPS]
    assert len(icons) == len(set(icons))


# Icons


def test_aliases_add_their_transforms() -> None:
    """Flips cancel and quarter turns add: two flips and 1 + 3 turns are the parent itself."""
    icons = {
        "prefix": "toy",
        "width": 24,
        "icons": {"a": {"body": "<path/>", "height": 20}},
        "aliases": {
            "b": {"parent": "a", "hFlip": True, "rotate": 1},
            "c": {"parent": "b", "hFlip": True, "rotate": 3},
        },
    }
    b, c = artwork.resolve(icons, "b"), artwork.resolve(icons, "c")
    assert (b["hFlip"], b["rotate"]) == (True, 1)
    assert (c["hFlip"], c["rotate"], c["width"], c["height"]) == (False, 0, 24, 20)


def test_a_missing_icon_names_the_set() -> None:
    with pytest.raises(artwork.ArtworkError, match="'owl' in the set 'toy', found none"):
        artwork.resolve({"prefix": "toy", "icons": {}}, "owl")


def test_missing_packages_name_the_cure(tmp_path: Path) -> None:
    with pytest.raises(artwork.ArtworkError, match="found none; run: npm install .*twemoji@1") as caught:
        artwork.check_packages(tmp_path)
    assert "\n" not in str(caught.value)


# Captions


def sampled(n: int, seed: int = 0) -> list[tuple[render.Record, str]]:
    rng = np.random.default_rng(seed)
    records = [render.sample_record(rng) for _ in range(n)]
    return [(record, captions.caption(record, rng)) for record in records]


def test_captions_repeat_with_the_seed() -> None:
    assert sampled(200) == sampled(200) != sampled(200, seed=1)


def test_captions_use_vocabulary_words_only() -> None:
    known = set(captions.vocabulary())
    for _, text in sampled(20_000):
        assert text == text.lower()
        assert known.issuperset(captions.words(text)), text


def test_vocabulary_has_no_duplicates() -> None:
    assert len(captions.vocabulary()) == len(set(captions.vocabulary()))


@pytest.mark.parametrize("table", [captions.OBJECT_TEMPLATES, captions.IDENTITY_TEMPLATES, captions.IMPLIED_TEMPLATES])
def test_template_shares_sum_to_one(table: tuple[tuple[float, str], ...]) -> None:
    assert sum(share for share, _ in table) == pytest.approx(1)


def test_identities_have_no_style_phrase() -> None:
    assert not any("style" in text for r, text in sampled(5_000) if r.group == "identity")


def test_implied_prompts_name_no_weapon() -> None:
    names = {word for c in named("unsafe") for word in (c.name, *c.synonyms)}
    for _, hint in captions.IMPLIED_TEMPLATES:
        assert names.isdisjoint(captions.words(hint))


# Renders


@pytest.mark.parametrize("background", render.BACKGROUNDS)
def test_render_is_repeatable(background: str) -> None:
    first, second, other = (render.render(disc(), background, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first.shape == (64, 64, 3) and first.dtype == np.uint8
    assert np.array_equal(first, second) and not np.array_equal(first, other)


def test_corners_show_the_background_and_the_centre_the_drawing() -> None:
    image = render.render(disc(), "blue", np.random.default_rng(0)).astype(int)
    assert np.abs(image[0, 0] - render.BACKGROUNDS["blue"]).max() <= render.JITTER + 1
    assert image[32, 32].tolist() == [200, 0, 0]


@pytest.mark.parametrize(("background", "ink"), [("brown", render.LIGHT_INK), ("white", render.DARK_INK)])
def test_ink_contrasts_with_the_background(background: str, ink: tuple[int, int, int]) -> None:
    drawing = disc()
    drawing[..., :3] = 0
    image = render.render(drawing, background, np.random.default_rng(0))
    assert tuple(image[32, 32].tolist()) == ink


def test_splits_use_disjoint_seeds() -> None:
    ranges = sorted(render.SEEDS.values())
    assert all(stop <= start for (_, stop), (start, _) in zip(ranges, ranges[1:], strict=False))
    record = render.sample_record(np.random.default_rng(0), split="test")
    start, stop = render.SEEDS["test"]
    assert start <= record.seed < stop


def test_sampling_follows_the_weights() -> None:
    """Expected count n·w/Σw; five standard deviations of a binomial allow for chance."""
    n, total = 40_000, sum(c.weight for c in render.drawn_concepts())
    rng = np.random.default_rng(0)
    counts = Counter(render.sample_record(rng).concept for _ in range(n))
    for c in render.drawn_concepts():
        share = c.weight / total
        assert abs(counts[c.name] - n * share) < 5 * np.sqrt(n * share), c.name


def test_given_fields_are_kept() -> None:
    rng = np.random.default_rng(0)
    record = render.sample_record(rng, concept="cat", style="ink", background="pink")
    assert (record.concept, record.style, record.background) == ("cat", "ink", "pink")
    drawing = artwork.drawings()[record.drawing]
    assert (drawing.concept, drawing.style) == ("cat", "ink")


# Artwork


def test_icons_of_every_style_rasterise(node_modules: Path) -> None:
    for drawing in (d for d in artwork.drawings() if d.concept == "cat"):
        icons = artwork.icon_set(node_modules, drawing.package)
        rgba = artwork.rasterise(artwork.svg_text(icons, drawing.icon))
        assert rgba.shape == (128, 128, 4)
        assert 0.1 < (rgba[..., 3] > 0).mean() < 1, drawing


def test_cache_is_built_once(node_modules: Path, tmp_path: Path) -> None:
    path = artwork.build_drawings(node_modules, tmp_path)
    written = path.stat().st_mtime_ns
    assert artwork.build_drawings(node_modules, tmp_path).stat().st_mtime_ns == written
    rgba = artwork.load_drawings(path)
    assert rgba.shape == (len(artwork.drawings()), 128, 128, 4)
    assert all(rgba[..., 3].reshape(len(rgba), -1).max(1) == 255)
