"""The command: from output folders of runs to a page, the same as Markdown, and the pictures beside it.

One run gets report.html and report.md in its own folder; several stand side by side in comparison.html and
comparison.md in the working folder, so that each keeps its own report.

python -m coh.report outputs/mine
python -m coh.report outputs/mine outputs/other
python -m coh.report outputs/mine outputs/other --output docs/both.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coh.arguments import ConfigError, parse
from coh.report.html import as_page
from coh.report.markdown import as_text
from coh.report.pictures import pictures
from coh.report.record import ReportError, Run, read_run

COMPARISON = "comparison.html"


@dataclass
class ReportArgs:
    """Which runs are told of."""

    folders: list[str] = field(
        default_factory=list, metadata={"help": "Output folders of runs; several stand side by side."}
    )
    output: str | None = field(
        default=None,
        metadata={
            "help": "HTML file to write, beside it the same as .md and the pictures; by default report.html in the "
            "folder of the run, and for several runs comparison.html in the working folder."
        },
    )

    def __post_init__(self) -> None:
        problems = []
        if not self.folders:
            problems.append("--folders: give the --output_dir of a training run.")
        if self.output and not self.output.endswith(".html"):
            problems.append(f"--output {self.output}: give a name that ends in .html.")
        if problems:
            raise ConfigError(problems)


def write_report(folders: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Writes the page, the text and its pictures; gives the page's path.

    By default that is report.html in the folder of one run, and comparison.html in the working folder for several.

    Raises:
        ReportError: a folder holds no run, or the files cannot be written.
    """
    runs = _read(folders)
    # What is about several runs belongs to none of them, and takes no run's own report from it.
    path = Path(output) if output else Path(folders[0], "report.html") if len(folders) == 1 else Path(COMPARISON)
    drawn = pictures(runs)
    images = path.with_suffix("").with_name(f"{path.stem}_pictures")
    try:
        images.mkdir(parents=True, exist_ok=True)
        for picture in drawn:
            (images / f"{picture.name}.png").write_bytes(picture.png)
        path.write_text(as_page(runs, drawn), encoding="utf-8")
        path.with_suffix(".md").write_text(as_text(runs, drawn, images.name), encoding="utf-8")
    except OSError as error:
        raise ReportError(f"{path} cannot be written: {error}") from error
    return path


def _read(folders: Sequence[str | Path]) -> list[Run]:
    """The runs; those whose folders have one name get the names of their parents too."""
    names = [Path(folder).resolve().name for folder in folders]
    return [
        read_run(folder, name if names.count(name) == 1 else "/".join(Path(folder).resolve().parts[-2:]))
        for folder, name in zip(folders, names)
    ]


def main(argv: Sequence[str] | None = None) -> None:
    description = (__doc__ or "").split("\n")[0]
    (args,) = parse([ReportArgs], argv, prog="python -m coh.report", description=description, bare="folders")
    try:
        path = write_report(args.folders, args.output)
    except ReportError as error:
        raise SystemExit(f"coh.report: {error}") from error
    print(f"{path}\n{path.with_suffix('.md')}")


if __name__ == "__main__":
    main()
