"""Post-train vision-language-action policies with reinforcement learning, the Stable-Baselines3 way."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .common import openmp  # noqa: F401  # before anything imports torch
from .common.version import __version__  # noqa: F401

if TYPE_CHECKING:
    from .api import *  # noqa: F403


def __getattr__(name: str) -> Any:
    # On first use only: `sb3-vla --help` shall not wait for torch
    if name == "__all__" or not (name.startswith("_") or find_spec(f"{__name__}.{name}")):
        api = import_module(".api", __name__)
        if name in ("__all__", *api.__all__):
            return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
