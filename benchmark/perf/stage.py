"""One process of a suite, run as a program: ours runs all of it in one, the peer's way has a process for every stage.

Told by one JSON argument, it writes what it did to the file `result` that it is told: seconds from its start (as
whoever started it saw it) until its imports were done, and counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmark.perf.bench import Did
from benchmark.perf.rig import Rig

Told = Mapping[str, Any]
Ready = Callable[[], None]
"""Called once when imports are done."""
COUNTS = ("denoiser_forwards", "text_encodes", "decodes")


# --- from outside -----------------------------------------------------------------------------------------------------
def start(stage: str, rig: Rig, folder: Path, **told: Any) -> subprocess.Popen[bytes]:
    """Start a stage; see `finished`."""
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / f"{stage}.json"
    result.unlink(missing_ok=True)
    everything = {"stage": stage, "rig": asdict(rig), "result": str(result), "spawned": time.time(), **told}
    command = [sys.executable, "-P", "-m", "benchmark.perf.stage", json.dumps(everything)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def finished(process: subprocess.Popen[bytes], stage: str, folder: Path) -> Did:
    """Wait for a stage and read what it did; RuntimeError with its last lines if it failed."""
    _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(f"stage {stage} ended with {process.returncode}:\n{said.decode(errors='replace')[-2000:]}")
    found = json.loads((folder / f"{stage}.json").read_text(encoding="utf-8"))
    return Did(found["work"], found["startup"])


def call(stage: str, rig: Rig, folder: Path, **told: Any) -> Did:
    """Run a stage to its end."""
    return finished(start(stage, rig, folder, **told), stage, folder)


def together(parts: list[Did]) -> Did:
    """One after another, as one turn."""
    work: Counter[str] = Counter({"processes": len(parts)})
    for part in parts:
        work.update({name: int(n) for name, n in part.work.items()})
    return Did(dict(work), sum(part.startup for part in parts))


# --- inside -----------------------------------------------------------------------------------------------------------
def main() -> None:
    """The program."""
    told = json.loads(sys.argv[1])
    imported: list[float] = []
    work = STAGES[told["stage"]](told, Rig(**told["rig"]), lambda: imported.append(time.time() - told["spawned"]))
    made = {"startup": imported[0], "work": work}
    Path(told["result"]).write_text(json.dumps(made), encoding="utf-8")


def _run(told: Told, rig: Rig, ready: Ready) -> dict[str, float]:
    """The harness: a whole suite. `lazy` leaves imports to the run, for one that may need none of the heavy ones."""
    from benchmark import run

    out, methods = Path(told["out"]), tuple(told["methods"])
    options = run.RunOptions(suite=told["suite"], model=rig.named, methods=methods, out=out, quiet=True)
    if told["lazy"]:
        ready()
        run.execute(options)
        return {"model_loads": int("benchmark.backbones.load" in sys.modules), **_spent(out)}
    with _loads() as loads:
        ready()
        run.execute(options)
    return {**loads, **_spent(out)}


@contextmanager
def _loads() -> Iterator[Counter[str]]:
    """Count how often the harness loads a model, with its heavy modules imported."""
    from benchmark.backbones import load as loading
    from benchmark.testbed import evaluator

    _, plain, loads = evaluator, loading.load, Counter(model_loads=0)

    def counted(*args: Any, **options: Any) -> Any:
        loads["model_loads"] += 1
        return plain(*args, **options)

    vars(loading)["load"] = counted
    try:
        yield loads
    finally:
        vars(loading)["load"] = plain


def _spent(out: Path) -> dict[str, float]:
    """Counts of the last run, from its `costs.json`."""
    costs = json.loads((out / "costs.json").read_text(encoding="utf-8"))
    made = costs["last_run"]["images_made"]
    work: Counter[str] = Counter(images_made=made)
    for cell in costs["cells"].values() if made else ():
        for part in (cell.get("images", {}), *cell.get("edit", {}).values()):
            work.update({name: part.get(name, 0) for name in COUNTS})
    return dict(work)


def _edit(told: Told, rig: Rig, ready: Ready) -> dict[str, float]:
    """The peer's training script: load the model, make one edit, write the tensors that changed."""
    from safetensors.torch import save_file

    from benchmark import edits
    from benchmark.plan import make_plan

    _heavy()
    ready()
    rig.prepare()
    (cell,) = make_plan(told["suite"], model=rig.named, methods=[told["method"]]).cells
    assert cell.edit is not None
    backbone = rig.backbone()
    with backbone.counting() as counts:
        edit = edits.make(cell.edit.method.instance, backbone, cell.edit.asked(), cell.edit.strategy)
    names = {name: value.contiguous() for name, value in edit.weights.items()}
    save_file(names, told["weights"])
    return {"model_loads": 1, **{name: getattr(counts, name) for name in COUNTS}}


def _generate(told: Told, rig: Rig, ready: Ready) -> dict[str, float]:
    """The peer's sampling script: load the model, put the edited tensors in, make the rows whose PNG is not there."""
    from safetensors.torch import load_file

    from benchmark.perf.rows import Row, Rows

    _heavy()
    ready()
    rig.prepare()
    rows = Rows(rig.parts(), steps=rig.steps, guidance=rig.guidance, size=told["size"])
    if told["weights"]:
        values = {name.removeprefix("unet."): value for name, value in load_file(told["weights"]).items()}
        rows.pipe.unet.load_state_dict(values, strict=False)
    rows.into(Path(told["images"]), [Row(prompt, seed) for prompt, seed, _ in told["rows"]])
    made = {name: rows.work[name] for name in (*COUNTS, "png_writes")}
    return {"model_loads": 1, "images_made": made["png_writes"], **made}


def _score(told: Told, rig: Rig, ready: Ready) -> dict[str, float]:
    """One of the peer's scoring scripts: every PNG by itself; a line of numbers an image."""
    import numpy as np
    import torch
    from PIL import Image
    from transformers import CLIPTextModel

    from benchmark.metrics import evaluators
    from benchmark.testbed.evaluator import TestbedEvaluator

    _ = CLIPTextModel  # such a script needs no diffusers
    ready()
    torch.set_num_threads(rig.threads)
    judge = evaluators.load("testbed-a")
    assert isinstance(judge, TestbedEvaluator)
    by_text, lines, work = told["metric"] == "clip", [], Counter(text_encodes=0, png_reads=0)
    with torch.inference_mode():
        for path, (prompt, _, concept) in zip(sorted(Path(told["images"]).glob("*.png")), told["rows"], strict=True):
            x = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)[None].contiguous()
            work["png_reads"] += 1
            if by_text:
                image = judge.clip.image_embeds(x)
                ids = judge._tokenizer([prompt], padding="max_length", truncation=True, return_tensors="pt").input_ids
                lines.append(float((100 * image @ judge.clip.text_embeds(ids).T).item()))
                work["text_encodes"] += 1
            else:
                top = int(judge.network(x)["object"].argmax().item())
                lines.append(float(judge.classes["object"][top] == concept))
    Path(told["scores"]).write_text(json.dumps(lines), encoding="utf-8")
    return {"judge_loads": 1, **work}


def _heavy() -> None:
    """What such scripts import before they work."""
    import diffusers
    import transformers

    _ = diffusers.StableDiffusionPipeline, transformers.CLIPTextModel


STAGES: Mapping[str, Callable[[Told, Rig, Ready], dict[str, float]]] = {
    "run": _run,
    "edit": _edit,
    "generate": _generate,
    "score": _score,
}

if __name__ == "__main__":
    main()
