"""How much `pip install keras-rda` brings, and how much each extra adds: megabytes, packages, seconds.

    python examples/benchmarks/install_size.py [EXTRA …]      # prints a table, as Markdown

It builds the wheel of this checkout and installs it into a fresh virtual environment, without pip's cache. What an
extra adds to that is installed beside it. (An extra that wants another version of a package adds that package.)
"""

import argparse
import configparser
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import venv

ROOT = pathlib.Path(__file__).parents[2]


def pip(*arguments):
    """What pip prints."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def missing(python, requirement):
    """What pip would install for an environment's Python: a list of `name==version`."""
    report = pip("--python", python, "install", "--quiet", "--dry-run", "--report", "-", requirement)
    found = (package["metadata"] for package in json.loads(report)["install"])
    return [f"{package['name']}=={package['version']}" for package in found if package["name"] != "keras-rda"]


def row(requirement, folder, packages, *arguments):
    """Install by pip with these arguments; return the row of the table: what is in `folder` then, and the time."""
    start = time.perf_counter()
    pip(*arguments)
    seconds = time.perf_counter() - start
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    return f"| `{requirement}` | {size / 1e6:,.0f} | {packages} | {seconds:.0f} |"


def main():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    known = list(setup["options.extras_require"])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help=f"which of {', '.join(known)}; without any, all")
    extras = parser.parse_args().extras or known
    print("| pip install | MB on disk | packages | seconds |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        pip("wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
        (wheel,) = folder.glob("*.whl")
        venv.create(folder / "environment")
        python = folder / "environment" / "bin" / "python"
        needed = len(missing(python, wheel)) + 1
        install = ("install", "--quiet", "--no-cache-dir")
        print(row("keras-rda", folder / "environment", needed, "--python", python, *install, wheel), flush=True)
        for extra in extras:
            added = missing(python, f"{wheel}[{extra}]")
            beside = ("--python", python, *install, "--no-deps", "--target", folder / extra, *added)
            print(row(f"keras-rda[{extra}]", folder / extra, f"+ {len(added)}", *beside), flush=True)


if __name__ == "__main__":
    main()
