"""Makes the pictures of the documents, docs/images/*.png.

A training step of AlexNet on a TPU v4i, the program of the paper's figure:

    memory_map.png   where its buffers are in fast memory
    report.png       the report of the same plan, in a browser

And what the pages' own code draws, by running it.

Needs the extras viz and dev, and for the report a Chromium (apt-get install chromium).

    python docs/make_pictures.py
    python docs/make_pictures.py --pages_only
"""

import contextlib
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
from absl import app, flags

ROOT = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples"), str(ROOT / "docs")]

import jax_malloc  # noqa: E402
import model_zoo  # noqa: E402
import page_runner  # noqa: E402
from frontends import stablehlo  # noqa: E402
from hwmodel import presets  # noqa: E402
from jax_malloc import problem  # noqa: E402
from jax_malloc.plan import Plan  # noqa: E402

_OUT_DIR = flags.DEFINE_string("out_dir", str(ROOT / "docs" / "images"), "Folder.")
_SOLVER = flags.DEFINE_string("solver", "hybrid", "Of the plan that is shown.")
_TIME_LIMIT_S = flags.DEFINE_float("time_limit_s", 20.0, "Seconds to plan.", 0)
_PAGES_ONLY = flags.DEFINE_bool("pages_only", False, "Only what the pages draw.")
_ACCELERATOR = "tpu_v4i"
# What a reader sees of a document's picture at once.
_WINDOW = {"width": 1400, "height": 1320}


class AlexNet(nn.Module):
    """Images to logits.

    Source: Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural
      Networks", NIPS 2012, on one device.
    """

    classes: int = 1000
    dtype: jnp.dtype = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        pooled = {0, 1, 4}
        layers = ((96, 11, 4), (256, 5, 1), (384, 3, 1), (384, 3, 1), (256, 3, 1))
        for i, (width, kernel, stride) in enumerate(layers):
            x = nn.Conv(width, (kernel, kernel), stride, dtype=self.dtype)(x)
            x = nn.relu(x)
            if i in pooled:
                x = nn.max_pool(x, (3, 3), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(4096, dtype=self.dtype)(x))
        return nn.Dense(self.classes, dtype=self.dtype)(x)


def alexnet(batch: int = 128) -> jax_malloc.Program:
    """A training step with Adam, parameters and optimizer state updated in place."""
    step, arguments = model_zoo.training_step(
        AlexNet(),
        jax.ShapeDtypeStruct((batch, 224, 224, 3), jnp.bfloat16),
        target=jax.ShapeDtypeStruct((batch,), jnp.int32),
    )
    step = jax.jit(step, donate_argnums=(0, 1, 2))
    tiling = problem.tiling_of(presets.get(_ACCELERATOR))
    return stablehlo.from_jax(step, *arguments, tiling=tiling, name="alexnet_train")


def photograph(plan: Plan, path: pathlib.Path) -> None:
    """A picture of a plan's report in a browser."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("report.png needs a Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        report = pathlib.Path(folder) / "report.html"
        plan.to_html(report)
        # The sandbox does not start for root; the page is our own.
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"]
        )
        page = browser.new_page(viewport=_WINDOW)
        page.goto(report.as_uri())
        page.wait_for_function("window.Bokeh?.documents[0]?.is_idle")
        page.wait_for_timeout(500)  # the panels are drawn on the next frames
        page.screenshot(path=path)
        browser.close()


def draw_pages(folder: pathlib.Path) -> Iterator[str]:
    """Runs the pages that show what they draw; yields the names of the pictures."""
    for page in page_runner.pages():
        text = page.read_text(encoding="utf-8")
        if not any(".savefig(" in b.text for b in page_runner.blocks(page)):
            continue
        with tempfile.TemporaryDirectory() as work, contextlib.chdir(work):
            for dump in page_runner.DUMPS:
                shutil.copy(dump, work)
            page_runner.run(page)
            for picture in sorted(pathlib.Path(work).glob("*.png")):
                if f"images/{picture.name})" in text:
                    shutil.copy(picture, folder)
                    yield picture.name


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    matplotlib.use("Agg")
    folder = pathlib.Path(_OUT_DIR.value).absolute()
    folder.mkdir(parents=True, exist_ok=True)

    names = list(draw_pages(folder))
    if not _PAGES_ONLY.value:
        plan = jax_malloc.solve(
            alexnet(),
            _ACCELERATOR,
            solver=_SOLVER.value,
            time_limit_s=_TIME_LIMIT_S.value,
        )
        plan.plot().figure.savefig(folder / "memory_map.png", dpi=130)
        photograph(plan, folder / "report.png")
        names += ["memory_map.png", "report.png"]
    for name in names:
        print(f"{folder / name}, {(folder / name).stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    app.run(main)
