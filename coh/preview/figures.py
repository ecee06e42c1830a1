"""What a data set is made of and whether that can be trained on: figures, problems, warnings.

In: the datasets of a run. Out: `Figures` of one split, and sentences. A problem is something that would make training
wrong; a warning is something to know.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coh.data.records import joined
from coh.data.summary import summarize
from coh.data.table import OUTPUT, VERBATIM
from coh.modeling import special_tokens
from coh.preview.rows import planned, split_text
from coh.preview.texts import num_duplicates, num_shared_prompts, num_with_literals

SAMPLE = 500  # documents that are looked at token by token
MOST_BARE_ROWS = 0.2
MOST_DROPPED = 0.5
MOST_TOO_LONG = 0.5
MOST_UNKNOWN = 0.01
MOST_SHORTENED = 0.2


@dataclass(frozen=True)
class SourceFigures:
    """A source: its groups in use, what became of them, and what share of the chains was asked for and is had."""

    format: str
    is_wanted: bool  # its weight is above 0
    groups: int
    documents: int
    tokens: int
    targets: int
    asked: float
    share: float
    dropped: dict[str, int]
    duplicates: int
    literals: dict[str, int]  # groups with the letters of a special token, in the prompt and in an output

    @property
    def dropped_share(self) -> float:
        lost = sum(self.dropped.values())
        return lost / max(1, lost + self.groups)


@dataclass(frozen=True)
class Figures:
    """One pass over a split. `splits` has the groups and rows of every split.

    `unknown` is the share of unknown tokens and `altered` has sentences about outputs that are not trained as they were
    written, both among `looked_at` documents.
    """

    split: str
    seq_length: int
    sources: dict[str, SourceFigures]
    summary: dict[str, Any]
    rows: int
    text_passes: float
    splits: dict[str, dict[str, int]]
    shared_prompts: int
    looked_at: int
    unknown: float
    altered: tuple[str, ...]

    @property
    def documents(self) -> int:
        return sum(source.documents for source in self.sources.values())

    @property
    def tokens(self) -> int:
        return sum(source.tokens for source in self.sources.values())

    @property
    def targets(self) -> int:
        return sum(source.targets for source in self.sources.values())

    @property
    def text_rows(self) -> int:
        return self.rows - self.summary["feedback_rows"]


def figures_of(datasets: Mapping[str, Any], tokenizer: Any, split: str, shown: Sequence[int] = ()) -> Figures:
    """The figures of a split; the outputs of the rows `shown` are looked at besides the sample."""
    dataset = datasets[split]
    summary = summarize(dataset)
    sources = dataset.chains.sources
    duplicates = num_duplicates(sources)
    literals = special_tokens(tokenizer)
    weights = dataset.args.feedback_weights if split == "train" else None
    asked = np.array(weights or [len(source.indices) for source in sources], np.float64)
    looked_at, unknown, altered = _look(dataset, tokenizer, shown)
    return Figures(
        split=split,
        seq_length=dataset.args.seq_length,
        sources={
            source.name: SourceFigures(
                format=source.store.format,
                is_wanted=weights is None or part > 0,
                groups=len(source.indices),
                asked=float(part),
                dropped=summary["dropped"].get(source.name, {}),
                duplicates=duplicates[source.name],
                literals=num_with_literals(source, literals),
                **summary["sources"][source.name],
            )
            for source, part in zip(sources, asked / asked.sum())
        },
        summary=summary,
        rows=len(dataset),
        text_passes=(len(dataset) - summary["feedback_rows"]) / dataset.text_rows.rows_until(1)
        if dataset.text_rows
        else 0.0,
        splits={
            name: {"groups": sum(len(source.indices) for source in other.chains.sources), "rows": len(other)}
            for name, other in datasets.items()
        },
        shared_prompts=num_shared_prompts(datasets),
        looked_at=looked_at,
        unknown=unknown,
        altered=altered,
    )


def _look(dataset: Any, tokenizer: Any, shown: Sequence[int]) -> tuple[int, float, tuple[str, ...]]:
    """Looks at some documents token by token: how many, the share of unknown tokens, and outputs that were altered."""
    documents, _, _ = dataset.feedback_rows.plan(0)
    size = len(documents.lengths)
    sample = np.linspace(0, size - 1, min(size, SAMPLE)).astype(np.int64).tolist()
    wanted = {(0, number): (documents, number) for number in sample}
    for row in shown:
        is_text, others, spans = planned(dataset, row)
        if not is_text:
            window = dataset.feedback_rows.locate(dataset.place(row)[1])[0]
            wanted |= {(window, number): (others, number) for number, _, _ in spans}
    encoder = dataset.chains.encoder
    unknown = tokenizer.unk_token_id
    if unknown in (*encoder.eos, *encoder.bos):  # one token for everything, as GPT-2 has: nothing is unknown to it
        unknown = None
    num_tokens = num_unknown = 0
    altered: list[str] = []
    for own, number in wanted.values():
        ids, _, _ = own.tokens(number)
        num_tokens += len(ids)
        num_unknown += int((ids == unknown).sum()) if unknown is not None else 0
        altered += altered_outputs(own, number, tokenizer)
    return len(wanted), num_unknown / max(1, num_tokens), tuple(altered)


def altered_outputs(documents: Any, number: int, tokenizer: Any) -> Iterator[str]:
    """Outputs of a document whose target tokens, decoded, are not the output as it was written.

    Unicode has several spellings of one text (NFKC): a tokenizer may prefer another one than the data.
    """
    chains = documents.chains
    source, group = chains.sources[documents.source[number]], int(documents.group[number])
    template, lengths = documents.template[number], documents.cell_lengths[number]
    ids, _, _ = documents.tokens(number)
    stops = np.cumsum(lengths)
    is_ended = chains.table.has_eos[template] & (lengths > 0)
    # Two borders a cell: behind its text, and behind the end-of-text token.
    borders = np.stack([stops - is_ended, stops], axis=1).ravel()
    texts = split_text(tokenizer, ids.tolist(), borders.tolist())[::2]
    cells = np.flatnonzero(chains.table.is_target[template] & (lengths > 0))
    read = source.store.group(group) if len(cells) else None
    for cell in cells.tolist():
        expected, found = _as_written(chains.table, documents, number, cell, read), texts[cell]
        if not chains.is_exact:  # a token may then reach over a border, with its white space
            expected, found = expected.strip(), found.strip()
        if unicodedata.normalize("NFKC", found) != unicodedata.normalize("NFKC", expected):
            place = source.store.dataset[group]["row"]
            yield f"{source.name}, row {place}: {_difference(expected, found)}"


def _as_written(table: Any, documents: Any, number: int, cell: int, group: Any) -> str:
    """The text of a target cell, from the group and the template."""
    template = table.templates[documents.template[number]]
    kind, slot = table.kind[documents.template[number], cell], table.slot[documents.template[number], cell]
    if kind == VERBATIM:
        return joined(" " if slot else "", group.verbatim[slot].text)
    if kind == OUTPUT:
        return joined(template.parts[cell - 1].text, group.outputs[documents.outputs[number, slot]])
    return f" {template.answer}"


def _difference(expected: str, found: str, width: int = 30) -> str:
    """Where two texts part."""
    place = next((n for n, (one, other) in enumerate(zip(expected, found)) if one != other), -1)
    place = min(len(expected), len(found)) if place < 0 else place
    start = max(0, place - 10)
    return f"{found[start : start + width]!r} is trained in place of {expected[start : start + width]!r}"


def problems_of(figures: Figures) -> list[str]:
    """What would make training wrong, with the remedy."""
    summary, found = figures.summary, []
    too_long = summary["chains"].get("output longer than a row", 0)
    bare = summary["rows_without_target"] / max(1, summary["feedback_rows"])
    if not figures.targets:
        found.append("there is no target at all: nothing would be learned.")
    elif bare > MOST_BARE_ROWS:
        found.append(f"{bare:.0%} of the feedback rows have no target: raise --seq_length or choose --packing fit.")
    for name, source in figures.sources.items():
        if not source.is_wanted:
            continue
        if figures.split == "train" and not source.groups:
            found.append(f"{name}: no usable group ({_reasons(source.dropped)}): mend it, or leave it out.")
        elif source.dropped_share > MOST_DROPPED:
            found.append(
                f"{name}: {source.dropped_share:.0%} of its groups are dropped ({_reasons(source.dropped)}): see "
                f"whether its format is {source.format}, or mend it."
            )
    share = too_long / max(1, too_long + figures.documents)
    if share > MOST_TOO_LONG:
        found.append(
            f"{share:.0%} of the chains are dropped, because an output alone is longer than a row: raise --seq_length."
        )
    if figures.unknown > MOST_UNKNOWN:
        found.append(
            f"{figures.unknown:.1%} of the tokens are unknown to the tokenizer: choose one that knows these texts."
        )
    if figures.altered:
        found.append(
            f"{len(figures.altered):,} outputs in the {figures.looked_at:,} chains looked at are not trained as they "
            f"were written ({figures.altered[0]}): the tokenizer loses or changes text, choose another."
        )
    if figures.shared_prompts:
        found.append(f"{figures.shared_prompts} prompts stand in training and in evaluation: hold them out.")
    return found


def warnings_of(figures: Figures) -> list[str]:
    """What is worth knowing, and does no harm by itself."""
    found = []
    counts = figures.summary["chains"]
    too_long = counts.get("output longer than a row", 0)
    share = too_long / max(1, too_long + figures.documents)
    if MOST_SHORTENED < share <= MOST_TOO_LONG:
        found.append(
            f"{share:.0%} of the chains are dropped: an output alone is longer than a row; raise --seq_length."
        )
    for what, remedy in (
        ("prompt shortened", "the model sees their ends only; a greater --seq_length keeps them whole."),
        ("older output left out", "they compare less than they could; a greater --seq_length keeps them whole."),
    ):
        share = counts.get(what, 0) / max(1, figures.documents)
        if share > MOST_SHORTENED:
            found.append(f"{what} in {share:.0%} of the chains: {remedy}")
    bare = figures.summary["rows_without_target"]
    if bare and bare / figures.summary["feedback_rows"] <= MOST_BARE_ROWS:
        found.append(f"{bare:,} feedback rows have no target: they cost time and teach nothing.")
    for name, source in figures.sources.items():
        if source.duplicates:
            found.append(f"{name}: {source.duplicates:,} groups repeat the prompt and the outputs of an earlier one.")
        for where, count in source.literals.items():
            if count:
                found.append(
                    f"{name}: {count:,} groups have the letters of a special token in their {where}; they stay letters."
                )
    return found


def _reasons(dropped: Mapping[str, int]) -> str:
    most = sorted(dropped.items(), key=lambda item: -item[1])
    return ", ".join(f"{reason}: {count:,}" for reason, count in most) or "it is empty"
