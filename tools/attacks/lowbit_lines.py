"""The program `lowbit` under attack: it makes no files of its own and reads those of every method."""

from tools.attacks.method import Method

_PICTURE = "two/val/a/0.png"

LOWBIT = Method(
    program="lowbit",
    module="lowbit.cli.main",
    makes={},
    reads={"": ("show FILE", f"predict FILE {_PICTURE}")},
    resumes={},
    lines=("show bsq-done.pth.tar --json", f"predict bsq-two.pth.tar {_PICTURE} --top 2 -j 0", "plot two"),
    folders=("predict bsq-two.pth.tar DATA -j 0",),
)
