"""The dataset: feedback and pretraining text as rows of fixed length, each a pure function of (seed, index).

In: `CoHDataArgs` and a tokenizer. Out: one `CoHDataset` for each split, whose items are dicts of numpy arrays:

    input_ids, labels, position_ids, source_id   (seq_length,)   labels are -100 where there is no target
    is_pretrain, row                             ()
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coh.data.chains import Chains, Source
from coh.data.data_args import LEAST_RATIO, CoHDataArgs, spread
from coh.data.encoding import Encoder
from coh.data.forms import make_form
from coh.data.plan import NothingFits, RowStream
from coh.data.pretrain import Texts, load_texts
from coh.data.records import FeedbackError
from coh.data.sources import Splits, load_groups, parse_sources, split_groups

__all__ = ["CoHDataArgs", "CoHDataset", "load_datasets"]

logger = logging.getLogger("coh")

IGNORED = -100
PRETRAIN = "pretrain"  # the label of pretraining text among the sources


class CoHDataset:
    """Rows of feedback, and of pretraining text between them at a fixed ratio. Item i depends on the seed and i alone.

    A training set goes on through the epochs without end; its length says where the run stops. An evaluation set is one
    pass: all feedback rows, then at most as many rows of text.

    Args:
        chains: the feedback's documents.
        texts: the pretraining text's documents, if any.
        args: how rows are made.
        tokenizer: for the padding token.
        is_training: an endless mixture, or one pass.
        seed: of the order of rows.
    """

    def __init__(
        self, chains: Chains, texts: Texts | None, args: CoHDataArgs, tokenizer: Any, *, is_training: bool, seed: int
    ) -> None:
        self.args, self.chains, self.texts, self.is_training = args, chains, texts, is_training
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.source_names = [*(source.name for source in chains.sources), PRETRAIN]
        capacity, packing = args.seq_length, args.packing
        self.feedback_rows = RowStream(chains.window, chains.num_windows, capacity, packing, seed, "feedback")
        self.text_rows = (
            RowStream(texts.window, texts.num_windows, capacity, packing, seed, "text")
            if texts and len(texts)
            else None
        )
        # Of every so many rows this share is text; a fraction, so that row i's kind is exact arithmetic for any i.
        ratio = Fraction(args.pretrain_ratio if self.text_rows else 0).limit_denominator(round(1 / LEAST_RATIO))
        self._text_share = ratio / (1 + ratio)
        if is_training:
            self.num_rows = self.rows_in_epochs(1)
        else:
            self._num_feedback = self.feedback_rows.rows_until(1)
            num_texts = min(self.text_rows.rows_until(1), self._num_feedback) if self.text_rows else 0
            self.num_rows = self._num_feedback + num_texts

    def rows_in_epochs(self, epochs: float) -> int:
        """Rows, of both kinds, in which the feedback is read so many times."""
        whole = int(epochs)
        feedback = self.feedback_rows.rows_until(whole)
        if epochs > whole:
            feedback += round((epochs - whole) * (self.feedback_rows.rows_until(whole + 1) - feedback))
        return -(
            -feedback * self._text_share.denominator // (self._text_share.denominator - self._text_share.numerator)
        )

    def place(self, row: int) -> tuple[bool, int]:
        """Whether a row is text, and its number among the rows of its kind."""
        is_text, number = self.places(np.array([row]))
        return bool(is_text[0]), int(number[0])

    def places(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """The same of many rows at once."""
        if self.text_rows is None:
            return np.zeros(len(rows), bool), rows
        if self.is_training:
            share, of = self._text_share.numerator, self._text_share.denominator
            texts_before = rows * share // of
            is_text = (rows + 1) * share // of > texts_before
        else:
            texts_before = np.maximum(rows - self._num_feedback, 0)
            is_text = rows >= self._num_feedback
        return is_text, np.where(is_text, texts_before, rows - texts_before)

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {key: values[0] for key, values in self.rows([int(row)]).items()}

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Any]:
        """Some rows as PyTorch's loader asks for them: all at once, and stacked as `collate` takes them."""
        return self.rows(rows)

    def rows(self, rows: Sequence[int]) -> dict[str, Any]:
        """Some rows, stacked: the values of each key as one array. That costs far less than row by row."""
        numbers, length = np.asarray(rows, np.int64), self.args.seq_length
        if numbers.min() < 0 or numbers.max() >= self.num_rows:
            raise IndexError(f"rows {numbers.tolist()}: there are {self.num_rows}")
        is_pretrain, places = self.places(numbers)
        read = []
        for stream, own in ((self.feedback_rows, places[~is_pretrain]), (self.text_rows, places[is_pretrain])):
            if len(own) and stream:
                read.append(stream.read(own.tolist(), self.pad_id))

        def stacked(name: str) -> NDArray[Any]:
            """The values of all rows, in their order."""
            parts = [getattr(part, name).reshape(-1, length) for part in read]
            if len(parts) == 1:
                return parts[0]
            found = np.empty((len(rows), length), parts[0].dtype)
            found[~is_pretrain], found[is_pretrain] = parts
            return found

        ids, position_ids = stacked("ids").astype(np.int64), stacked("position")
        # Nothing stands in front of a document's first token that it could be predicted from.
        labels = np.where(stacked("targets") & (position_ids > 0), ids, IGNORED)
        if not self.args.isolate_documents:
            position_ids = np.tile(np.arange(length), (len(rows), 1))
        return {
            "input_ids": ids,
            "labels": labels,
            "position_ids": position_ids,
            "source_id": stacked("source"),
            "is_pretrain": is_pretrain,
            "row": numbers,
        }


