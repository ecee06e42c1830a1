"""Look before you train: rows exactly as they will be trained, and what the data is made of.

python -m coh.preview --model_name gpt2 --feedback_data hh_rlhf --html preview.html
"""

from coh.preview.command import PreviewArgs, main

__all__ = ["PreviewArgs", "main"]
