"""``emocaliber doctor``: what is installed, what is missing, and what to do about it."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.cli import EXIT_ERROR, EXIT_OK
from emocaliber.runtime.errors import EmoCaliberError
from emocaliber.runtime.manifest import Manifest

from .console import write_text

PACKAGE = "emocaliber"
CORE = ("numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "tokenizers", "tqdm")
"""Distributions of the runtime; one of the two onnxruntime is needed, never both."""

INSTALL = {"gpu": "pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]'"}
"""Extras that take more than ``pip install``: both onnxruntime have one import name, and pip cannot swap them."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_BRACKETS = re.compile(r"\[([^\]]*)\]")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``doctor``."""
    parser.add_argument("--bundle", metavar="B", help="examine this bundle instead of the embedded one")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")


def run(arguments: argparse.Namespace) -> int:
    """Writes the findings; returns 1 if the runtime cannot work as it is."""
    findings = examine(arguments.bundle)
    write_text(json.dumps(findings, indent=1) if arguments.json else _text(findings))
    return EXIT_OK if findings["ok"] else EXIT_ERROR


def examine(bundle: str | None = None) -> dict[str, Any]:
    """Returns everything found, ready for JSON; ``ok`` tells if the runtime works, ``faults`` what to do if not."""
    packages = {name: _installed(name) for name in CORE}
    faults = _package_faults(packages)
    providers = _providers(faults)
    examined = _examine_bundle(bundle, faults, runs=bool(providers))
    return {
        "ok": not faults,
        "emocaliber": _installed(PACKAGE),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": _cores(),
        "memory_gib": _memory_gib(),
        "packages": packages,
        "providers": providers,
        "tensorrt": next((name for name in ("tensorrt", "tensorrt_rtx") if importlib.util.find_spec(name)), None),
        "extras": _extras(),
        "bundle": examined,
        "faults": faults,
    }


def _fault(what: str, fix: str) -> dict[str, str]:
    return {"what": what, "fix": fix}


