"""`python -m lowbit …`."""

from lowbit.cli.main import main

main()
