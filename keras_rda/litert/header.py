"""A LiteRT file as the C header that firmware for a microcontroller includes."""

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
# Of C up to C23 and C++ up to C++20, and `main`, but for those that begin with `_`.
_WORDS = """
alignas alignof and and_eq asm auto bitand bitor bool break case catch char char16_t char32_t char8_t class co_await
co_return co_yield compl concept const const_cast consteval constexpr constinit continue decltype default delete do
double dynamic_cast else enum explicit export extern false float for friend goto if inline int long main mutable
namespace new noexcept not not_eq nullptr operator or or_eq private protected public register reinterpret_cast
requires restrict return short signed sizeof static static_assert static_cast struct switch template this
thread_local throw true try typedef typeid typename typeof typeof_unqual union unsigned using virtual void volatile
wchar_t while xor xor_eq
"""


def header_text(content, name="model", arena=None):
    """The text of a C or C++ header that holds a LiteRT file.

    Args:
        content: The file's content, `bytes`.
        name: The array's name; its length is `NAME_len`.
        arena: Bytes of the arena that the file takes, for the comment.

    Raises:
        ValueError: the name or that of a custom operator is no identifier of C, or the content is no LiteRT file.
    """
    check_name(name)
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


def check_name(name):
    """Raise a `ValueError` for what an array cannot be called in C and C++."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name in _WORDS.split():
        raise ValueError(
            "header: the array's name, which is the file's, must be an identifier of C and no word of C or C++, such "
            f"as 'model'; received {name!r}."
        )


def resolver_calls(model):
    """The functions of TFLite Micro's `MicroMutableOpResolver` that add the operators of a `ModelT`, sorted."""
    kinds = {micro.name(model, operator) for graph in model.subgraphs for operator in graph.operators}
    calls = sorted("Add" + "".join(_spelled(word) for word in kind.split("_")) for kind in kinds)
    if strange := [call for call in calls if not re.fullmatch(r"\w+", call, re.ASCII)]:
        raise ValueError(f"The file has a custom operator that is no name in C: {output.printable(strange[0][3:])!r}.")
    return calls


def _spelled(word):
    return _SPELLED.get(word, word.upper() if word[:1].isdigit() else word.capitalize())
