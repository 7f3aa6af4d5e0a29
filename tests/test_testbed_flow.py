"""The embedded flow model: its parts, its training on a shortened recipe, and the folder that ships."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from diffusers import FluxPipeline
from PIL import Image
from transformers import T5Tokenizer, T5TokenizerFast

from benchmark import models, paths
from benchmark.backbones.flux import FluxBackbone
from benchmark.backbones.load import load
from benchmark.backbones.random_models import random_flux
from benchmark.errors import BadInput, Missing
from benchmark.sample import Sampler, sample
from benchmark.testbed import artwork, assemble, build, card, damage, flow, report, sheets, t5, tune
from benchmark.testbed import recipe as module
from benchmark.testbed.captions import caption, vocabulary
from benchmark.testbed.data import draw_records
from benchmark.testbed.recipe import HERE, Recipe
from benchmark.testbed.tokens import load_tokenizer

SHIPPED = paths.testbed_weights()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped recipe with stages of three steps, and images enough for one batch."""
    values = yaml.safe_load((HERE / "recipe.yaml").read_text())
    values["renders"] = {"train": 96, "validation": 32, "test": 32}
    values["t5"] |= {"steps": 3, "batch": 8}
    values["flow"] |= {"steps": 3, "batch": 8}
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A blob of its own colour for every drawing of the list, as a build keeps them."""
    rng = np.random.default_rng(0)
    count, side = len(artwork.drawings()), artwork.PIXELS
    small = rng.integers(0, 256, (count, 8, 8, 4), dtype=np.uint8)
    small[..., 3] |= 128
    path = tmp_path_factory.mktemp("drawings") / "drawings.npz"
    artwork._save(path, small.repeat(side // 8, 1).repeat(side // 8, 2))
    return path


def prepared(work: Path, drawings: Path) -> Path:
    """A work folder that has its drawings."""
    (work / "drawings").mkdir(parents=True)
    shutil.copy(drawings, work / "drawings")
    return work


def train(work: Path, recipe: Path, stages: list[str]) -> None:
    build.main(["--node-modules", "absent", "--work", str(work), "--recipe", str(recipe), *stages])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, drawings: Path, recipe: Path) -> Path:
    """The work folder of a flow model of three steps over the shipped autoencoder and CLIP."""
    before = torch.get_num_threads()
    work = prepared(tmp_path_factory.mktemp("made"), drawings)
    train(work, recipe, ["borrow", "t5", "flow", "flow_assemble"])
    torch.set_num_threads(before)
    return work


@pytest.fixture(autouse=True)
def _threads():
    """The command sets torch's threads for its process; here others run in it too."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# --- parts ------------------------------------------------------------------------------------------------------------
def test_latents_are_packed_as_flux_packs_them():
    z = torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    packed = flow.pack(z)
    assert packed.shape == (3, 16, 64)
    assert torch.equal(packed, FluxPipeline._pack_latents(z, 3, 16, 8, 8))
    assert torch.equal(random_flux()._unpack(packed), z)
    assert torch.equal(flow.positions(4), FluxPipeline._prepare_latent_image_ids(3, 4, 4, "cpu", torch.float32))


def test_training_s_median_time_is_the_schedule_s():
    """Half way through the unshifted times, sampling stands at sigmoid(μ)."""
    backbone = random_flux()
    backbone._scheduler = flow.schedule()
    assert isinstance(backbone, FluxBackbone) and backbone.latent_shape == (16, 64)
    half = float(backbone.timesteps(2)[1]) / 1000
    assert half == pytest.approx(1 / (1 + np.exp(-flow.shift(16))), abs=1e-6)
    assert np.exp(flow.shift(16)) == pytest.approx(1.58, abs=0.01)


