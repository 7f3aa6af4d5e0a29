"""The catalogue to be read: what a card must tell, and that it fits a terminal."""

from __future__ import annotations

from functools import cache

import pytest

from benchmark import cards, catalogue

NAMES = ["uce", "uce@2025", "mace", "none", "grey", "objects", "explicit", "smoke", "testbed", "sd14", "random-unet"]
NAMES += ["testbed/top1", "nudenet-3.4.2@0.6/images", "clean-fid", "i2p", "cifar10", "testbed-kid", "coco30k"]


found = cache(catalogue.find)


def shown(name: str, width: int | None = None) -> list[str]:
    return cards.card(*found(name), width)


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("name", NAMES)
def test_a_card_fits_and_shows_no_raw_values(name: str, width: int):
    made = shown(name, width)
    for line in made[:-1]:  # the last is a command to copy
        assert len(line) <= width or len(max(line.split(), key=len)) > width // 3, "a word that cannot be broken"
    text = "\n".join(made)
    assert text.startswith(f"{name} · ") and "Try: erasure-bench " in made[-1]
    assert "{'" not in text and "None}" not in text and "[]" not in text


@pytest.mark.parametrize("name", NAMES)
def test_wrapping_loses_no_word(name: str):
    assert " ".join("\n".join(shown(name, 60)).split()) == " ".join("\n".join(shown(name)).split())


def test_a_method_tells_fields_with_meaning_default_and_preset():
    text = "\n".join(shown("uce@2025"))
    assert 'rows = "last" (default "aligned")' in text and "λ: pulls the solve" in text
    assert "file    methods/uce.py" in text and "arXiv:2308.14761" in text
    assert "testbed, any kind" in "\n".join(shown("esd")) and "testbed, any kind" not in "\n".join(shown("esd@paper"))


def test_every_field_that_is_explained_in_its_file_is_explained():
    """The reader of class bodies finds the text below a field, whatever stands between fields."""
    kind, entry = catalogue.find("esd")
    assert set(entry["fields_help"]) == set(entry["fields"])
    assert "η" in " ".join(entry["fields_help"].values())


def test_a_suite_tells_both_forms_and_counts_images():
    text = "\n".join(shown("objects"))
    assert "Embedded form" in text and "Paper form" in text
    assert "900 a method: 180 erased, 180 synonym, 540 kept" in text
    assert "3, of 1 at once: erase:truck, erase:horse, erase:bird" in text


def test_what_is_not_here_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path):
    found.cache_clear()
    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "ERASURE_BENCH_DATA", "ERASURE_BENCH_MODELS"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("ERASURE_BENCH_I2P", raising=False)
    assert "4.3 GB, not here" in "\n".join(shown("sd14"))
    assert "4,703 prompts; 1.33 MB; licence MIT" in (text := "\n".join(shown("i2p"))) and "not here" in text
    found.cache_clear()


def test_the_list_has_a_line_each_and_wraps_on_terminals_only():
    entries = catalogue.catalogue()
    whole = cards.lines(entries)
    assert len(whole) == sum(map(len, entries.values())) + 2 * len(entries) - 1
    wrapped = cards.lines(entries, 80)
    assert max(map(len, wrapped)) <= 80 and len(wrapped) > len(whole)
    assert " ".join(" ".join(wrapped).split()) == " ".join(" ".join(whole).split())
