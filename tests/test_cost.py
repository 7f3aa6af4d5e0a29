"""What a plan takes: operations against known counts, times against a `costs.json` with known numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmark import cli, cost, device
from benchmark.plan import make_plan, plan_json

CELLS: dict[str, Any] = {
    "none.erase_x.seed0": {
        "images": {"made": 10, "seconds": 4.0, "denoiser_forwards": 200},
        "scores": {"seconds": 0.5},
    },
    "uce.erase_x.seed0": {
        "edit": {"uce": {"seconds": 1.0}},
        "images": {"made": 10, "seconds": 6.0, "denoiser_forwards": 300},
        "scores": {"seconds": 1.5},
    },
    "uce.erase_y.seed0": {"edit": {"uce": {"seconds": 3.0}}},  # stopped after its edit
    "grey.erase_x.seed0": {"edit": {"grey": {"seconds": 0.0}}, "images": {"made": 20, "seconds": 0.1}},
}


def costs(folder: Path, **machine: Any) -> Path:
    path = folder / "costs.json"
    here = {"device": "cpu", "threads": device.threads(), **machine}
    path.write_text(json.dumps({"schema": 1, "machine": here, "cells": CELLS}))
    return path


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "kind", lambda: "cpu")


# --- time -------------------------------------------------------------------------------------------------------------
def test_an_earlier_run_tells_what_things_take(tmp_path: Path) -> None:
    """10 s for 500 forwards; 2 s for 20 scored images; edits by method."""
    found = cost.earlier(costs(tmp_path))
    assert found is not None
    assert (found.forward_s, found.score_s, found.edits_s) == (0.02, 0.1, {"uce": 2.0, "grey": 0.0})
    assert "costs.json" in found.source


@pytest.mark.parametrize("machine", [{"threads": 77}, {"device": "NVIDIA H100 80GB HBM3"}])
def test_times_of_another_device_or_number_of_threads_do_not_count(machine: dict[str, Any], tmp_path: Path) -> None:
    assert cost.earlier(costs(tmp_path, **machine)) is None


@pytest.mark.parametrize("text", [None, "", "[]", '{"machine": 3, "cells": {}}', '{"machine": {}, "cells": [1]}'])
def test_without_costs_there_is_no_time(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "costs.json").write_text(text)
    assert cost.earlier(tmp_path / "costs.json") is None


def test_plan_says_which_time_it_is(tmp_path: Path) -> None:
    told = ["plan", "smoke", "--methods", "none,uce,esd", "--out", str(tmp_path)]
    before = CliRunner().invoke(cli.app, told)
    assert before.exit_code == 0 and "not yet measured here; --cost tries a batch" in before.output
    costs(tmp_path)
    after = CliRunner().invoke(cli.app, told)
    assert "from an earlier run here (costs.json); without edits of esd" in after.output
    forecast = json.loads(CliRunner().invoke(cli.app, [*told, "--json"]).output)
    images = sum(n["images"]["total"] for n in forecast["by_method"].values())
    edits = 2.0 * 2
    assert forecast["seconds"] == pytest.approx(forecast["denoiser_forwards"] * 0.02 + images * 0.1 + edits, abs=2)
    assert forecast["seconds_without"] == ["edits of esd"]


def test_a_calibration_times_a_batch_of_the_plan_s_own_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of 0.6 s over a batch of 20 with guidance: 0.015 s a forward; 0.4 s besides, 0.02 s an image."""
    plan = make_plan("smoke", model="random-unet", methods=["none"])
    timed: list[int] = []

    def took(model: Any, asked: Any, steps: int) -> float:
        timed.append(steps)
        return 0.4 + 0.6 * steps

    monkeypatch.setattr(cost, "_timed", took)
    found = cost.calibrated(plan)
    assert found is not None and timed == [1, 1, 3] and plan.batch == 20
    assert (found.forward_s, found.image_s) == (pytest.approx(0.015), pytest.approx(0.02))
    assert plan_json(plan, calibration=found)["seconds_without"] == ["scores"]


def test_a_batch_is_really_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmark.backbones.random_models import random_unet

    model, plan = random_unet(), make_plan("smoke", model="random-unet", methods=["none"], batch=2)
    with model.counting() as counts:
        assert cost._timed(model, plan, 3) > 0
    assert (counts.denoiser_forwards, counts.decodes) == (2 * 2 * 3, 2)


def test_without_weights_nothing_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert cost.calibrated(make_plan("smoke", model="sd14", methods=["none"])) is None


# --- operations -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("model", "size", "forward", "decode"),
    [
        ("sd14", 512, 0.803e12, 2.515e12),  # counted by others: 339 G multiplications with additions without attention
        ("flux-dev", 512, 21.50e12, 2.515e12),
    ],
)
def test_operations_of_known_models_need_no_weights(
    model: str, size: int, forward: float, decode: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    found = cost.flops(model, size)
    assert found is not None
    assert found.forward == pytest.approx(forward, rel=1e-3) and found.decode == pytest.approx(decode, rel=1e-3)


def test_operations_of_a_small_model_by_hand() -> None:
    """Four times the pixels: convolutions and linear layers take four times as much, attention up to sixteen."""
    small, large = cost.flops("random-unet", 64), cost.flops("random-unet", 128)
    assert small is not None and large is not None
    assert 4 <= large.forward / small.forward < 16 and 4 <= large.decode / small.decode < 16
    assert small.text == large.text


def test_operations_of_a_plan_add_up() -> None:
    plan = make_plan("smoke", model="random-unet", methods=["none", "uce"])
    forecast, per = plan_json(plan), cost.flops("random-unet", 64)
    found = cost.operations(plan, forecast)
    assert found is not None and per is not None
    images = forecast["denoiser_forwards"] // plan.form.sampler.forwards
    prompts = len({i.prompt for c in plan.cells for i in c.items})
    expected = forecast["denoiser_forwards"] * per.forward + images * per.decode + prompts * per.text
    assert (found["total"], found["without"]) == (expected, ["edits"])
