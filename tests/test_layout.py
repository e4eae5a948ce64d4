"""The packages depend on each other in one direction, and only where a suite lives is it named."""

import ast
import configparser
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"sb3_vla": ROOT / "sb3_vla", "sb3_vla_envs": ROOT / "envs"}

# Sub-packages of sb3_vla from the top down: each may import from its own and from those below, not from its neighbours
LAYERS = [
    {"runs", "zoo"},
    {"hub", "callbacks"},
    {"ppo_self_bc"},
    {"imitation", "evaluation"},
    {"policies", "vec_env"},
    {"common"},
]


def module_name(path):
    package, folder = next((name, folder) for name, folder in FOLDERS.items() if path.is_relative_to(folder))
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join([package, *(part for part in parts if part != "__init__")])


MODULES = {module_name(path): path for folder in FOLDERS.values() for path in sorted(folder.rglob("*.py"))}


def is_for_types_alone(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports_at_the_top(module, nodes):
    """Names of what a module imports when it is imported itself, as far as they may be modules."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (name for alias in node.names for name in (base, f"{base}.{alias.name}"))
        elif isinstance(node, (ast.If, ast.Try, ast.With)) and not is_for_types_alone(node):
            inner = [*node.body, *getattr(node, "orelse", ()), *getattr(node, "finalbody", ())]
            inner += [child for handler in getattr(node, "handlers", ()) for child in handler.body]
            yield from imports_at_the_top(module, inner)


def imported(module):
    return set(imports_at_the_top(module, ast.parse(MODULES[module].read_text(encoding="utf-8")).body))


def test_no_import_cycle():
    graph = {module: {name for name in imported(module) if name in MODULES and name != module} for module in MODULES}
    # A package's __init__ is imported before what is in it: what that needs of it would be a cycle, but a name of a
    # sub-module is not a need of the package
    for module, needed in graph.items():
        graph[module] = {name for name in needed if not module.startswith(f"{name}.")}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' -> '.join(error.args[1])}")


def test_importing_sb3_vla_does_not_import_transformers():
    seen, new = set(), {"sb3_vla.api"}
    while new:
        seen |= new
        names = set().union(*(imported(module) for module in new))
        parents = {name[:dot] for name in names for dot, letter in enumerate(name) if letter == "."}
        assert not [name for name in names if name.partition(".")[0] == "transformers"], new
        new = {name for name in names | parents if name in MODULES} - seen
    assert "sb3_vla.policies.vla_policy" in seen


def layer(module):
    part = module.split(".")[1] if "." in module else None
    return next((number for number, parts in enumerate(LAYERS) if part in parts), None)


@pytest.mark.parametrize("module", [module for module in MODULES if layer(module) is not None])
def test_imports_go_down(module):
    below = {part for parts in LAYERS[layer(module) + 1 :] for part in parts} | {module.split(".")[1]}
    wrong = [name for name in imported(module) if layer(name) is not None and name.split(".")[1] not in below]
    assert not [name for name in wrong if name.startswith("sb3_vla.")]
    # The top of the package is above everything
    assert not {"sb3_vla", "sb3_vla.api"} & imported(module)


def test_every_sub_package_has_its_layer():
    parts = {path.parent.name for path in (ROOT / "sb3_vla").glob("*/__init__.py")}
    assert parts == {part for layer in LAYERS for part in layer}


@pytest.mark.parametrize("module", [module for module in MODULES if module.split(".")[0] == "sb3_vla_envs"])
def test_environments_know_neither_torch_nor_sb3(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    everywhere = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {name.split(".")[0] for name in imports_at_the_top(module, everywhere)}
    assert not names & {"torch", "stable_baselines3", "sb3_contrib", "sb3_vla"}


def test_importing_the_environments_loads_no_simulator():
    code = "import sys, sb3_vla_envs; print([name for name in sys.argv[1:] if name in sys.modules])"
    heavy = ["torch", "stable_baselines3", "sb3_vla", "mujoco", "metaworld", "gymnasium_robotics"]
    printed = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_every_package_folder_is_installed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split()) - {"sb3_vla.zoo_configs"}
    assert listed == {module for module, path in MODULES.items() if path.name == "__init__.py"}


def test_only_its_own_folder_names_metaworld():
    allowed = [ROOT / "envs" / "metaworld", ROOT / "envs" / "__init__.py", ROOT / "sb3_vla" / "api.py"]
    elsewhere = [path for path in MODULES.values() if not any(path.is_relative_to(folder) for folder in allowed)]
    naming = [path for path in elsewhere if "metaworld" in path.read_text(encoding="utf-8").lower()]
    assert not [str(path.relative_to(ROOT)) for path in naming]
