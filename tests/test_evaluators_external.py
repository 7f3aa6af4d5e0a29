"""An external command as a judge: what it is told, what it may answer, and all the ways in which it may fail."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmark.errors import BadInput
from benchmark.evaluators import external
from benchmark.evaluators.external import Answer, parse, reasons
from benchmark.metrics import evaluators
from benchmark.metrics.protocols import score

RED, BLUE = (200, 0, 0), (0, 0, 200)
NAMER = """
import json, sys
from PIL import Image
for line in sys.stdin:
    r, g, b = Image.open(line.strip()).getpixel((0, 0))
    label = "red" if r > 100 else "blue" if b > 100 else None
    print(json.dumps({"label": label, "score": 0.5}), flush=True)
"""


def judge(folder: Path, code: str, **settings: object):
    folder.mkdir(exist_ok=True)
    (folder / "judge.py").write_text(code)
    command = {"command": [sys.executable, "judge.py"], "labels": ["red", "blue"], **settings}
    (folder / "command.json").write_text(json.dumps(command))
    return evaluators.load("external/namer", folder)


def images(*colours: tuple[int, int, int]) -> np.ndarray:
    return np.stack([np.full((16, 16, 3), c, np.uint8) for c in colours])


def test_each_image_gets_its_own_answer(tmp_path: Path):
    found = judge(tmp_path, NAMER)
    raw = found.raw(images(RED, BLUE, (0, 90, 0), RED))
    assert raw["label"].tolist() == [0, 1, -1, 0] and raw["error"].tolist() == [0] * 4
    assert raw["score"].tolist() == [0.5] * 4 and reasons(raw) == [""] * 4
    got = score("external/namer/top1", raw, ["red"] * 4, [""] * 4, found).values
    assert got.tolist() == [1, 0, 0, 1]
    alone = found.raw(images(BLUE))
    assert alone["label"].tolist() == [1]
    assert {k: v.shape[1:] for k, v in found.raw(images(RED)[:0]).items()} == {k: v.shape[1:] for k, v in raw.items()}


def test_paths_are_told_as_they_are_without_a_shell(tmp_path: Path):
    folder = tmp_path / "a b; touch ran"
    assert judge(folder, NAMER).raw(images(RED))["label"].tolist() == [0]
    assert not (folder / "ran").exists() and not Path("ran").exists()


def test_failures_are_of_single_images_and_have_reasons(tmp_path: Path):
    code = """
import sys
answers = ['{"label": "red"}', 'no json', '{"error": "no such file"}', '{"label": "green"}', '[]',
           '{"label": "red", "score": "high"}', '{"label": "red", "score": NaN}']
lines = sys.stdin.read().splitlines()
print("\\n".join(answers))
print("out of luck", file=sys.stderr)
sys.exit(3)
"""
    raw = judge(tmp_path, code).raw(images(*[RED] * 8))
    assert raw["label"].tolist() == [0] + [-1] * 7
    said = reasons(raw)
    assert said[0] == ""
    assert said[1] == "not the format: not JSON: no json"
    assert said[2] == "said so: no such file"
    assert said[3] == "unknown label: green"
    assert said[4].startswith("not the format: expected an object")
    assert said[5].startswith("not the format: expected score") and said[6].startswith("not the format")
    assert said[7] == "no answer: exit status 3; out of luck"
    values = score("external/namer/top1", raw, ["red"] * 8, [""] * 8, judge(tmp_path, code))
    assert np.isfinite(values.values).tolist() == [True] + [False] * 7 and values.valid.all()


def test_a_command_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path):
    code = 'sleep 600 &\necho $! > child\necho \'{"label": "red"}\'\nsleep 600\n'
    started = time.monotonic()
    raw = judge(tmp_path, code, command=["sh", "judge.py"], timeout=5).raw(images(RED, RED))
    assert time.monotonic() - started < 300
    assert raw["label"].tolist() == [0, -1] and reasons(raw)[1] == "timed out: after 5 s"
    pid = int((tmp_path / "child").read_text())
    for _ in range(100):
        if not _alive(pid):
            break
        time.sleep(0.1)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the limit is POSIX's")
def test_memory_is_limited(tmp_path: Path):
    code = 'import sys\nx = bytearray(2_000_000_000)\nprint(\'{"label": "red"}\')\n'
    raw = judge(tmp_path, code, memory=1_000_000_000).raw(images(RED))
    assert raw["label"].tolist() == [-1] and reasons(raw)[0] == "no answer: exit status 1; MemoryError"
    small = code.replace("2_000_000_000", "2_000_000")
    assert judge(tmp_path, small, memory=1_000_000_000).raw(images(RED))["label"].tolist() == [0]


def test_answers_without_end_end_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(external, "MOST", 100_000)
    code = "import sys\nwhile True: sys.stdout.write('x' * 10_000)\n"
    raw = judge(tmp_path, code, timeout=300).raw(images(RED, BLUE))
    assert raw["label"].tolist() == [-1, -1]
    assert reasons(raw)[0] == "not the format: more than 100,000 bytes of answers"
    complaining = "import sys\nfor _ in range(300): sys.stderr.write('y' * 10_000)\nsys.exit('the last line')\n"
    (tmp_path / "other").mkdir()
    assert reasons(judge(tmp_path / "other", complaining).raw(images(RED)))[0].startswith(
        "no answer: exit status 1; yyy"
    )


def test_what_a_command_leaves_running_ends_with_it(tmp_path: Path):
    code = 'sleep 600 &\necho $! > child\necho \'{"label": "red"}\'\n'
    raw = judge(tmp_path, code, command=["sh", "judge.py"], timeout=300).raw(images(RED))
    assert raw["label"].tolist() == [0]
    pid = int((tmp_path / "child").read_text())
    for _ in range(100):
        if not _alive(pid):
            break
        time.sleep(0.1)
    assert not _alive(pid)


def test_control_characters_of_a_judge_stay_out_of_reasons(tmp_path: Path):
    raw = judge(tmp_path, 'print(\'{"error": "a\\\\u001b[31mb"}\')\n').raw(images(RED))
    assert reasons(raw) == ["said so: a�[31mb"]


def test_more_lines_than_images_cannot_be_told_apart(tmp_path: Path):
    raw = judge(tmp_path, "print('hello')\n" + NAMER).raw(images(RED, BLUE))
    assert raw["label"].tolist() == [-1, -1] and reasons(raw) == ["not the format: 3 lines for 2 images"] * 2


def test_declarations_are_checked(tmp_path: Path):
    for change, hint in [
        ({"labels": []}, "labels"),
        ({"timeout": 0}, "timeout"),
        ({"shell": True}, "shell"),
        ({"command": "rm -r x"}, "command"),
    ]:
        with pytest.raises(BadInput, match=hint):
            judge(tmp_path, NAMER, **change)
    gone = judge(tmp_path, NAMER, command=["no-such-command"])
    with pytest.raises(BadInput, match="cannot run 'no-such-command'"):
        gone.raw(images(RED))


def test_other_code_is_another_judge(tmp_path: Path):
    first = judge(tmp_path, NAMER).hash
    assert judge(tmp_path, NAMER + "# changed\n").hash != first


def test_answers():
    assert parse('{"label": "blue", "score": 1}', ["red", "blue"]) == Answer(1, 1.0)
    assert parse('{"label": null}', ["red"]) == Answer(-1, 1.0)
    assert parse('{"score": 1}', ["red"]).failure == "not the format"
    assert parse('{"label": "red", "score": true}', ["red"]).failure == "not the format"
    assert external.ERRORS[0] == "" and len(external.ERRORS) < 256
