"""Chain of Hindsight: language models that learn from human feedback in any form, and obey its words afterwards."""

__version__ = "0.1.0"
