"""What graphopt says about every bad input that its tests know, as a Markdown table.

python bench/bad_inputs.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from bad_input_cases import CASES, Kit
from command import graphopt


def main() -> None:
    """Run every case and print a row for it."""
    print("| bad input | command | exit | what it says |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as root:

        def compiled() -> Path:
            path = Path(root) / "model.gopt"
            if not path.exists():
                graphopt("optimize", Kit(Path(root), compiled).model(), "-o", path, "-q")
            return path

        for case in CASES:
            with tempfile.TemporaryDirectory() as folder:
                kit = Kit(Path(folder), compiled)
                args = case.args(kit)
                outcome = case.run(kit, args)
                said = outcome.err.strip().replace("\n", "<br>") or "(nothing)"
                row = (case.name, " ".join(map(str, args[:1])), str(outcome.status), said)
                cells = (cell.replace(f"{folder}/", "").replace("|", r"\|") for cell in row)
                print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
