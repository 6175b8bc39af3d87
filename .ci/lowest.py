"""Prints the lowest versions that requirements files allow, as pins for pip's --constraint.

  python .ci/lowest.py requirements-test.txt > lowest.txt
  pip install -r requirements-test.txt -c lowest.txt

Follows `-r`. Of a requirement with a marker only those of this interpreter count; what names no
lower bound is an error, since nothing would hold it.
"""

import sys
from pathlib import Path

from packaging.requirements import Requirement


def lowest(path: Path) -> dict[str, str]:
    """Package -> lowest version of a requirements file and of those that it names."""
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("-r"):
            found |= lowest(path.parent / text.removeprefix("-r").strip())
        elif text:
            requirement = Requirement(text)
            if requirement.marker and not requirement.marker.evaluate():
                continue
            bounds = [s.version for s in requirement.specifier if s.operator in (">=", "==", "~=")]
            if not bounds:
                sys.exit(f"{path}: {text} has no lower bound")
            found[requirement.name] = bounds[0]
    return found


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        for name, version in lowest(Path(argument)).items():
            print(f"{name}=={version}")