def load_datasets(
    args: CoHDataArgs, tokenizer: Any, *, seed: int = 0, prepend_bos: bool = False, cache_dir: str | None = None
) -> dict[str, CoHDataset]:
    """The datasets `train`, `validation` and `test`; a split without any feedback is left out.

    Raises:
        FeedbackError: what a person has to mend in the data.
    """
    train_specs, eval_specs = parse_sources(args.feedback_data), parse_sources(args.eval_feedback_data or [])
    forms = [make_form(family, args.prompt_format, tokenizer) for family in args.families(len(train_specs))]
    forms += [forms[0]] * len(eval_specs)
    encoder = Encoder(tokenizer, prepend_bos, forms[0].end_of_output, forms[0].border)
    splits = split_groups(
        [
            load_groups(
                spec,
                feedback_format=feedback_format,
                cache_dir=cache_dir,
                tie_margin=args.tie_margin,
                attributes=args.attributes,
                columns=args.feedback_columns,
            )
            for spec, feedback_format in zip(
                (*train_specs, *eval_specs),
                [*spread(args.feedback_format, len(train_specs)), *args.eval_formats(len(eval_specs))],
            )
        ],
        test_size=args.webgpt_dataset_test_size,
        uses=["train" if eval_specs else "split"] * len(train_specs) + ["evaluation"] * len(eval_specs),
    )
    texts = load_texts(args.pretrain_data, args.pretrain_docs, cache_dir) if args.has_pretrain else None
    datasets = {}
    for split in ("train", "validation", "test"):
        is_training = split == "train"
        sources = [
            Source(part.name, part.store, part.indices, form, {**part.store.dropped, **dropped} if is_training else {})
            for part, form, dropped in zip(getattr(splits, split), forms, splits.dropped)
        ]
        # Validation and test have the same sources, so that one list of names serves both.
        sources = sources[: len(train_specs)] if is_training or not eval_specs else sources[len(train_specs) :]
        if not any(len(source.indices) for source in sources):
            continue
        # Evaluation asks the same of every run: its draws do not follow the seed, and it asks for what is always there.
        chains = Chains(
            sources,
            encoder,
            polarities=args.chains,
            capacity=args.seq_length,
            max_outputs=args.max_outputs,
            weights=args.feedback_weights if is_training else None,
            train_on=args.train_on if is_training else "all",
            seed=seed if is_training else 0,
        )
        if not chains.is_exact and is_training:
            logger.warning(
                "this tokenizer joins pieces of text differently from the whole: whole chains are encoded, which "
                "is slower"
            )
        text_documents = None
        if texts is not None:
            text_documents = Texts(
                texts, encoder, held_out=not is_training, source=len(sources), seed=seed if is_training else 0
            )
        try:
            datasets[split] = CoHDataset(
                chains, text_documents, args, tokenizer, is_training=is_training, seed=seed if is_training else 0
            )
        except NothingFits as error:
            if is_training:
                raise
            logger.warning("%s is left out: %s", split, error)
    if "train" not in datasets:
        raise FeedbackError(_nothing_to_train_on(splits, len(train_specs)))
    return datasets


def _nothing_to_train_on(splits: Splits, num_sources: int) -> str:
    """Where all the groups went, as a sentence."""
    lost: Counter[str] = Counter()
    for part, dropped in zip(splits.train[:num_sources], splits.dropped):
        lost.update({**part.store.dropped, **dropped})
    held_out = sum(len(part) for part in (*splits.validation[:num_sources], *splits.test[:num_sources]))
    lost["held out for evaluation"] += held_out
    where = ", ".join(f"{reason}: {count}" for reason, count in lost.items() if count)
    names = ", ".join(part.name for part in splits.train[:num_sources])
    return f"no feedback to train on in {names}{f' ({where})' if where else ''}: give more, or another evaluation set"
