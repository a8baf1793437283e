"""What works where extras are not installed, and what is said where it does not."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from monoloss.cli import COMMANDS
from monoloss.errors import _EXTRAS_OF, _INCLUDES, MissingExtraError

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
IMPORTED_AS = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
NOT_THEIR_OWN = ("all", "dev")  # extras: the first adds nothing, the second is for those who change the package

# Packages are hidden once those of the base are loaded, which look for some of them.
HIDE = """
import sys
from importlib.machinery import PathFinder
import huggingface_hub, safetensors.torch, torch, torchmetrics
hidden, found = set({hidden!r}), PathFinder.find_spec
for name in [name for name in sys.modules if name.partition(".")[0] in hidden]:
    del sys.modules[name]

def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in hidden else found(name, path, target)

PathFinder.find_spec = find_spec
"""


def requirements() -> dict[str, list[str]]:
    extras = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    return {name: extra for name, extra in extras.items() if name not in NOT_THEIR_OWN}


def packages_of(extra: str) -> set[str]:
    """What an extra brings by itself, by the name that is imported."""
    names = [re.split(r"[\[><=]", line)[0].lower() for line in requirements()[extra] if not line.startswith("monoloss")]
    return {IMPORTED_AS.get(name, name) for name in names}


def included_in(extra: str) -> set[str]:
    """The extras that an extra includes, at any depth."""
    direct = {name for line in requirements()[extra] if line.startswith("monoloss[") for name in line[9:-1].split(",")}
    return direct.union(*(included_in(name) for name in direct))


IN_THE_BASE = {"yaml", "jinja2"}  # through huggingface_hub and torch
EVERYTHING = sorted(set().union(*(packages_of(extra) for extra in requirements())) - IN_THE_BASE)


def run_without(hidden: list[str], code: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", HIDE.format(hidden=hidden) + code], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_errors_know_the_extras_of_the_project():
    known = {extra: {package for package, extras in _EXTRAS_OF.items() if extra in extras} for extra in requirements()}
    assert known == {extra: packages_of(extra) for extra in requirements()}
    assert {extra: set(_INCLUDES.get(extra, ())) for extra in requirements()} == {
        extra: included_in(extra) for extra in requirements()
    }


@pytest.mark.parametrize("extra", sorted(set(requirements()) - {"cli"}))
def test_every_extra_brings_the_command_line(extra):
    assert "cli" in included_in(extra)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_extra(command):
    assert COMMANDS[command].extra in requirements()


def test_public_names_are_there_without_extras():
    out = run_without(
        EVERYTHING,
        """
import inspect, pydoc
import monoloss
from monoloss import *
from monoloss import SparseAutoencoder, train_saes
members = dict(inspect.getmembers(monoloss))
assert set(monoloss.__all__) <= set(members) & set(globals())
assert "class SparseAutoencoder" in pydoc.plain(pydoc.render_doc(monoloss))
for name in monoloss.__all__:
    thing = members[name]
    assert thing.__name__ == name
    if thing.__doc__.startswith("Not installed"):
        try:
            thing(1, option=2)
        except monoloss.MissingExtraError as error:
            print(name, error.expected.partition("[")[2].partition("]")[0])
