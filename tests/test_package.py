"""The house itself: what an import loads, that public names explain themselves, that no floor leans on one above."""

from __future__ import annotations

import ast
import graphlib
import importlib.metadata
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import monoloss

SOURCE = Path(monoloss.__file__).parent

# What the score and the loss must not load, with every extra installed.
HEAVY = [
    "datasets", "huggingface_hub", "jsonargparse", "lightning", "lmdb", "matplotlib", "pandas", "peft", "PIL", "plotly",
    "pyarrow", "pytorch_lightning", "rich",
    "scipy", "sklearn", "timm", "torchmetrics", "torchvision", "transformers",
]  # fmt: skip

# A file imports only from floors below its own, or from its own floor without a circle of packages.
FLOORS = {
    "errors": 0,
    "checks": 0,
    "distributed": 0,
    "files": 0,
    "precision": 0,
    "waiting": 0,
    "terminal": 0,
    "version": 0,
    "sparse": 1,
    "functional": 1,
    "metrics": 2,
    "losses": 2,
    "regularizer": 2,
    "sae": 2,
    "data": 2,
    "runs": 3,
    "evaluation": 3,
    "finetune": 4,
    "training": 4,
    "report": 5,
    "benchmark": 6,
    "commands": 6,
    "demo": 6,
    "cli": 6,
    "__init__": 6,
    "__main__": 6,
}


def module_names() -> dict[str, Path]:
    """Every module of the package by its dotted name inside it; the package itself is `__init__`."""
    names = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        names[".".join(parts if parts == ("__init__",) else parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imported_modules(source: str, known: set[str]) -> set[str]:
    """The modules of the package that a file imports, anywhere in it, also inside functions and TYPE_CHECKING."""

    def inside(dotted: str) -> str | None:
        first, _, rest = dotted.partition(".")
        return (rest or "__init__") if first == "monoloss" else None

    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {inside(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            for alias in node.names:  # `from monoloss.sae import model` means the module where there is one
                module, name = inside(node.module), inside(f"{node.module}.{alias.name}")
                found.add(name if name in known else module)
    return found - {None}


def floor(module: str) -> int:
    part = module.partition(".")[0]
    assert part in FLOORS, f"monoloss.{module} has no floor yet: give it one in FLOORS"
    return FLOORS[part]


def circle(graph: dict[str, set[str]]) -> list[str] | None:
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def loaded_by(code: str) -> set[str]:
    """The packages that a piece of code loads, beside those that Python has loaded by itself."""
    code = f"import sys; before = set(sys.modules)\n{code}\nprint(*(set(sys.modules) - before))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in run.stdout.split()}


def test_import_loads_the_standard_library_alone():
    assert loaded_by("import monoloss; monoloss.__version__; dir(monoloss)") - sys.stdlib_module_names == {"monoloss"}


def test_score_and_loss_are_light():
    loaded = loaded_by("from monoloss import MonoLoss, SparseActivations, TopKConfig, mono_loss, mono_score")
    assert "torch" in loaded
    assert not loaded & set(HEAVY)


def test_configurations_need_no_torch():
    loaded = loaded_by("from monoloss import FineTuneConfig, InputError, SaeTraining, TopKConfig, TrainingConfig")
    assert loaded - sys.stdlib_module_names == {"monoloss"}


def test_metrics_come_on_first_use():
    assert "torchmetrics" in loaded_by("import monoloss; monoloss.MonoScore")
    assert isinstance(monoloss.MonoScore, type)


def test_version_is_that_of_the_metadata():
    assert monoloss.__version__ == importlib.metadata.version("monoloss")


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="monoscore"):
        monoloss.monoscore  # noqa: B018 - the look-up itself is what is tested


def test_public_names_are_there_once():
    assert len(set(monoloss.__all__)) == len(monoloss.__all__) > 0
    assert set(monoloss.__all__) <= set(dir(monoloss))


@pytest.mark.parametrize("name", monoloss.__all__)
def test_public_name_explains_itself(name):
    thing = getattr(monoloss, name)
    if inspect.isclass(thing) or inspect.isroutine(thing):
        assert ">>> " in (thing.__doc__ or ""), f"{name} has no example that doctest can run"


def test_package_is_typed():
    assert (SOURCE / "py.typed").is_file()


def test_every_folder_is_a_package():
    folders = {path.parent for path in SOURCE.rglob("*.py")}
    assert not [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()]


@pytest.mark.parametrize("module", module_names())
def test_imports_stay_on_their_floor_or_below(module):
    path = module_names()[module]
    above = {
        other
        for other in imported_modules(path.read_text(encoding="utf-8"), set(module_names()))
        if floor(other) > floor(module)
    }
    assert not above, f"monoloss.{module} imports from a floor above its own: {sorted(above)}"


def packages_of(graph: dict[str, set[str]], parts: int) -> dict[str, set[str]]:
    """The graph of packages: each module counts for the first `parts` folders it lies in, or for itself at the top."""

    def package(module: str) -> str:
        path = module_names().get(module)
        folders = module.split(".") if path is None or path.name == "__init__.py" else module.split(".")[:-1]
        return ".".join(folders[:parts]) or module

    packages: dict[str, set[str]] = {}
    for module, imported in graph.items():
        packages.setdefault(package(module), set()).update(map(package, imported))
    return {name: imported - {name} for name, imported in packages.items()}


def import_graph() -> dict[str, set[str]]:
    known = module_names()
    return {
        name: imported_modules(path.read_text(encoding="utf-8"), set(known)) - {name} for name, path in known.items()
    }


def test_modules_have_no_circle():
    assert circle(import_graph()) is None


def test_packages_have_no_circle():
    assert circle(packages_of(import_graph(), 1)) is None


def test_packages_inside_packages_have_no_circle():
    packages = packages_of(import_graph(), 2)
    packages["evaluation"].remove("evaluation.charts")  # charts take its record, and Evaluation.plot() draws them
    assert circle(packages) is None


def test_the_checks_above_see_a_fault():
    known = {"sparse", "sae", "sae.model"}
    source = "def f():\n    from monoloss.sae import model\n    import monoloss.sparse, torch\nfrom monoloss import x\n"
    assert imported_modules(source, known) == {"sae.model", "sparse", "__init__"}
    assert imported_modules("from monoloss.sae import SparseAutoencoder", known) == {"sae"}
    assert floor("sae.model") > floor("sparse")
    assert circle({"a": {"b"}, "b": {"a"}})
    assert circle({"a": {"b"}, "b": set()}) is None
    modules = {"sae.model": {"data.store"}, "data.store": {"sae.config"}, "sae.config": set()}
    assert circle(modules) is None
    assert circle(packages_of(modules, 1)) is not None  # files without a circle, packages with one
    with pytest.raises(AssertionError, match="no floor yet"):
        floor("attic.trunk")


def test_every_module_has_a_test_of_its_name():
    """Or its docstring says where it is tested."""
    tests, without = Path(__file__).parent, []
    for path in sorted(SOURCE.rglob("*.py")):
        relative = path.relative_to(SOURCE)
        if relative.name in ("__init__.py", "__main__.py", "version.py"):
            continue
        elsewhere = re.search(r"Tested in ``tests/([\w/]+\.py)``", ast.get_docstring(ast.parse(path.read_text())) or "")
        test = tests / (elsewhere.group(1) if elsewhere else relative.parent / f"test_{relative.name}")
        if not test.is_file():
            without.append(str(relative))
    assert without == []
