import re

from mqlab import errors


def drawn_tree() -> dict[str, str]:
    """The tree in the module's docstring: name -> name of its base."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ([│├└─ ]*)([A-Z]\w+)", line)
        if found:
            depth = len(found[1]) // 4
            path = [*path[:depth], found[2]]
            parents[found[2]] = path[depth - 1] if depth else "Exception"
    return parents


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    classes = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and not name.startswith("_") and issubclass(value, Exception)
    }
    public_bases = {
        name: next(base.__name__ for base in cls.__mro__[1:] if not base.__name__.startswith("_"))
        for name, cls in classes.items()
    }
    assert drawn_tree() == public_bases


def test_an_error_says_what_why_and_what_next() -> None:
    error = errors.MqlabError("It broke.", why="it was old", fix="buy another")
    assert str(error).splitlines() == ["It broke.", "  why:  it was old", "  next: buy another"]


def test_an_error_without_a_reason_is_one_line() -> None:
    assert str(errors.MqlabError("It broke.")) == "It broke."
