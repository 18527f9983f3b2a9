"""
Folders that travel to a machine with torch and a GPU and nothing else: wheels, a checkpoint, data and this project.

    python benchmarks/travel.py OUT_DIR --model CHECKPOINT --dataset HH.parquet [--megabytes 60]

It writes `OUT_DIR/part-01`, `part-02`, …, each at most so large, and `OUT_DIR/unpack.sh`, which puts them together
again in a folder that holds all of them, and says what to type then.

Wheels are those of this project's dependencies for the Python that runs this script, in the versions that are
installed here, without torch and what it alone needs.
"""

import argparse
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


ROOT = Path(__file__).parents[1]
PACKAGES = (
    "trl", "datasets", "evaluate", "transformers", "huggingface-hub", "accelerate", "peft", "tokenizers",
    "safetensors", "evalica", "filelock", "scipy", "numpy", "pandas", "pyarrow", "dill", "multiprocess", "xxhash",
    "matplotlib", "sentence-transformers", "scikit-learn", "bitsandbytes",
)  # fmt: skip
TORCH = "torch"  # the machine has it, and what it alone needs
UNPACK = """set -e
cat part-*/piece > all.tar
tar xf all.tar && rm all.tar
python3 -m venv --system-site-packages venv
venv/bin/pip install --no-index --find-links wheels --no-deps wheels/*.whl
echo "PYTHONPATH=project venv/bin/python project/benchmarks/on_accelerator.py --model model --dataset data.parquet"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", type=Path, help="folder of a checkpoint")
    parser.add_argument("--dataset", type=Path, help="preference data as one file")
    parser.add_argument("--packages", nargs="*", default=list(PACKAGES), help="wheels to download; none for none")
    parser.add_argument("--megabytes", type=int, default=60, help="largest part")
    args = parser.parse_args()
    args.output.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as work:
        archive = Path(work) / "all.tar"
        with tarfile.open(archive, "w") as tar:
            for name in ("trl_real", "benchmarks", "tests/support"):
                tar.add(ROOT / name, f"project/{name}", filter=without_caches)
            if args.packages:
                tar.add(wheels(Path(work) / "wheels", args.packages), "wheels")
            for source, name in ((args.model, "model"), (args.dataset, "data.parquet")):
                if source:
                    tar.add(source, name)
        n_parts = cut(archive, args.output, args.megabytes * 2**20)
    (args.output / "unpack.sh").write_text(UNPACK)
    print(f"{n_parts} parts in {args.output}")


def without_caches(item: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Return the item, or None for what Python compiled."""
    return None if "__pycache__" in item.name else item


def wheels(folder: Path, packages: list[str]) -> Path:
    """Download wheels of the versions that are installed here."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", "--no-deps", "-d", str(folder)]
    subprocess.run([*command, *needed(packages)], check=True)
    return folder


def needed(packages: list[str]) -> list[str]:
    """Return packages and what they need, with the versions that are installed here, without torch."""
    found: dict[str, str] = {}
    left = list(packages)
    while left:
        name = canonicalize_name(left.pop())
        if name in found or name == TORCH:
            continue
        try:
            installed = distribution(name)
        except PackageNotFoundError:  # the newest one, without what it needs
            found[name] = name
            continue
        found[name] = f"{name}=={installed.version}"
        requirements = [Requirement(line) for line in installed.requires or ()]
        left += [each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    return sorted(found.values())


def cut(archive: Path, output: Path, size: int) -> int:
    """Write the archive as folders with one piece each; return their number."""
    number = 0
    with archive.open("rb") as whole:
        while piece := whole.read(size):
            number += 1
            part = output / f"part-{number:02d}"
            part.mkdir()
            (part / "piece").write_bytes(piece)
    return number


if __name__ == "__main__":
    main()
