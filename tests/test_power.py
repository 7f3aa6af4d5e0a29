"""The command `power`: before a run from rates, after a run from its records."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmark import cli, stats
from benchmark.errors import BadInput
from benchmark.metrics.summary import summarise
from benchmark.tables import board as boards
from benchmark.tables import power as powers

TOP1 = "testbed/top1"


def call(*arguments):
    return CliRunner().invoke(cli.app, ["power", *arguments])


def record(method, hits, times=1):
    """`hits` of 60 erased and 60 kept images a method, over 12 prompts each; `times` as many of both."""
    rows = {c: [] for c in ("role", "concept", "prompt", "replicate", "seed", "image", "valid")}
    values = []
    for role, k in zip(("erased", "kept"), hits, strict=True):
        difficulty = np.random.default_rng(len(role)).permutation(60)
        for i in range(60 * times):
            for c, v in zip(rows, (role, role, f"{role} {i % (12 * times)}", i, i, "", True), strict=True):
                rows[c].append(v)
            values.append(float(difficulty[i // times] < k))
    rows["values"] = {TOP1: values}
    return {
        **{"suite": "objects", "suite_version": 1, "form": "embedded", "scale": 1.0, "status": "ok", "reason": None},
        "model": {"name": "testbed", "hash": "ab", "family": "unet-epsilon"},
        "method": {"label": method, "role": "baseline" if method == "none" else "erasure"},
        "request": {"name": "erase:cat", "erase": [], "keep": [], "strategy": "joint", "seed": 0},
        **{"primary": TOP1, "headline": "H_c", "rows": rows},
        "protocols": {TOP1: {"version": 1, "evaluator": "testbed-a", "evaluator_hash": ""}},
        "summary": summarise(rows, primary=TOP1, headline_id="H_c", protocols=[TOP1]),
    }


HITS = {"none": (58, 55), "first": (3, 54), "near": (5, 53), "far": (40, 30)}


def made(times=1):
    return [record(m, h, times) for m, h in HITS.items()]


# --- before a run ---------------------------------------------------------------------------------------------
def test_images_for_a_difference():
    told = json.loads(call("--rate", "0.1", "--difference", "0.05", "--json").output)
    assert told["images"] == stats.images_needed(0.1, 0.05) and told["power"] == 0.8
    clustered = json.loads(
        call("--rate", "0.1", "--difference", "0.05", "--per-prompt", "11", "--alike", "0.1", "--json").output
    )
    assert clustered["images"] == 2 * told["images"], "eleven images of a prompt at .1 count half"
    said = call("--rate", "0.1", "--difference", "0.05").output
    assert f"{told['images']:,} images a method show a difference of +5 points with power 80%" in said


def test_the_difference_that_images_show_and_the_power_of_both():
    down, up = stats.detectable(0.5, 100)
    told = json.loads(call("--rate", "0.5", "--images", "100", "--json").output)
    assert (told["drop"], told["rise"]) == (down, up)
    said = call("--rate", "0.05", "--images", "60").output
    assert "rise of 18.8 points" in said and "drop" not in said
    told = json.loads(call("--rate", "0.1", "--difference", "0.05", "--images", "400", "--json").output)
    assert told["power"] == pytest.approx(stats.paired_power(400, 0.1, 0.05))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "expected a run or --rate"),
        (("runs/x", "--rate", "0.1"), "expected a run or --rate"),
        (("--rate", "0.1"), "--difference"),
        (("--rate", "10", "--difference", "0.1"), "fractions"),
        (("--rate", "0.1", "--difference", "0.1", "--power", "80"), "--power"),
        (("--rate", "0.1", "--difference", "0"), "larger"),
        (("nowhere",), "nowhere"),
    ],
)
def test_bad_input(arguments, said):
    result = call(*arguments)
    assert result.exit_code == 2 and said in result.stderr and not result.stdout


# --- after a run ----------------------------------------------------------------------------------------------
def test_a_run_tells_what_its_images_show():
    found = powers.resolution(made())
    assert found["best"] == "first" and [m["method"] for m in found["methods"]] == ["near", "far"]
    near, far = found["methods"]
    assert near["gap"] < near["detectable"] and near["times"] == pytest.approx((near["detectable"] / near["gap"]) ** 2)
    assert far["gap"] > far["detectable"] and far["times"] < 1, "fewer would do"
    rows = {r["method"]: r for r in boards.build(made())["rows"] if r["request"] == "mean"}
    assert rows["near"]["tied"] and not rows["far"]["tied"], "as the paired test has it"
    assert "times the images would show its gap" in "\n".join(powers.lines(found))


def test_four_times_the_prompts_show_half_the_difference():
    near, four = (powers.resolution(made(times))["methods"][0] for times in (1, 4))
    assert four["gap"] == pytest.approx(near["gap"])
    assert four["detectable"] == pytest.approx(near["detectable"] / 2, rel=0.25)


def test_a_wanted_difference_takes_the_place_of_the_gap():
    found = powers.resolution(made(), difference=0.02)
    for m in found["methods"]:
        assert m["times"] == pytest.approx((m["detectable"] / 0.02) ** 2)
    stricter = powers.resolution(made(), difference=0.02, power=0.95)
    assert all(a["times"] < b["times"] for a, b in zip(found["methods"], stricter["methods"], strict=True))
    with pytest.raises(BadInput, match="above 0"):
        powers.resolution(made(), difference=0.0)
    with pytest.raises(BadInput, match="two erasure methods"):
        powers.resolution(made()[:2])
