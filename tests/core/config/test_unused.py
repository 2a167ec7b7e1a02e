"""Tables of keys without effect, and what is left."""

from lowbit.config.tree import Node
from lowbit.config.unused import is_unused, paths, used_values


class Inner(Node):
    A: tuple[int, ...] = (1, 2)
    AB: int = 3


class Tree(Node):
    A: int = 0
    IN: Inner = Inner()
    INNER: Inner = Inner()


def test_a_table_of_sections_is_full_paths() -> None:
    assert paths({"": "A IN", "INNER": "A"}) == {"A", "IN", "INNER.A"}


def test_a_section_covers_its_keys_and_no_other_of_a_longer_name() -> None:
    assert is_unused("IN.A", {"IN"}) and is_unused("IN", {"IN"})
    assert not is_unused("INNER.A", {"IN"}) and not is_unused("IN.AB", {"IN.A"})


def test_used_values_are_plain_and_in_order() -> None:
    found = used_values(Tree(), {"IN", "INNER.AB"})
    assert list(found.items()) == [("A", 0), ("INNER.A", [1, 2])]
