"""Who may import whom, and what `import mqlab` may cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mqlab"
CORE = {"errors", "settings", "task", "connection"}
BROKER = {"broker", "node", "packages", "compose", "ports"}
TALK = {"producer", "consumer", "records"}

# Each module's own part of mqlab that it may import. What is not named here may not exist.
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": CORE | TALK | {"broker", "experiment", "dashboard"},
    "errors": set(),
    "settings": {"errors"},
    "task": {"errors"},
    "connection": {"errors", "settings"},
    "proxy": {"settings"},
    "management": {"settings"},
    "room": {"management", "connection", "errors", "settings"},
    **dict.fromkeys(BROKER, BROKER | {"errors", "settings", "connection"}),
    "records": {"errors"},
    "producer": CORE | {"records"},
    "consumer": CORE | {"records"},
    "experiment": CORE | BROKER | TALK,
    "plots": {"errors", "broker", "experiment", "records"},
    "watch": CORE | TALK | {"management", "worker"},
    "dashboard": CORE | TALK | {"watch", "worker"},
    "cli": {"*"},
    "__main__": {"cli"},
}
# Small modules that belong to a layer above: anything but cli.
UPPER = {"dead", "demo", "doctor", "lab", "worker", "exercises"}


def modules() -> list[str]:
    """Each module by its name inside mqlab; a package by its own name, ``exercises.bench`` too."""
    paths = [path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py")]
    return sorted(".".join(path.parts) for path in paths)


def layer(name: str) -> str:
    return name.split(".")[0]


def imports(name: str) -> set[str]:
    """The modules that a module imports anywhere, mqlab's own without the prefix `mqlab.`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{name.replace('.', '/')}.py").read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively, and this test cannot see that"
            # `from mqlab import x` may name a module or something that __init__ has
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_imports(name: str) -> set[str]:
    parts = [module.split(".") for module in imports(name)]
    layers = {layer(module) for module in modules()}
    return {p[1] for p in parts if p[0] == "mqlab" and len(p) > 1 and p[1] in layers}


@pytest.mark.parametrize("name", modules())
def test_a_module_imports_only_what_its_layer_may(name: str) -> None:
    every = {layer(module) for module in modules()}
    allowed = MAY_IMPORT.get(layer(name))
    if layer(name) in UPPER:
        allowed = every - {"cli", "__main__", "dashboard"}
    assert allowed is not None, f"{name} has no place in the table of layers"
    if allowed == {"*"}:
        allowed = every - {"dashboard", "__main__"}
    assert own_imports(name) <= allowed | {layer(name)}


def test_the_table_sees_imports() -> None:
    assert own_imports("connection") == {"errors", "settings"}
    assert "cli" in own_imports("__main__")


def test_plots_does_not_know_pika() -> None:
    assert not {module for module in imports("plots") if module.split(".")[0] == "pika"}


def test_import_mqlab_loads_neither_pictures_nor_widgets() -> None:
    code = "import mqlab, sys; print(*{m.split('.')[0] for m in sys.modules})"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(ran.stdout.split())
    assert "mqlab" in loaded
    assert not loaded & {"matplotlib", "ipywidgets", "IPython", "numpy", "jupyterlab"}