def test_every_caption_fits_and_every_word_is_one_piece(tmp_path: Path):
    recipe = Recipe.load()
    tokenizer = t5.build_tokenizer(recipe)
    tokenizer.save_pretrained(tmp_path)
    for kind in (T5Tokenizer, T5TokenizerFast):
        read = kind.from_pretrained(tmp_path, local_files_only=True)
        assert read.model_max_length == recipe["t5"]["length"]
        assert all(len(read(word).input_ids) == 2 for word in vocabulary() if word.isalpha())
    rng = np.random.default_rng(0)
    longest = max(len(tokenizer(caption(r, rng)).input_ids) for r in draw_records("train", 4000, 1))
    assert 14 < longest <= recipe["t5"]["length"]


def test_an_untrained_transformer_predicts_nothing_and_every_block_does_nothing():
    model = flow.build(Recipe.load())
    kinds = [len(model.transformer_blocks), len(model.single_transformer_blocks)]
    assert min(kinds) >= 1, "methods edit both kinds of block"
    assert not model.config.guidance_embeds
    x, text = torch.randn(2, 16, 64), torch.randn(2, 18, 128)
    given = {"pooled_projections": torch.randn(2, 128), "timestep": torch.rand(2), "img_ids": flow.positions(4)}
    out = model(hidden_states=x, encoder_hidden_states=text, txt_ids=torch.zeros(18, 3), return_dict=False, **given)[0]
    assert torch.equal(out, torch.zeros(2, 16, 64))
    inner, context = torch.randn(2, 16, model.inner_dim), torch.randn(2, 18, model.inner_dim)
    rotary = model.pos_embed(torch.zeros(34, 3))
    temb = torch.randn(2, model.inner_dim)
    for block in (*model.transformer_blocks, *model.single_transformer_blocks):
        after = block(hidden_states=inner, encoder_hidden_states=context, temb=temb, image_rotary_emb=rotary)
        assert torch.equal(after[0], context) and torch.equal(after[1], inner)


