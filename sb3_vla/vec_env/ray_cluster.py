"""The Ray cluster on which environments run: reaching it, and whether there is room."""

import importlib
import os
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

_SECONDS_TO_CONNECT = 5.0


def import_ray() -> Any:
    """
    :return: The module
    :raises ImportError: If it is not installed
    """
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ImportError("environments on a Ray cluster need Ray: pip install 'sb3-vla[ray]'") from error


def connect(address: str | None) -> None:
    """
    Connect to a cluster, unless this process is connected already.

    :param address: ``"HOST:PORT"``, ``"auto"`` for the one on this machine, by default that of the environment variable
        ``RAY_ADDRESS``; without either this machine becomes a cluster of its own
    :raises ConnectionError: If no cluster answers there
    """
    ray = import_ray()
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address is None:
        ray.init(address="local", include_dashboard=False, logging_level="warning")
        return
    hint = f"no Ray cluster answers at {address!r}: start one with `ray start --head`, or give the HOST:PORT that it printed"
    host = urlsplit(address if "://" in address else f"tcp://{address}")
    if host.port is not None and host.hostname is not None:
        try:  # Ray itself tries for minutes
            socket.create_connection((host.hostname, host.port), _SECONDS_TO_CONNECT).close()
        except OSError as error:
            raise ConnectionError(f"{hint} ({error})") from error
    try:
        ray.init(address=address, logging_level="warning")
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        raise ConnectionError(f"{hint} ({' '.join(str(error).split())[:200]})") from error


def count_places(resources: Mapping[str, float]) -> int:
    """
    :param resources: What each worker needs of a node
    :return: How many workers the nodes have room for
    :raises ValueError: If none has
    """
    nodes = [node["Resources"] for node in import_ray().nodes() if node["Alive"]]
    places = sum(
        int(min((node.get(name, 0.0) / amount for name, amount in resources.items() if amount), default=1)) for node in nodes
    )
    if places == 0:
        there = [{name: amount for name, amount in node.items() if ":" not in name and "memory" not in name} for node in nodes]
        raise ValueError(f"no node of the Ray cluster has {dict(resources)}, which a worker needs: the nodes have {there}")
    return places


def check_object_store(n_bytes: int) -> None:
    """
    :param n_bytes: Observations of a step of all environments
    :raises ValueError: If two of them, one in use and one on its way, don't fit into this node's object store
    """
    ray = import_ray()
    here = ray.get_runtime_context().get_node_id()
    store = next((node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["NodeID"] == here), None)
    if store is not None and 2 * n_bytes > store:
        raise ValueError(
            f"the observations of a step take {n_bytes / 2**20:.0f} MiB, and twice that must fit into Ray's object store, "
            f"which has {store / 2**20:.0f} MiB here: start Ray with --object-store-memory={4 * n_bytes}, or use fewer "
            "environments"
        )
