"""Paths as users write them, on command lines and in configs (no torch here)."""

import os

MOST_BYTES = 255  # of a name


def user_path(text: str) -> str:
    """The path with the home folder for `~`; whether there is anything is another question.

    Raises:
        ValueError: nothing can be there: a name that is too long, a link to itself, a folder that may not be searched,
            characters that no name has. It says what is to follow the path in a message.
    """
    path = os.path.expanduser(text)  # noqa: PTH111 (Path's own fails where there is no such user)
    problem = ""
    try:
        if any(len(os.fsencode(name)) > MOST_BYTES for name in path.split("/")):
            problem = f"holds a name of more than {MOST_BYTES} bytes; give a shorter one"
        else:
            os.stat(path)  # noqa: PTH116
    except ValueError:  # a zero byte, half of a pair of surrogates
        problem = "holds characters that no path can hold; give another path"
    except (FileNotFoundError, NotADirectoryError):
        return path
    except OSError as error:
        problem = f"cannot be reached: {error.strerror}; give another path"
    if not problem and os.path.isdir(path) and not os.access(path, os.X_OK):  # noqa: PTH112
        problem = "is a folder that may not be searched; correct its rights, or give another path"
    if problem:
        raise ValueError(problem)
    return path
