"""`python -m beholder.cli`."""

from beholder.cli import main

main()