""",
    )
    assert dict(line.split() for line in out.splitlines()) == {
        "ImageActivations": "finetune",
        "extract": "vision",
        "fine_tune": "finetune",
        "import_dataset": "interop",
        "import_lmdb": "interop",
        "open_images": "vision",
        "train_saes": "train",
        "write_report": "report",
    }


CALLS = {
    "write_report([], 'out')": ("PIL", "report"),
    "train_saes(None, None, 'run')": ("lightning", "train"),
    "fine_tune(None, 'run')": ("lightning", "finetune"),
    "load_encoder('resnet10t', pretrained=False)": ("timm", "vision"),
    "open_images('imagefolder:.')": ("PIL", "vision"),
    "import_lmdb('x.lmdb', 'out')": ("lmdb", "interop"),
    "import_dataset('x', 'out')": ("pyarrow", "interop"),
}


def test_calls_name_their_extra():
    code = "".join(
        f"try:\n    monoloss.{line}\nexcept monoloss.MissingExtraError as error:\n    print(error)\n" for line in CALLS
    )
    answers = run_without(EVERYTHING, f"import monoloss\n{code}").splitlines()
    assert answers == [str(MissingExtraError(*expected)) for expected in CALLS.values()]


WITHOUT_ANY = {
    "info nowhere": ("jsonargparse", "cli"),
    "import x --out out": ("jsonargparse", "cli"),
    "train --help": ("jsonargparse", "cli"),
    "train --config c.yaml": ("jsonargparse", "train"),
    "report runs --out out": ("jsonargparse", "report"),
}
WITH_THE_COMMAND_LINE = {
    "report runs --out out": ("plotly", "report"),
    "extract --encoder resnet10t --images imagefolder:. --out out": ("PIL", "vision"),
    "train --config train.yaml --store nowhere --out run": ("lightning", "train"),
    "finetune --config finetune.yaml --out run": ("lightning", "finetune"),
    "demo": ("sklearn", "demo"),
    "benchmark": ("matplotlib", "report"),
    "import x.lmdb --kind lmdb --out out": ("lmdb", "interop"),
    "import x.parquet --kind dataset --out out": ("pyarrow", "interop"),
}
TRAIN = "batch_size: 50\nsaes: {one: {sae: {variant: topk, n_latents: 8, k: 2}}}\n"
FINETUNE = "model: {backbone: resnet10t}\ndata: {images: imagefolder:x, embeddings: y}\n"


def said(hidden: list[str], lines: list[str], folder: Path) -> list[str]:
    """What the command line says to each of these, with exit code 2."""
    (folder / "train.yaml").write_text(TRAIN, encoding="utf-8")
    (folder / "finetune.yaml").write_text(FINETUNE, encoding="utf-8")
    code = "".join(f"assert main({line.split()!r}) == 2\n" for line in lines)
    before = f"import os, sys\nos.chdir({str(folder)!r})\nsys.stderr = sys.stdout\nfrom monoloss.cli import main\n"
    return run_without(hidden, before + code).splitlines()


def expected(answers: dict[str, tuple[str, str]]) -> list[str]:
    return [f"monoloss: {MissingExtraError(*expected)}" for expected in answers.values()]


def test_commands_without_any_extra(tmp_path):
    assert said(EVERYTHING, list(WITHOUT_ANY), tmp_path) == expected(WITHOUT_ANY)


def test_commands_with_that_of_the_command_line(tmp_path):
    hidden = sorted(set(EVERYTHING) - packages_of("cli"))
    assert said(hidden, list(WITH_THE_COMMAND_LINE), tmp_path) == expected(WITH_THE_COMMAND_LINE)


@pytest.mark.parametrize(
    ("line", "package", "extra"),
    [
        ("report runs --out out", "PIL", "report"),
        ("demo", "PIL", "demo"),
        ("extract --encoder resnet10t --images dataset:x --out out", "datasets", "interop"),
        ("extract --encoder resnet10t --images cifar10:x --out out", "torchvision", "vision"),
    ],
)
def test_a_package_that_several_extras_bring(line, package, extra, tmp_path):
    assert said([package], [line], tmp_path) == expected({line: (package, extra)})


def test_import_and_info_need_the_command_line_alone(tmp_path):
    np.save(tmp_path / "e.npy", np.eye(6, dtype=np.float32))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(TRAIN, encoding="utf-8")
    out = run_without(
        sorted(set(EVERYTHING) - packages_of("cli")),
        f"""
import os
from monoloss.cli import main
os.chdir({str(tmp_path)!r})
print(main(["import", "e.npy", "--out", "store"]), main(["info", "store", "--verify"]), main(["info", "run"]))
""",
    )
    assert out.splitlines()[-1] == "0 0 0"
