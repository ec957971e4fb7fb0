"""Picture: what a domain can touch, in the language of Graphviz.

Source: https://graphviz.org/doc/info/lang.html
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from shoal.manager.capabilities.difference import WORST_FIRST, Kind
from shoal.manager.capabilities.granted import Granted
from shoal.manager.capabilities.observed import Observed
from shoal.manager.capabilities.tree import NETWORKS, shown

if TYPE_CHECKING:
    from shoal.manager.capabilities.view import Capabilities

_COLOURS: Final = {"beyond": "red", "lost": "red", "missing": "orange", "unseen": "orange"}


def picture(capabilities: Capabilities) -> str:
    """A graph: the domain, what it was given, its processes and what they have open. What differs is red or orange."""
    kinds: dict[str, Kind] = {}
    for item in capabilities.differences:
        kinds.setdefault(item.subject, item.kind)
    name = (capabilities.name,) if capabilities.domain_id is None else (f"domain {capabilities.domain_id}", capabilities.name)
    lines = ["digraph capabilities {", "  rankdir=LR;", '  node [shape=box, fontname="sans-serif", fontsize=10];', "  edge [fontsize=9];"]
    lines.append(f"  domain [label={_quoted(*name)}, shape=doubleoctagon];")
    if capabilities.granted is not None:
        lines += [f"  {line}" for line in _granted(capabilities.granted, kinds)]
    if capabilities.observed is not None:
        lines += [f"  {line}" for line in _observed(capabilities.observed, kinds)]
    lines += [f"  {line}" for line in _others(capabilities)]
    return "\n".join([*lines, "}", ""])


def _granted(granted: Granted, kinds: dict[str, Kind]) -> Iterator[str]:
    yield "subgraph cluster_granted {"
    yield '  label="granted"; style=rounded;'
    edges = []
    for index, mount in enumerate(granted.mounts):
        colour = _colour(kinds.get(f"mount {mount.where}"))
        yield f"  mount{index} [label={_quoted(mount.where, mount.what)}{colour}];"
        edges.append(f'domain -> mount{index} [label="{"rw" if mount.writable else "ro"}"{colour}];')
    for index, rule in enumerate(granted.files):
        yield f"  file{index} [label={_quoted(rule.path)}];"
        edges.append(f'domain -> file{index} [label="{"rw" if rule.writable else "ro"}"];')
    for item in granted.descriptors:
        yield f"  fd{item.fd} [label={_quoted(f'descriptor {item.fd}', item.what)}, shape=ellipse];"
        edges.append(f'domain -> fd{item.fd} [label="{item.access}"];')
    yield f"  network [label={_quoted('network', NETWORKS.get(granted.network, granted.network))}{_colour(kinds.get('network'))}];"
    yield "}"
    yield "domain -> network;"
    yield from edges


def _observed(observed: Observed, kinds: dict[str, Kind]) -> Iterator[str]:
    targets: dict[str, str] = {}
    edges = []
    yield "subgraph cluster_processes {"
    yield '  label="processes"; style=rounded;'
    for process in observed.processes:
        if process.keeper:
            continue
        yield f"  process{process.pid} [label={_quoted(f'{process.pid} {process.name}')}, shape=oval, style=filled, fillcolor=lightgrey];"
        edges.append(f"domain -> process{process.pid} [style=bold];")
        for item in process.descriptors or ():
            target = targets.setdefault(item.link, f"open{len(targets)}")
            colour = _colour(kinds.get(f"descriptor {item.fd} of {process.pid}"))
            edges.append(f'process{process.pid} -> {target} [label="{item.fd} {item.access}"{colour}];')
    yield "}"
    for link, target in targets.items():
        yield f"{target} [label={_quoted(link)}, shape=note];"
    yield from edges


def _others(capabilities: Capabilities) -> Iterator[str]:
    """The differences that are in nothing drawn so far."""
    drawn = {f"mount {mount.where}" for mount in capabilities.granted.mounts} if capabilities.granted else set()
    index = 0
    for item in sorted(capabilities.differences, key=lambda item: WORST_FIRST.index(item.kind)):
        if item.subject in drawn or item.subject.startswith("descriptor ") or item.subject == "network":
            continue
        yield f"difference{index} [label={_quoted(f'{item.kind}: {item.subject}', item.what)}, shape=octagon{_colour(item.kind)}];"
        yield f"domain -> difference{index} [style=dashed{_colour(item.kind)}];"
        index += 1


def _colour(kind: Kind | None) -> str:
    return "" if kind is None else f", color={_COLOURS[kind]}, fontcolor={_COLOURS[kind]}"


def _quoted(*lines: str) -> str:
    """A label. The language reads a backslash in one as the beginning of something."""
    return '"' + "\\n".join(shown(line).replace("\\", "\\\\").replace('"', '\\"') for line in lines) + '"'
