"""`python -m coh.preview`."""

from coh.preview.command import main

main()