def test_what_is_withheld_is_the_empty_prompt_s_and_padding_does_not_matter():
    folder = SHIPPED / "text_encoder"
    clip = t5.CLIPTextModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    tokenizer = load_tokenizer(SHIPPED / "tokenizer")
    readers = flow.Readers(t5.build_tokenizer(Recipe.load()), tokenizer, clip)
    texts = ["a photo of the cat", "a rose on a red background, in the ink style", "dog"]
    ids = tokenizer([*texts, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        whole = clip(input_ids=ids).pooler_output
    found = readers.pooled(texts, [True, False, True])
    torch.testing.assert_close(found, whole[[0, 3, 2]], atol=1e-5, rtol=0)
    assert float((whole[0] - whole[3]).abs().max()) > 0.1


@pytest.mark.slow
def test_t5_learns_to_say_what_clip_says(made: Path, tmp_path: Path):
    """From saying next to nothing to a third of what varies, in a hundred small steps."""
    records = draw_records("train", 400, 1)
    t5.train(altered("t5", steps=100, batch=16), records, made / "model", tmp_path, tmp_path)
    first, last = (json.loads(line) for line in (tmp_path / "t5.jsonl").read_text().splitlines())
    assert (first["step"], last["step"]) == (50, 100)
    assert last["unexplained"] < min(0.67, 0.8 * first["unexplained"])


# --- the recipe -------------------------------------------------------------------------------------------------------
def test_a_stage_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        build.main(["--node-modules", "absent", "--work", str(tmp_path), "fluw"])
    assert caught.value.code == 2 and "unknown stage 'fluw'; expected some of data, " in capsys.readouterr().err


def altered(part: str, **values: object) -> Recipe:
    whole = Recipe.load()
    return Recipe({**whole.values, part: {**whole[part], **values}})


@pytest.mark.parametrize(
    ("values", "told"),
    [({"head": 20}, "a multiple of 16"), ({"double": 0}, "of both kinds"), ({"single": 0}, "of both kinds")],
)
def test_shapes_that_are_no_flux_are_refused(values: dict[str, object], told: str):
    with pytest.raises(BadInput, match=told):
        flow.build(altered("flow", **values))


@pytest.mark.parametrize("values", [{"drop": 1.0}, {"withhold": -0.1}, {"spread": 0.0}])
def test_shares_that_are_none_are_refused(values: dict[str, object]):
    with pytest.raises(BadInput, match=f"expected flow.{next(iter(values))}"):
        flow.lesson(altered("flow", **values), None, None, None, None)  # type: ignore[arg-type]


def test_a_t5_that_reads_further_than_clip_is_refused(tmp_path: Path):
    with pytest.raises(BadInput, match="expected t5.length below tokenizer.length, got 24"):
        t5.train(altered("t5", length=24), (), tmp_path, tmp_path, tmp_path)


def test_an_interrupted_training_goes_on_to_the_same_bytes(made: Path, tmp_path, drawings, recipe, monkeypatch):
    work = prepared(tmp_path / "work", drawings)
    shutil.copytree(made / "model" / "t5", work / "model" / "t5")
    clock = itertools.count(step=1000)  # so much time passes that every step is followed by a checkpoint
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    saved, real = [], module.Stage._save

    def stop_after_two(stage: module.Stage, step: int) -> None:
        real(stage, step)
        saved.append(step)
        if step == 2 and saved.count(2) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(module.Stage, "_save", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        train(work, recipe, ["borrow", "flow"])
    assert not (work / "model" / "flow").exists()
    train(work, recipe, ["flow"])
    for part in ("transformer/diffusion_pytorch_model", "text_encoder_2/model"):
        name = f"model/flow/{part}.safetensors"
        assert (work / name).read_bytes() == (made / name).read_bytes(), part


# --- the folder -------------------------------------------------------------------------------------------------------
def test_what_is_its_own_fits_into_nine_mebibytes(made: Path, tmp_path: Path):
    """Autoencoder and CLIP are links to the U-Net model's files, so their bytes stand in the repository once."""
    place = tmp_path / "benchmark" / "weights-flux"
    shutil.copytree(SHIPPED, tmp_path / "benchmark" / "weights")
    assemble.ship(made / "weights-flux", place, tmp_path / "benchmark" / "weights")
    links = [p for p in place.rglob("*") if p.is_symlink()]
    assert {p.parent.name for p in links} == {"vae", "text_encoder"}
    assert all(not p.readlink().is_absolute() and p.resolve().is_file() for p in links)
    own = [p for p in place.rglob("*") if p.is_file() and not p.is_symlink()]
    assert sum(p.stat().st_size for p in own) <= 9 * 2**20
    assert models.model_hash(str(place)) == models.model_hash(str(made / "weights-flux"))


def test_the_folder_is_a_plain_pipeline_and_gives_the_same_image(made: Path):
    """Within one level of 255, as everywhere; `max_sequence_length` is what T5 was trained at."""
    folder = made / "weights-flux"
    pipe = FluxPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    prompt, seed = "a photo of the cat", 7
    theirs = pipe(
        prompt,
        negative_prompt="",
        true_cfg_scale=3.0,
        height=64,
        width=64,
        num_inference_steps=4,
        max_sequence_length=pipe.tokenizer_2.model_max_length,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    ).images[0]
    backbone = load(str(folder), size=64)
    asked = [report.Ask(prompt, seed, "cat")]
    ((_, ours),) = sample(backbone, asked, Sampler(steps=4, guidance=3.0, size=64), batch=1)
    assert np.abs(ours[0].astype(float) - 255 * theirs).max() <= 1
    assert ours[0].std() > 1, "not one flat colour"


@pytest.mark.slow
def test_the_report_asks_which_text_is_read(made: Path):
    once = Sampler(steps=1, guidance=1.0, size=64)
    found = report.readers(made / "weights-flux", SHIPPED, once, ["cat", "rose", "sword"], images=1)
    assert set(found) == {"t5", "clip"} and all(0 <= v <= 1 for v in found.values())


@pytest.mark.slow
def test_the_report_and_its_sheets_draw_at_the_model_s_size(made: Path, tmp_path: Path, monkeypatch):
    """A FLUX folder says nothing of its size; by default it is taken to draw 128 latents across."""
    once, folder = Sampler(steps=1, guidance=1.0, size=64), made / "weights-flux"
    assert report.generate(str(folder), tune.asks()[:2], once).shape == (2, 64, 64, 3)
    found = damage.damage(folder, SHIPPED, once, images=1)
    assert set(found["birds"]) == set(damage.BIRDS) and set(found["far"]) == {"before", "after"}
    monkeypatch.setattr(sheets, "sampler_of", lambda *_: once)
    monkeypatch.setattr(sheets, "groups", lambda: ["cifar"])
    assert [path.name for path in sheets.of_samples(folder, tmp_path, Recipe.load(), rows=1)] == [
        "samples-cifar.png",
        "samples-style.png",
    ]
    for path in tmp_path.iterdir():
        with Image.open(path) as sheet:
            assert sheet.width % 64 == sheet.height % 64 == 0 and sheet.height < 1024


def test_each_model_is_sampled_named_and_carded_as_its_own(made: Path):
    recipe, folder = Recipe.load(), made / "weights-flux"
    assert report.sampler_of(SHIPPED, recipe) == report.SAMPLER
    assert report.sampler_of(folder, recipe) == Sampler(**recipe["flow"]["sampler"], size=64)
    assert report.model_name(folder, recipe) == recipe["flow"]["name"] != report.model_name(SHIPPED, recipe)
    measured = json.loads((SHIPPED / "report.json").read_text())
    own = card.card(recipe, measured, SHIPPED, "")
    assert "Stable Diffusion's architecture" in own and "PSNR" in own and "25 DDIM steps" in own
    del measured["renders"]
    text = card.card(recipe, measured | {"readers": {"t5": 0.75, "clip": 0.125}}, folder, "")
    assert "FLUX.1's architecture" in text and "25 Euler steps" in text and "PSNR" not in text
    assert "75.0 % of images show what T5 named,\n12.5 % what CLIP named" in text
    assert all(f"| {name} |" in text for name in card.hashes(folder))


def test_the_shipped_card_is_what_its_report_says():
    measured = json.loads((SHIPPED / "report.json").read_text())
    recipe, notes = Recipe.load(), (SHIPPED / "HISTORY.md").read_text()
    assert card.card(recipe, measured, SHIPPED, notes) == (SHIPPED / "MODEL_CARD.md").read_text()


def test_tuning_uses_seeds_and_concepts_of_its_own():
    asked, reported = tune.asks(), {a.seed for a in report.asks(8)}
    assert len({a.seed for a in asked}) == len(asked) and not reported & {a.seed for a in asked}
    split = {c.name: c.split for c in artwork.concepts()}
    assert {split[a.concept] for a in asked} == {"validation"}


# --- the name ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def unshipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation without the flow model's weights."""
    where = paths.testbed_weights
    absent = tmp_path / "weights-flux"
    monkeypatch.setattr(paths, "testbed_weights", lambda model="testbed": absent if "flux" in model else where(model))
    monkeypatch.delenv(models.ENVIRONMENT, raising=False)
    return absent


def test_without_weights_it_is_said_how_to_get_them(unshipped: Path):
    spec = models.describe("testbed-flux")
    assert (spec.family, spec.form) == ("transformer-flow", "embedded")
    with pytest.raises(Missing) as caught:
        models.resolve("testbed-flux")
    for part in (str(unshipped), f"${models.ENVIRONMENT}/testbed-flux", "make testbed ARGS='borrow t5 flow", "13 MB"):
        assert part in str(caught.value)
    assert models.missing("testbed-flux")["size"] == spec.size


def test_a_folder_named_by_the_environment_is_the_model(unshipped: Path, made: Path, tmp_path, monkeypatch):
    monkeypatch.setenv(models.ENVIRONMENT, str(tmp_path / "models"))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "testbed-flux").symlink_to(made / "weights-flux")
    backbone = load("testbed-flux", size=64)
    assert (backbone.name, backbone.family, backbone.latent_shape) == ("testbed-flux", "transformer-flow", (16, 64))
    text = backbone.embed(["a photo of the cat", ""])
    assert text.tokens.shape == (2, Recipe.load()["t5"]["length"], 128)
    assert replace(text, pooled=None).pooled is None and text.pooled.shape == (2, 128)
