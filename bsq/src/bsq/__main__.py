"""`python -m bsq …` and `accelerate launch -m bsq …`."""

from bsq.cli import main

main()
