"""What both sides of a bench run on: one device, one model, one number format, one number of threads. No torch on top.

On a CPU the embedded model; on a GPU a model of Stable Diffusion 1.x's size with random weights, since speed does not
depend on their values. Tests use a tiny model with random weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from benchmark import device, models
from benchmark.perf.suites import TEMPLATES

if TYPE_CHECKING:
    from benchmark.backbones.unet import UNetBackbone

EMBEDDED_STEPS = 12
"""As the suites have it. With eight images a turn, all benches end within a quarter of an hour on two quiet cores."""
Parts = dict[str, Any]
"""A pipeline's parts by their names in diffusers, the scheduler among them."""


@dataclass(frozen=True, kw_only=True)
class Rig:
    """What is measured on."""

    kind: Literal["cpu", "cuda"]
    model: str
    """`testbed`, `random-unet`, or `sd-size`."""
    images: int
    """Images of one turn of the benches that make images."""
    steps: int
    batch: int
    threads: int
    dtype: str = "float32"
    guidance: float = 7.5
    small: bool = False
    """Sizes for a test of the bench itself, not for numbers."""

    def parts(self) -> Parts:
        """The model loaded anew, as plain diffusers holds it, with DDIM for its scheduler."""
        if self.model == "testbed":
            return _from_folder()
        if self.model == "sd-size":
            return _sd_size(self.kind, self.dtype)
        from benchmark.backbones.random_models import unet_components

        return unet_components()

    def backbone(self) -> UNetBackbone:
        """The same model, as this harness holds it."""
        from benchmark.backbones.load import load
        from benchmark.backbones.unet import UNetBackbone

        if self.model != "sd-size":
            made: Any = load(self.model, device=self.kind)
            return made  # type: ignore[no-any-return]
        parts = self.parts()
        return UNetBackbone("sd-size", **{**parts, "scheduler": parts["scheduler"].config}, device=self.kind)

    @property
    def named(self) -> str:
        """The model that a plan is made for: `sd-size` has no name there, and its plans take a tiny one's."""
        return "random-unet" if self.model == "sd-size" else self.model

    def prepare(self) -> None:
        """Set this process's threads, once for both sides; no library shows bars of its own."""
        import diffusers
        import torch
        import transformers

        torch.set_num_threads(self.threads)
        untyped: Any = diffusers
        for library in (untyped, transformers):
            library.utils.logging.disable_progress_bar()


def here() -> Rig:
    """What is measured on, on this machine."""
    kind, threads = device.kind(), device.threads()
    if kind == "cuda":
        return Rig(kind=kind, model="sd-size", images=64, steps=50, batch=16, threads=threads, dtype="bfloat16")
    return Rig(kind=kind, model="testbed", images=8, steps=EMBEDDED_STEPS, batch=8, threads=threads)


def embedded(rig: Rig) -> Rig:
    """The same device and threads with a model that whole suites run on: there are no real weights to score by."""
    if rig.small:
        return rig
    return replace(rig, model="testbed", dtype="float32", steps=EMBEDDED_STEPS, batch=4 * TEMPLATES)


def tiny() -> Rig:
    """For tests: counts are exact, times mean nothing."""
    return Rig(kind="cpu", model="random-unet", images=4, steps=2, batch=2, threads=1, small=True)


def _from_folder() -> Parts:
    import diffusers
    import torch

    untyped: Any = diffusers
    folder = models.resolve("testbed")
    pipe = untyped.StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    return {name: getattr(pipe, name) for name in ("unet", "text_encoder", "vae", "tokenizer", "scheduler")}


def _sd_size(kind: str, dtype: str) -> Parts:
    """Stable Diffusion 1.x's parts by the sizes in its configuration files, with random weights, on the device."""
    import diffusers
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    from benchmark.backbones.random_models import WORDS, clip_tokenizer

    untyped: Any = diffusers
    tokenizer = clip_tokenizer(WORDS, 77)
    ends = {n: getattr(tokenizer, n) for n in ("bos_token_id", "eos_token_id", "pad_token_id")}
    with torch.random.fork_rng(), torch.device(kind):
        torch.manual_seed(0)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49_408,
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                max_position_embeddings=77,
                **ends,
            )
        )
        unet = untyped.UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = untyped.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
            scaling_factor=0.18215,
        )
    scheduler = untyped.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    made = {"unet": unet, "text_encoder": text, "vae": vae}
    cast = {name: torch.nn.Module.to(part, getattr(torch, dtype)).eval() for name, part in made.items()}
    return {**cast, "tokenizer": tokenizer, "scheduler": scheduler}
