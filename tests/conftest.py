"""Same conditions for every test: one thread, no hub, opt-in flags for what is slow or needs something."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Before anything imports torch. On a busy machine two spinning threads make a tiny model ten to fifty times slower;
# with the environment set here, torch comes up with one thread in this process and in all that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["PYTHONSAFEPATH"] = "1"
for _hub in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ[_hub] = "1"

FLAGS = {
    "gpu": "needs an accelerator",
    "slow": "takes long, alone or with its like",
    "weights": "needs downloaded weights",
}

LONGEST = (
    *("methods", "journal", "run", "conformance", "fade_adv", "ant", "testbed_build", "docs", "fade_fg", "esd", "cpe"),
    *("suites_shipped", "testbed_flow", "backbones", "page", "worker", "crash", "new_method", "offline", "perf"),
)
"""Files whose tests take longest, in that order: a worker that began one of them last would work on alone."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", type=int, default=0, metavar="N", help="try N malformed documents of each kind")
    parser.addoption("--browser", action="store_true", help="fail, not skip, where there is no browser")
    for flag, reason in FLAGS.items():
        parser.addoption(f"--{flag}", action="store_true", help=f"also run the tests marked {flag}: {reason}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("quick"):
            if not any(fnmatch(item.callspec.id, quick) for quick in mark.args):  # type: ignore[attr-defined]
                item.add_marker(pytest.mark.slow)
    for flag, reason in FLAGS.items():
        if not config.getoption(f"--{flag}"):
            skip = pytest.mark.skip(reason=f"{reason}: run with --{flag}")
            for item in items:
                if flag in item.keywords:
                    item.add_marker(skip)
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """No test cuts the power in truth, and syncs take their time; the fault layer notes who does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture(scope="module")
def chromium(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A headless Chromium, by Playwright."""
    lacking = pytest.fail if request.config.getoption("--browser") else pytest.skip
    if not all(map(find_spec, ("playwright", "axe_playwright_python"))):
        lacking("needs Playwright and axe: pip install -c constraints.txt -e '.[browser]'")
    path = next((p for name in BROWSERS if (p := shutil.which(name))), None)
    if path is None:
        lacking("needs Chromium: apt install chromium")
    from playwright import sync_api

    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def tracked() -> list[Path]:
    """Files of the checkout that git tracks or would track, so that a file is tested before it is committed."""
    git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    out = subprocess.run(git, cwd=ROOT, capture_output=True, check=False)
    if out.returncode:
        pytest.skip("needs a git checkout")
    return [path for name in out.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]
