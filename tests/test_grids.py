"""Image grids: the same prompts and seeds in every row, and the same bytes every time."""

import io

import numpy as np
import pytest
from PIL import Image

from benchmark.errors import BadInput
from benchmark.tables import grids


def record(method, role="erasure", request="erase:cat", seeds=range(4), status="ok"):
    rows = {"role": [], "concept": [], "prompt": [], "seed": []}
    for seed in seeds:
        for what, concept, word in (("erased", "cat", "cat"), ("synonym", "cat", "kitten"), ("kept", "dog", "dog")):
            values = (what, concept, f"a photo of the {word}", seed)
            for column, value in zip(rows, values, strict=True):
                rows[column].append(value)
    labelled = {"label": method, "role": role}
    return {"method": labelled, "request": {"name": request, "seed": 0}, "status": status, "rows": rows}


def load(record, index):
    """A colour that tells role and seed."""
    colour = [40 * record["rows"]["seed"][index], 90, 200 if record["rows"]["role"][index] == "kept" else 30]
    return np.full((64, 64, 3), colour, np.uint8)


def test_columns_are_common_to_all_methods_and_spread_over_concepts():
    a, b = record("none", "baseline"), record("esd", seeds=(2, 3, 4))
    chosen = grids.choose([a, b])
    assert {c.seed for c in chosen} == {2, 3}
    assert [c.role for c in chosen] == ["erased"] * 2 + ["synonym"] * 2 + ["kept"] * 2


def test_concepts_come_before_repeats():
    columns = [grids.Column("kept", c, c, s) for c in "ab" for s in (0, 1)]
    assert [(c.concept, c.seed) for c in grids._spread(columns)] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]


def test_files(tmp_path):
    made = [record("esd"), record("none", "baseline"), record("grey", "control"), record("bad", status="failed")]
    made += [record("esd", request="erase:dog/../x")]
    written = grids.draw(made, load, tmp_path)
    assert [p.name for p in written] == ["erase_cat.png", "erase_dog_.._x.png"]
    first = [p.read_bytes() for p in written]
    assert [p.read_bytes() for p in grids.draw(made[::-1], load, tmp_path)] == first
    image = Image.open(io.BytesIO(first[0]))
    columns, rows = 4 + 3 + 4, 3
    assert image.height >= rows * 128 and image.width >= columns * 128


def test_pixels_are_enlarged_whole_and_rows_are_in_order():
    """Each record is one flat colour: from top to bottom unedited, method, control."""
    levels = {"none": 10, "esd": 120, "grey": 250}
    made = [record("grey", "control"), record("esd"), record("none", "baseline")]
    sheet = grids.grid(made, lambda r, i: np.full((64, 64, 3), levels[r["method"]["label"]], np.uint8))
    column = np.asarray(sheet)[:, -grids.PAD - 64]
    runs = [v for v in (10, 120, 250) if (column == v).all(axis=1).sum() == 128]
    assert runs == [10, 120, 250]
    order = [int(np.argmax((column == v).all(axis=1))) for v in runs]
    assert order == sorted(order)


def test_large_images_are_reduced():
    assert grids._size(512, 512) == (256, 256)
    assert grids._size(64, 64) == (128, 128)
    assert grids._size(200, 100) == (200, 100)


def test_a_prompt_of_two_lines_is_drawn():
    made = record("none", "baseline")
    made["rows"]["prompt"] = [p.replace(" of ", "\nof ") for p in made["rows"]["prompt"]]
    assert grids.grid([made], load).height > 128


def test_nothing_in_common_is_said():
    with pytest.raises(BadInput, match="share none"):
        grids.grid([record("none", seeds=(1,)), record("esd", seeds=(2,))], load)
