"""The package `coh`: what it needs is in requirements.txt, its version in coh/__init__.py."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def read_version() -> str:
    """The version, read as text: importing the package would need all that it is about to install."""
    return re.search(r'^__version__ = "(.+)"$', (HERE / "coh/__init__.py").read_text(encoding="utf-8"), re.M).group(1)


def read_requirements() -> list[str]:
    lines = (line.partition("#")[0].strip() for line in (HERE / "requirements.txt").read_text("utf-8").splitlines())
    return [line for line in lines if line]


setup(
    name="coh",
    version=read_version(),
    description="Chain of Hindsight: language models that learn from human feedback in any form",
    long_description=(HERE / "README.md").read_text("utf-8") if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["coh", "coh.*"]),
    package_data={"coh.data": ["templates/*.yaml", "sample/*"]},
    install_requires=read_requirements(),
    extras_require={
        "peft": ["peft>=0.20"],
        "bitsandbytes": ["bitsandbytes>=0.50"],
        "wandb": ["wandb"],
        "trackio": ["trackio"],
        "tensorboard": ["tensorboard"],
        "liger-kernel": ["liger-kernel"],
        "judge": ["openai"],
        "lm-eval": ["lm-eval>=0.4.8"],
        "rouge-score": ["rouge-score>=0.1.2"],
        "serving": ["transformers[serving]"],
        "benchmark": ["matplotlib>=3.8", "trl>=1.0"],
        "experiments": ["trl>=1.0"],
        "dev": [
            "bitsandbytes>=0.50",
            "hypothesis",
            "lm-eval>=0.4.8",
            "mypy",
            "peft>=0.20",
            "pytest>=8.0",
            "pytest-cov",
            "pytest-timeout",
            "pytest-xdist",
            "rouge-score>=0.1.2",
            "ruff",
            "setuptools>=77",
            "tensorboard",
            "transformers[serving]",
        ],
    },
    entry_points={
        "console_scripts": [
            "coh-train=coh.coh_train:main",
            "coh-preview=coh.preview:main",
            "coh-generate=coh.generate:main",
            "coh-score=coh.score:main",
            "coh-merge=coh.merge:main",
            "coh-evaluate=coh.evaluate:main",
            "coh-report=coh.report:main",
            "coh-experiments=coh.experiments.command:main",
        ]
    },
)
