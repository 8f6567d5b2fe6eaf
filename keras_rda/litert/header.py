"""A LiteRT file as the C header that firmware for a microcontroller includes."""

import pathlib
import re

from keras_rda import output
from keras_rda.litert import flatbuffer
from keras_rda.litert.machines import micro

# Words of TFLite Micro's own spelling in the names of `MicroMutableOpResolver`'s functions.
_SPELLED = {
    "CUMSUM": "CumSum",
    "LSTM": "LSTM",
    "PADV2": "PadV2",
    "TFLM": "",
    "TFLite": "",
    "PostProcess": "Postprocess",
}
_LINE = 20  # bytes


def header(content, name="model", arena=None):
    """The text of a C or C++ header that holds a LiteRT file.

    Args:
        content: The file's content, `bytes`.
        name: The array's name; its length is `NAME_len`.
        arena: Bytes of the arena that the file takes, for the comment.

    Raises:
        ValueError: the name or that of a custom operator is no identifier of C, or the content is no LiteRT file.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise ValueError(f"header: name must be an identifier of C, such as 'model'; received {name!r}.")
    calls = resolver_calls(flatbuffer.read(content))
    lines = [
        "// A network for TFLite Micro. The file's operators:",
        "//",
        f"//     tflite::MicroMutableOpResolver<{len(calls)}> resolver;",
        *(f"//     resolver.{call}();" for call in calls),
        "//",
    ]
    if "AddDecode" in calls:
        lines.append("// AddDecode is in TFLite Micro since the second half of 2025.")
    if arena is not None:
        lines.append(f"// Arena: {arena} bytes, measured where pointers have 64 bits; 32 take a little less.")
    guard = f"{name.upper()}_H_"
    lines += [
        f"#ifndef {guard}",
        f"#define {guard}",
        "",
        "#ifdef __cplusplus",
        "alignas(16)",
        "#else",
        "_Alignas(16)",
        "#endif",
        f"static const unsigned char {name}[] = {{",
        *("    " + ", ".join(map(str, content[i : i + _LINE])) + "," for i in range(0, len(content), _LINE)),
        "};",
        f"static const unsigned int {name}_len = {len(content)};",
        "",
        f"#endif  // {guard}",
    ]
    return "\n".join(lines) + "\n"


def write_header(path, content, name="model", arena=None):
    """Write `header(content, name, arena)` to a file: beside it first, then in its place."""
    text = header(content, name, arena)
    with output.replacing(pathlib.Path(path)) as unfinished:
        unfinished.write_text(text)


def resolver_calls(model):
    """The functions of TFLite Micro's `MicroMutableOpResolver` that add the operators of a `ModelT`, sorted."""
    kinds = {micro.name(model, operator) for graph in model.subgraphs for operator in graph.operators}
    calls = sorted("Add" + "".join(_spelled(word) for word in kind.split("_")) for kind in kinds)
    if strange := [call for call in calls if not re.fullmatch(r"\w+", call, re.ASCII)]:
        raise ValueError(f"The file has a custom operator that is no name in C: {output.printable(strange[0][3:])!r}.")
    return calls


def _spelled(word):
    return _SPELLED.get(word, word.upper() if word[:1].isdigit() else word.capitalize())