def _installed(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _package_faults(packages: dict[str, str | None]) -> list[dict[str, str]]:
    faults = [
        _fault(f"{name} is not installed", f"pip install {PACKAGE}")
        for name, version in packages.items()
        if version is None and not name.startswith("onnxruntime")
    ]
    if packages["onnxruntime"] and packages["onnxruntime-gpu"]:
        faults.append(
            _fault(
                "onnxruntime and onnxruntime-gpu are both installed; they overwrite each other's files",
                "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu "
                "(or onnxruntime, for the processor only)",
            )
        )
    return faults


def _providers(faults: list[dict[str, str]]) -> list[str]:
    try:
        from emocaliber.runtime.onnx_runtime import onnxruntime

        return [str(name) for name in onnxruntime.get_available_providers()]
    except (ImportError, AttributeError, OSError) as error:
        faults.append(_fault(f"onnxruntime cannot be imported: {error}", "pip install --force-reinstall onnxruntime"))
        return []


def _cores() -> int:
    """Returns the processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gib() -> float | None:
    """Returns the machine's memory in GiB, or None where the system does not tell."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _examine_bundle(path: str | None, faults: list[dict[str, str]], *, runs: bool) -> dict[str, Any]:
    """Returns whether the bundle opens and matches its hashes and, where ONNX Runtime ``runs``, what engines do."""
    shown = path or "embedded"
    fix = f"pip install --force-reinstall {PACKAGE}, or give --bundle"
    try:
        with Bundle.open(path) as bundle:
            manifest = bundle.manifest
    except (EmoCaliberError, ImportError) as error:
        faults.append(_fault(f"bundle ({shown}): {error}", fix))
        return {"path": shown, "ok": False, "error": str(error)}
    engines = _try_engines(path) if runs else {}
    if runs and not engines["cpu"]["ok"]:
        faults.append(_fault(f"bundle ({shown}): {engines['cpu']['error']}", fix))
    working = {name: tried for name, tried in engines.items() if tried["ok"]}
    return {
        "path": shown,
        "ok": bool(working) or not runs,
        "name": manifest.name,
        "version": manifest.version,
        "predicted_peak_mib": _predicted_peak_mib(manifest, faults) if runs else None,
        "engines": engines,
        "fastest": min(working, key=lambda name: float(working[name]["ms"]), default=None),
    }


def _try_engines(path: str | None) -> dict[str, dict[str, Any]]:
    """Returns what each engine that this ONNX Runtime was built with does, the processor first."""
    # Imported here: without a working onnxruntime this command must still come up and say so.
    from emocaliber.runtime.engine import available_engines

    from .trial import try_engine

    return {name: try_engine(path, name) for name in available_engines()}


def _predicted_peak_mib(manifest: Manifest, faults: list[dict[str, str]]) -> float:
    from .trial import predicted_peak_mib

    predicted_mib, memory_gib = predicted_peak_mib(manifest, manifest.default_precision), _memory_gib()
    if memory_gib is not None and predicted_mib > memory_gib * 1024:
        what = f"bundle {manifest.name} needs about {predicted_mib:.0f} MiB, this machine has {memory_gib} GiB"
        faults.append(_fault(what, "choose a smaller bundle, or a smaller precision of it"))
    return predicted_mib


def _extras() -> dict[str, dict[str, Any]]:
    """Returns for every extra which of its packages are missing and the command that adds them."""
    requirements = metadata.requires(PACKAGE) or [] if _installed(PACKAGE) else []
    table: dict[str, list[str]] = {}
    for requirement in requirements:
        extra = _EXTRA.search(requirement)
        if extra:
            table.setdefault(extra.group(1), []).append(requirement)
    extras: dict[str, dict[str, Any]] = {}
    for name in sorted(table):
        missing = sorted(needed for needed in _distributions(name, table, set()) if _installed(needed) is None)
        install = INSTALL.get(name, f"pip install '{PACKAGE}[{name}]'")
        extras[name] = {"installed": not missing, "missing": missing, "install": install}
    return extras


def _distributions(extra: str, table: dict[str, list[str]], seen: set[str]) -> set[str]:
    """Returns the distributions an extra needs on this Python, extras it refers to included."""
    seen.add(extra)
    found: set[str] = set()
    for requirement in table.get(extra, []):
        specifier, _, marker = requirement.partition(";")
        name = _NAME.match(specifier.strip())
        if name is None or "python_version" in marker:
            continue
        if name.group() == PACKAGE:
            found |= _nested(_BRACKETS.search(specifier), table, seen)
        else:
            found.add(name.group())
    return found


def _nested(brackets: re.Match[str] | None, table: dict[str, list[str]], seen: set[str]) -> set[str]:
    names: Iterable[str] = brackets.group(1).split(",") if brackets else ()
    return {found for name in names if name.strip() not in seen for found in _distributions(name.strip(), table, seen)}


def _text(findings: dict[str, Any]) -> str:
    memory = "unknown" if findings["memory_gib"] is None else f"{findings['memory_gib']} GiB"
    lines = [
        f"emocaliber {findings['emocaliber'] or 'from source'}, Python {findings['python']}",
        f"{findings['platform']}, {findings['cores']} cores, memory {memory}",
        "",
        "packages   " + ", ".join(f"{name} {version}" for name, version in findings["packages"].items() if version),
        f"providers  {', '.join(findings['providers']) or 'none'}",
        f"TensorRT   {findings['tensorrt'] or 'not installed'}",
        *_bundle_lines(findings["bundle"]),
    ]
    lines += [f"extra      {name}: {_extra_text(extra)}" for name, extra in findings["extras"].items()]
    lines.append("")
    for fault in findings["faults"]:
        lines += [f"fault: {fault['what']}", f"  fix: {fault['fix']}"]
    return "\n".join([*lines, "the runtime works" if findings["ok"] else "the runtime does not work as it is"])


def _bundle_lines(bundle: dict[str, Any]) -> list[str]:
    if not bundle["ok"]:
        return [f"bundle     {bundle['path']}: not usable"]
    lines = [f"bundle     {bundle['name']} {bundle['version']} ({bundle['path']}), verified"]
    if bundle["predicted_peak_mib"] is not None:
        lines.append(
            f"memory     about {bundle['predicted_peak_mib']:.0f} MiB on the processor (predicted), "
            "and 10 bytes a pixel of the image"
        )
    for name, tried in bundle["engines"].items():
        fastest = ", the fastest that works" if name == bundle["fastest"] else ""
        lines.append(f"engine     {name}: {_tried_text(tried)}{fastest}")
    return lines


def _tried_text(tried: dict[str, Any]) -> str:
    if not tried["ok"]:
        return f"does not work: {tried['error']}"
    peak = "" if tried["peak_mib"] is None else f", peak {tried['peak_mib']:.0f} MiB"
    return f"first prediction after {tried['first_ms']:.0f} ms, then {tried['ms']:.1f} ms each{peak}"


def _extra_text(extra: dict[str, Any]) -> str:
    if extra["installed"]:
        return "installed"
    return f"{extra['install']}   (missing: {', '.join(extra['missing'])})"
