"""MkDocs' hook: the repository as a site, in which every page keeps its path.

MkDocs takes pages from one folder. Here they lie where a reader of the repository looks for them, and their links work
there. So the site has the same paths: what `nav` in `mkdocs.yml` names, what lies in `docs`, and whatever file these
link to, a source file as a page that shows it. Notebooks become Markdown, with the outputs that
they were saved with. MkDocs then checks all links and anchors as they are written.
"""

import functools
import importlib.util
import os
import pathlib
import re

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files, InclusionLevel
from nbconvert import MarkdownExporter
from traitlets.config import Config

# The commands' help is read from their code, which imports Keras. TensorFlow takes longer, and writes to the terminal.
if importlib.util.find_spec("jax"):
    os.environ.setdefault("KERAS_BACKEND", "jax")

# What is shown on a page, and in which language.
SOURCES = {".py": "python", ".toml": "toml", ".js": "javascript", ".html": "html", ".jsonl": "json", ".sh": "sh"}
LINK = re.compile(r"\]\(([^)\s#]+)")
# What has links already, or is no prose.
CLOSED = re.compile(r"(<(a|h[1-6]|pre|autoref)\b.*?</\2>)", re.DOTALL)
CODE = re.compile(r"<code>((?:\w+\.)*\w+)(\(.*?\))?</code>")


class Page(File):
    """A file that is shown as a page, made of Markdown that is not what it holds."""

    def is_documentation_page(self):
        return True


@event_priority(100)  # before other plugins look at the files
def on_files(files, config):
    root = _root(config)
    own = f"{pathlib.Path(config.docs_dir).relative_to(root).as_posix()}/"
    here = [file for file in files if file.src_dir == config.docs_dir]
    named = [own + file.src_uri for file in here if not file.inclusion.is_excluded()] + list(_leaves(config.nav))
    waiting, found = list(dict.fromkeys(named)), Files([file for file in files if file not in here])  # the theme's
    for path in waiting:  # it grows
        if not (root / path).is_file():
            continue  # MkDocs says so
        for file in _files(path, root, config):
            if path.startswith(own) and not isinstance(file, Page):
                file.dest_uri = file.dest_uri.removeprefix(own)
            if path not in named:
                file.inclusion = InclusionLevel.NOT_IN_NAV
            found.append(file)
        if path.endswith((".md", ".ipynb")):
            text = found.get_file_from_path(path).content_string
            links = ((root / path).parent.joinpath(link).resolve() for link in LINK.findall(text) if ":" not in link)
            linked = (link.relative_to(root).as_posix() for link in links if link.is_relative_to(root))
            waiting += [link for link in dict.fromkeys(linked) if link not in waiting]
    return found


def on_page_markdown(markdown, page, config, files):
    if page.parent is None:
        page.meta["hide"] = ["navigation"]  # a tab by itself: no list of pages beside it, but more room
    if page.file.src_uri.startswith("docs/api/"):
        page.meta["search"] = {"boost": 5}  # who searches a name wants what it means, before where it was used


def on_page_content(html, page, config, files):
    """Let names of the API in the prose lead to it."""
    names = _names(_root(config))

    def reference(match):
        name = names.get(match[1].removeprefix("keras_rda."))
        return f'<autoref optional identifier="{name}">{match[0]}</autoref>' if name else match[0]

    parts = CLOSED.split(html)  # prose, closed, its tag, prose, …
    parts[::3] = [CODE.sub(reference, prose) for prose in parts[::3]]
    return "".join(part for number, part in enumerate(parts) if number % 3 != 2)


def _root(config):
    return pathlib.Path(config.config_file_path).parent.resolve()


def _leaves(entry):
    if isinstance(entry, str):
        yield entry
    else:
        for part in entry.values() if isinstance(entry, dict) else entry:
            yield from _leaves(part)


def _files(path, root, config):
    """The files of the site that a file of the repository becomes."""
    place = {"src_dir": str(root), "dest_dir": config.site_dir, "use_directory_urls": config.use_directory_urls}
    suffix = pathlib.PurePosixPath(path).suffix
    if suffix in SOURCES:
        page = Page(path, **place, dest_uri=f"{path}/index.html")
        text = (root / path).read_text(encoding="utf-8")
        page.content_string = f"# {path}\n\n````` {SOURCES[suffix]}\n{text}\n`````\n"
        return [page]
    if suffix == ".ipynb":
        page = Page(path, **place)
        folder, name = path.rsplit("/", 1)
        download = File.generated(config, f"{folder}/download/{name}", abs_src_path=str(root / path))
        page.content_string = _from_notebook(root / path, f"download/{name}")
        return [page, download]
    return [File(path, **place)]


def _from_notebook(path, download):
    joined = Config({"CoalesceStreamsPreprocessor": {"enabled": True}})  # a progress bar is its last state
    exporter = MarkdownExporter(config=joined, template_file=str(pathlib.Path(__file__).parent / "notebook.md.j2"))
    text, _ = exporter.from_filename(str(path))
    title, _, rest = text.strip().partition("\n")
    return f"{title}\n\n[Download this notebook]({download})\n\n{rest}\n"


@functools.cache
def _names(root):
    """Name in prose → identifier in the API."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in sorted(root.glob("docs/api/*.md")))
    identifiers = re.findall(r"^::: (keras_rda\.\S+)", text, re.MULTILINE)
    short = {identifier.rsplit(".", 1)[1]: identifier for identifier in identifiers}
    return {**short, **{identifier.removeprefix("keras_rda."): identifier for identifier in identifiers}}
