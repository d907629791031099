"""What an import of mqlab may cost. Who may import whom: the contracts in pyproject.toml."""

import subprocess
import sys

import mqlab


def loaded_by(code: str) -> set[str]:
    """The top-level packages that are loaded after ``code`` has run in a fresh interpreter."""
    names = "import sys; print(*{name.split('.')[0] for name in sys.modules})"
    ran = subprocess.run(
        [sys.executable, "-c", f"{code}\n{names}"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return set(ran.stdout.splitlines()[-1].split())


def test_import_mqlab_loads_neither_pictures_nor_widgets() -> None:
    loaded = loaded_by("from mqlab import BackgroundConsumer, Producer, send_task_to_queue")
    assert "mqlab" in loaded
    assert not loaded & {"matplotlib", "ipywidgets", "IPython", "numpy", "jupyterlab"}


def test_the_command_line_s_help_loads_no_pika() -> None:
    loaded = loaded_by(
        "import contextlib, sys; sys.argv = ['mqlab', '--help']\n"
        "with contextlib.suppress(SystemExit): __import__('mqlab.cli').cli.main()"
    )
    assert "mqlab" in loaded
    assert "pika" not in loaded


def test_every_public_name_is_there() -> None:
    assert {name: getattr(mqlab, name) for name in mqlab.__all__}.keys() == set(mqlab.__all__)
