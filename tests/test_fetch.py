"""Weights come from a hub only when asked for; what no hub has is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmark import fetch as fetching
from benchmark.errors import BadInput, Missing
from benchmark.plan import make_plan
from benchmark.run import RunOptions, execute


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("ERASURE_BENCH_MODELS", raising=False)


def test_only_the_model_is_asked_for_and_no_pickle():
    asked: list[tuple[str, Sequence[str]]] = []

    def download(hub: str, patterns: Sequence[str]) -> str:
        asked.append((hub, patterns))
        return "somewhere"

    # The stand-in leaves nothing behind, so the model and the judge are still lacking.
    with pytest.raises(Missing, match="not on a hub that is known here: weights of sd14"):
        fetching.fetch(make_plan("objects", model="sd14"), download=download)
    assert [hub for hub, _ in asked] == ["CompVis/stable-diffusion-v1-4"]
    assert not any(p.endswith((".bin", ".ckpt", ".pt")) for p in asked[0][1])


def test_a_run_downloads_nothing_if_it_could_not_run_all_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Weights of Stable Diffusion alone give no board: the judge is lacking too."""
    monkeypatch.setattr(fetching, "snapshot", lambda hub, patterns: pytest.fail("downloaded"))
    assert not fetching.enough(make_plan("objects", model="sd14"))
    with pytest.raises(Missing, match="clip-vitb32"):
        execute(RunOptions(suite="objects", model="sd14", out=tmp_path / "out", download=True))
    assert not (tmp_path / "out").exists()


def test_nothing_is_downloaded_when_all_is_there():
    def never(hub: str, patterns: Sequence[str]) -> str:
        raise AssertionError("downloaded")

    assert fetching.fetch(make_plan("smoke"), download=never) == []


def test_a_model_without_a_hub_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmark.models.candidates", lambda spec: [Path("nowhere")])
    with pytest.raises(BadInput, match="testbed is on no hub"):
        fetching.fetch(make_plan("smoke"))


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def unreachable(*args: object, **kwargs: object) -> str:
        raise OSError("no route\nsecond line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(Missing, match="^cannot download some/model: no route; accept"):
        fetching.snapshot("some/model", ["*.json"])
