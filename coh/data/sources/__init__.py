"""Feedback in any form in, `FeedbackGroup`s out, each prompt in one split.

>>> [spec.name for spec in parse_sources(["webgpt", "hh_rlhf@1000"])]
['webgpt', 'hh_rlhf']

`parse_sources` says where sources lie, `load_groups` reads each into stores on disk, and `split_groups` says which
groups are trained on and which are held out.
"""

from __future__ import annotations

from coh.data.sources.formats import FORMATS, Format, check_format, detect_format
from coh.data.sources.naming import parse_columns
from coh.data.sources.scores import ATTRIBUTES, Scoring, parse_attributes
from coh.data.sources.specs import BUILT_IN, SAMPLES, SourceErrors, SourceSpec, parse_source, parse_sources
from coh.data.sources.splitting import Part, Splits, prompt_hash, split_groups
from coh.data.sources.stores import GroupStore, load_groups

__all__ = [
    "ATTRIBUTES",
    "BUILT_IN",
    "FORMATS",
    "SAMPLES",
    "Format",
    "GroupStore",
    "Part",
    "Scoring",
    "SourceErrors",
    "SourceSpec",
    "Splits",
    "check_format",
    "detect_format",
    "load_groups",
    "parse_attributes",
    "parse_columns",
    "parse_source",
    "parse_sources",
    "prompt_hash",
    "split_groups",
]
