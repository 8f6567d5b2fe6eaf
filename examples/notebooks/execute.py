"""Run the notebooks of this folder from first to last cell, and keep what they print and draw.

    python examples/notebooks/execute.py
    python examples/notebooks/execute.py fine_tuning whole_channels

A notebook is written only if no cell failed and none warned. It remembers the code that its outputs are of, so that a
test can tell when that has changed.
"""

import argparse
import hashlib
import pathlib
import re
import tempfile

import nbclient
import nbformat

from keras_rda import output

FOLDER = pathlib.Path(__file__).parent


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(notebook):
    """The cells with code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def digest(notebook):
    """A checksum of the code of all cells."""
    return hashlib.sha256("\0".join(cell.source for cell in code(notebook)).encode()).hexdigest()[:16]


def execute(notebook, **parameters):
    """Run the cells in a kernel of this environment, in an empty folder, and put the outputs in place.

    Args:
        notebook: As of `read`; it is changed.
        parameters: Values in place of those that the cell with the tag `parameters` gives these names.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
        RuntimeError: a cell wrote to its standard error, as warnings do.
    """
    (given,) = [cell for cell in code(notebook) if "parameters" in cell.metadata.get("tags", ())]
    for name, value in parameters.items():
        given.source, number = re.subn(
            rf"^{name} = [^#\n]*?(?= *(#|$))", f"{name} = {value!r}", given.source, flags=re.M
        )
        if number != 1:
            raise ValueError(f"The notebook's parameters have no {name!r}: {given.source}")
    with tempfile.TemporaryDirectory() as folder:
        nbclient.NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            iopub_timeout=60,
            raise_on_iopub_timeout=True,  # else what comes late is lost
            coalesce_streams=True,
            record_timing=False,
            # What TensorFlow's C++ code logs goes to the terminal.
            extra_arguments=["--IPKernelApp.capture_fd_output=False"],
        ).execute()
    for cell in code(notebook):
        for result in cell.outputs:
            if result.get("name") == "stderr":
                raise RuntimeError(f"A cell wrote to its standard error:\n{cell.source}\n\n{result.text}")
    notebook.metadata.pop("language_info", None)  # Python's version here


def main():
    names = sorted(file.stem for file in FOLDER.glob("*.ipynb"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", default=names, help=f"default: {' '.join(names)}")
    for name in parser.parse_args().names:
        notebook = read(name)
        execute(notebook)
        notebook.metadata["executed"] = digest(notebook)
        with output.replacing(FOLDER / f"{name}.ipynb") as unfinished:
            nbformat.write(notebook, unfinished)
        print(f"{name}: {unfinished.parent.joinpath(f'{name}.ipynb').stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
