"""Which names are documents, and of what kind. Knows names only; whether a file is what its name says, its reader finds
out. Imported by the parser process too, so it imports nothing of this project."""

from pathlib import PurePosixPath

_CODE = (
    "bash c cc cfg clj cpp cs css cxx dart erl ex exs f90 go gradle graphql groovy h hpp hs ini java jl js json jsonl "
    "jsx kt kts less lua m ml mm nix pas php pl pm properties proto ps1 py pyi r rb rs scala scss sh sol sql swift tcl "
    "tex tf toml ts tsx vb vue xml yaml yml zig zsh"
)
_SUFFIXES = {
    "markdown": "md markdown mdx",
    "rst": "rst",
    "text": "txt text log adoc asciidoc org",
    "rows": "csv tsv",
    "code": _CODE,
    "html": "html htm xhtml",
    "pdf": "pdf",
    "word": "docx docm",
    "slides": "pptx pptm",
    "sheets": "xlsx xlsm",
    "mail": "eml",
    "mbox": "mbox",
    "zip": "zip",
    "tar": "tar tgz tbz2 txz",
    "packed": "gz bz2 xz",
}
KINDS = {f".{suffix}": kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}
SUFFIXES = frozenset(KINDS)
# Well-known names without a suffix, in lower case.
NAMES = {
    **dict.fromkeys(("readme", "license", "licence", "copying", "changelog", "changes", "news", "authors"), "text"),
    **dict.fromkeys(("contributing", "notice", "todo", "install", "faq", "history"), "text"),
    **dict.fromkeys(("makefile", "dockerfile", "jenkinsfile", "vagrantfile", "rakefile", "gemfile"), "code"),
}
PLAIN = frozenset({"markdown", "rst", "text", "rows", "code"})  # their text is the decoded file itself
_TAR_ENDS = (".tar.gz", ".tar.bz2", ".tar.xz")


def kind(name: str) -> str:
    """Returns the kind of a document by its name; "" when it is none that is read."""
    last = PurePosixPath(name).name.lower()
    if last.endswith(_TAR_ENDS):
        return "tar"
    suffix = PurePosixPath(last).suffix
    return KINDS.get(suffix, "") if suffix else NAMES.get(last, "")


def supported(name: str) -> bool:
    """Returns whether a file of this name is read."""
    return kind(name) != ""
