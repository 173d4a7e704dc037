"""Everything the installer knows of jax_malloc; pyproject.toml configures the tools."""

import pathlib

from setuptools import find_packages, setup

README = pathlib.Path(__file__).with_name("README.md")
PACKAGES = ("frontends", "hwmodel", "jax_malloc")

setup(
    name="jax_malloc",
    version="0.1.0",
    description="Learned memory mapping for JAX programs, planned without the device.",
    long_description=README.read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(
        include=[glob for name in PACKAGES for glob in (name, f"{name}.*")]
    ),
    package_data={
        "": ["py.typed"],
        "jax_malloc": ["weights/*", "viz/*.html", "viz/*.mjs"],
    },
    install_requires=[
        "jax>=0.10.2",  # traces and lowers functions, runs the game and the agent
        "jaxlib",  # the MLIR bindings that read StableHLO, as jax pins them
        "numpy",  # problems, latencies and the shipped weights are host arrays
        "scipy",  # HiGHS, for the linear programs behind bounds and plans
        "numba",  # the game in compiled loops, thousands of tries a second
        "threadpoolctl",  # the agent's small matrix products on one thread
        "flax",  # the agent's networks
        "mctx",  # its tree search, Gumbel MuZero
        "absl-py",  # flags of the examples and the training program
        "optax",  # the training program's optimiser
        "rich",  # tables in the terminal
        "msgpack",  # weights and checkpoints are data, never pickle; flax calls it
    ],
    extras_require={
        "tpu": [
            "jax[tpu]",  # libtpu, to compile for a TPU that is not there; 684 MB
            "flatbuffers",  # jax.export's bytes, which the compiling process reads
        ],
        "train": [
            "tensorboardX",  # event files of a training run, without TensorFlow
        ],
        "viz": [
            "matplotlib",  # Plan.plot, and plots of a training run
            "bokeh>=3.9",  # Plan.to_html: linked panels, tables, inline resources
            "jinja2",  # the page around them; Bokeh needs it as well
        ],
        "docs": [
            "mkdocs<2",  # the site; version 2 drops the plugins that it is made with
            "mkdocs-material",  # its theme, with search that works without a server
            "mkdocstrings[python]",  # the reference, from the docstrings
        ],
        "dev": [
            "tensorboardX",  # as in train
            "pytest",
            "hypothesis",
            "ruff",
            "mypy",  # the public surface, as its users' checkers see it
            "setuptools>=70.1",  # builds the wheel that a test looks into
            "playwright",  # drives a Chromium that is there, to test the report
        ],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Software Development :: Compilers",
        "Typing :: Typed",
    ],
)
